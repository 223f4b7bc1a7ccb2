"""Recipes: references, misspelt keys, skipping what is done, going on after a failure."""

import json
from pathlib import Path

import pytest

from decant.cli import main
from decant.errors import ConfigError
from decant.pipeline import run_recipe
from decant.recipe import read_recipe

RECIPE = """
name = "little"
workdir = "{workdir}"
[world]
name = "counter"
count = 12

[[stage]]
name = "problems"
verb = "problems"
[stage.config]
world = "${{world.name}}"
output_folder = "${{recipe.workdir}}/problems"
train_count = "${{world.count}}"
dev_count = 4
test_count = 4
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(workdir=tmp_path / "work"))
    return file


def test_references_are_resolved_and_keep_their_type(recipe_file: Path, tmp_path: Path) -> None:
    stage = read_recipe(recipe_file, changes=["world.count=20"]).stages[0]
    assert stage.config["train_count"] == 20
    assert stage.config["output_folder"] == f"{tmp_path / 'work'}/problems"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count = 12", "cuont = 12", "unknown reference ${world.count} (did you mean world.cuont?)"),
        ("count = 12", "count = 12\nextra = 1", "unknown key world.extra: no stage uses it"),
        ('verb = "problems"', 'verb = "problem"', "no such verb problem (did you mean problems?)"),
        ('verb = "problems"', 'verb = "problems"\nverv = 1', "unknown key stage.0.verv"),
        ("dev_count = 4", "devcount = 4", "unknown key devcount (did you mean dev_count?)"),
        ('name = "problems"', 'name = "a/b"', "stage name 'a/b' may hold"),
        ('name = "little"', 'name = "little', "recipe.toml"),
    ],
)
def test_what_is_misspelt_is_named_before_anything_runs(
    recipe_file: Path, old: str, new: str, message: str
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        run_recipe(read_recipe(recipe_file), dry_run=True)
    assert message in str(caught.value)


def test_a_change_to_a_table_that_is_not_there_is_refused(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean world"):
        read_recipe(recipe_file, changes=["wrold.count=1"])


def test_a_done_stage_is_skipped_until_something_changes(recipe_file: Path, tmp_path: Path) -> None:
    def skipped(*changes: str) -> bool:
        return run_recipe(read_recipe(recipe_file, changes=changes))[0].skipped

    assert [skipped(), skipped(), skipped("world.count=13"), skipped("world.count=13")] == [
        False,
        True,
        False,
        True,
    ]
    train = tmp_path / "work" / "problems" / "train.jsonl"
    train.write_text("altered")
    assert not skipped("world.count=13")
    assert len([json.loads(line) for line in train.read_text().splitlines()]) == 13


def test_a_failing_stage_stops_the_recipe_with_one_line(
    recipe_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "problems").write_text("a file where the stage wants its folder")
    assert main(["run", str(recipe_file)]) == 2
    stage_line, recipe_line = capfd.readouterr().err.splitlines()[-2:]
    assert "work/problems: File exists" in stage_line
    assert "stage problems ended with exit code 2" in recipe_line


def test_an_unknown_verb_and_a_missing_recipe_exit_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lable"]) == 2
    assert main(["run", "none.toml"]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert errors == [
        "decant: no such verb: lable (did you mean label?)",
        "decant: none.toml: no such config file",
    ]
