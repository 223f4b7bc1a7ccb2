"""`decant run RECIPE.toml`: a recipe's stages in order, each a command of its own; done ones are skipped.

A stage is done when its fingerprint (its config, the hash of every input, the code of its package) and the
hashes of its outputs are those of the last finished run. A killed stage is started again and resumes.
"""

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from decant import __version__
from decant.cli import VERBS, load_verb
from decant.config import Config, InputPath, nearest, paths_with_role, validate
from decant.errors import ConfigError, StageError
from decant.files import sha256_path, write_json
from decant.processes import end_with_parent
from decant.recipe import Recipe, StageEntry, read_recipe

STATE_FOLDER = ".decant"


class RunConfig(Config):
    """Which recipe to run, and what to change in it."""

    positional: ClassVar[tuple[str, ...]] = ("recipe",)
    set_field: ClassVar[str | None] = "changes"

    recipe: InputPath = Field(description="recipe file (TOML)")
    until: str | None = Field(default=None, description="run up to and including this stage")
    changes: tuple[str, ...] = Field(default=(), description="changes to the recipe, each table.key=value")
    dry_run: bool = Field(default=False, description="say what would run, and run nothing")


CONFIG = RunConfig


@dataclass(frozen=True, slots=True)
class Stage:
    """A recipe's stage with its config checked."""

    entry: StageEntry
    config: Config

    @property
    def name(self) -> str:
        """The stage's name, unique in its recipe."""
        return self.entry.name


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What became of one stage: `wall_s` is 0 where it was skipped."""

    name: str
    skipped: bool
    wall_s: float


def run(config: RunConfig) -> None:
    """Runs the recipe and prints a line per stage."""
    recipe = read_recipe(config.recipe, changes=config.changes)
    run_recipe(recipe, until=config.until, dry_run=config.dry_run)


def run_recipe(recipe: Recipe, *, until: str | None = None, dry_run: bool = False) -> list[StageOutcome]:
    """Runs every stage up to `until`; StageError names the one that failed and how to go on."""
    stages = [check_stage(recipe, entry) for entry in recipe.stages]
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        raise ConfigError(f"{recipe.file}: no stage named {until}{nearest(until, names)}")
    last = names.index(until) if until else len(stages) - 1
    outcomes: list[StageOutcome] = []
    for number, stage in enumerate(stages[: last + 1], start=1):
        outcome = _run_stage(recipe, stage, title=f"[{number}/{last + 1}] {stage.name}", dry_run=dry_run)
        outcomes.append(outcome)
    if not dry_run:
        _write_summary(recipe, outcomes)
    return outcomes


def check_stage(recipe: Recipe, entry: StageEntry) -> Stage:
    """Validates one stage's verb and config without running anything."""
    if entry.verb not in VERBS:
        raise ConfigError(
            f"{recipe.file}: stage {entry.name}: no such verb {entry.verb}{nearest(entry.verb, list(VERBS))}"
        )
    where = f"{recipe.file}: stage {entry.name}"
    return Stage(entry, validate(load_verb(entry.verb).CONFIG, entry.config, where=where))


def fingerprint(stage: Stage) -> str:
    """SHA-256 over the stage's verb, config, input contents and code version."""
    inputs = {str(path): _hash_input(stage, path) for path in paths_with_role(stage.config, "input")}
    content = {
        "verb": stage.entry.verb,
        "python": stage.entry.python,
        "config": stage.config.model_dump(mode="json"),
        "inputs": inputs,
        "code": _code_version(stage.entry.verb),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _run_stage(recipe: Recipe, stage: Stage, *, title: str, dry_run: bool) -> StageOutcome:
    if dry_run:
        print(f"{title}: decant {stage.entry.verb}", flush=True)
        return StageOutcome(stage.name, skipped=True, wall_s=0.0)
    digest = fingerprint(stage)
    state_file = _state_folder(recipe) / f"{stage.name}.json"
    if is_done(stage, state_file, digest):
        print(f"{title}: done before, skipped", flush=True)
        return StageOutcome(stage.name, skipped=True, wall_s=0.0)
    print(f"{title}: decant {stage.entry.verb}", flush=True)
    started = time.perf_counter()
    _execute(recipe, stage)
    wall_s = time.perf_counter() - started
    outputs = {str(path): sha256_path(path) for path in paths_with_role(stage.config, "output")}
    write_json(state_file, {"fingerprint": digest, "outputs": outputs, "wall_s": round(wall_s, 3)})
    print(f"{title}: finished in {wall_s:.1f} s", flush=True)
    return StageOutcome(stage.name, skipped=False, wall_s=wall_s)


def is_done(stage: Stage, state_file: Path, digest: str) -> bool:
    """Whether the stage's last finished run had this fingerprint and its outputs are still what it wrote."""
    if not state_file.is_file():
        return False
    state: dict[str, Any] = json.loads(state_file.read_text(encoding="utf-8"))
    if state["fingerprint"] != digest:
        return False
    outputs = paths_with_role(stage.config, "output")
    return all(path.exists() and state["outputs"].get(str(path)) == sha256_path(path) for path in outputs)


def _execute(recipe: Recipe, stage: Stage) -> None:
    config_file = _state_folder(recipe) / f"{stage.name}.config.json"
    write_json(config_file, stage.config.model_dump(mode="json", exclude_unset=True))
    python = stage.entry.python or sys.executable
    command = [python, "-m", "decant", stage.entry.verb, "--config", str(config_file)]
    try:
        code = subprocess.call(command, preexec_fn=end_with_parent())
    except OSError as error:
        raise StageError(f"stage {stage.name}: cannot start {python} ({error.strerror})") from None
    if code != 0:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise StageError(
            f"stage {stage.name} {ended}; mend it and run the same command again:"
            " finished stages are kept and this one resumes"
        )


def _hash_input(stage: Stage, path: Path) -> str:
    if not path.exists():
        raise StageError(f"stage {stage.name}: its input {path} does not exist")
    return sha256_path(path)


def _code_version(verb: str) -> str:
    """The Decant version plus a hash of the verb's package, so that changed code is run again."""
    package = VERBS[verb][0].partition(".")[0]
    folder = Path(str(sys.modules[package].__file__)).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:16]}"


def _state_folder(recipe: Recipe) -> Path:
    return recipe.workdir / STATE_FOLDER


def _write_summary(recipe: Recipe, outcomes: list[StageOutcome]) -> None:
    total_s = sum(outcome.wall_s for outcome in outcomes)
    rerun = sum(not outcome.skipped for outcome in outcomes)
    print(
        f"{recipe.name}: {rerun} stages run in {total_s:.0f} s, {len(outcomes) - rerun} skipped", flush=True
    )
