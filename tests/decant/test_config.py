"""Configs: what is read, what is refused, and how the refusal reads."""

from pathlib import Path

import pytest
from pydantic import Field

from decant.arguments import parse
from decant.config import Config, InputPath, InputPaths, OutputPath, load_config, paths_with_role
from decant.errors import ConfigError


class Inner(Config):
    """A table."""

    learning_rate: float = 0.1
    source: InputPath = Path("inner")


class Outer(Config):
    """A verb's config."""

    positional = ("model",)

    model: InputPath = Field(description="a model")
    output: OutputPath = Path("out")
    stages: InputPaths = ()
    threads: int = Field(default=2, ge=1)
    strict: bool = False
    inner: Inner = Inner()


def test_file_then_set_then_flags_in_rising_order_of_precedence(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('model = "m"\nthreads = 3\n[inner]\nlearning_rate = 0.2\n')
    config = load_config(
        Outer, file=file, sets=["threads=4", "inner.learning_rate=0.3"], values={"threads": "5"}
    )
    assert (config.threads, config.inner.learning_rate, config.model) == (5, 0.3, Path("m"))


@pytest.mark.parametrize(
    ("sets", "hint"),
    [
        (["thraeds=2"], "unknown key thraeds (did you mean threads?)"),
        (["inner.lerning_rate=2"], "unknown key inner.lerning_rate (did you mean learning_rate?)"),
        (["threads=0"], "threads: Input should be greater than or equal to 1 (got 0)"),
        (["threads"], "write it as key=value"),
        (["threads.x=1", "threads=2"], None),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_helps(sets: list[str], hint: str | None) -> None:
    if hint is None:
        assert load_config(Outer, sets=["model=m", *sets]).threads == 2
        return
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, sets=["model=m", *sets])
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_required_key_is_named() -> None:
    with pytest.raises(ConfigError, match="model is required"):
        load_config(Outer)


@pytest.mark.parametrize("text", ["a = ", "[1]", "\ufeff{"])
def test_a_file_that_does_not_parse_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.json"):
        load_config(Outer, file=file)


def test_paths_are_found_by_role_through_nested_tables() -> None:
    config = load_config(Outer, values={"model": "m", "stages": ["s1", "s2"]})
    assert paths_with_role(config, "input") == [Path("m"), Path("s1"), Path("s2"), Path("inner")]
    assert paths_with_role(config, "output") == [Path("out")]


def test_the_command_line_takes_positionals_flags_and_sets() -> None:
    arguments = ["folder", "--threads", "7", "--strict", "--set", "inner.learning_rate=1e-3"]
    config = parse(Outer, arguments, verb="x", summary="y")
    assert (config.model, config.threads, config.strict) == (Path("folder"), 7, True)
    assert config.inner.learning_rate == 1e-3
