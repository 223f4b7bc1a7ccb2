"""`decant demo`: the bundled recipe from end to end, then the lines to change for one's own data."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from decant.config import Config, OutputPath
from decant.pipeline import run_recipe
from decant.recipe import read_recipe

RECIPE = Path(__file__).with_name("demo.toml")
OWN_RECIPE = "distill/recipes/own.toml"


class DemoConfig(Config):
    """What to change in the bundled recipe."""

    set_field: ClassVar[str | None] = "changes"

    workdir: OutputPath = Field(
        default=Path("runs/demo"), description="folder for everything that the demo makes"
    )
    until: str | None = Field(default=None, description="run up to and including this stage")
    dry_run: bool = Field(default=False, description="say what would run, and run nothing")
    changes: tuple[str, ...] = Field(default=(), description="changes to the recipe, each table.key=value")


CONFIG = DemoConfig


def run(config: DemoConfig) -> None:
    """Runs the bundled recipe and says how to go on from there."""
    recipe = read_recipe(RECIPE, changes=[f"workdir={config.workdir}", *config.changes])
    run_recipe(recipe, until=config.until, dry_run=config.dry_run)
    if config.until is None and not config.dry_run:
        print(_next_steps(config.workdir))


def _next_steps(workdir: Path) -> str:
    return (
        f"\nThe ledger with plots: {workdir}/ledger/ledger.html\n\n"
        f"Your own teacher and data: change three lines of {OWN_RECIPE},\n\n"
        '  data = "my-requests.jsonl"\n'
        '  teacher = {base_url = "https://api.example.com/v1", api_key_env = "MY_KEY", model = "big-model"}\n'
        '  student = "path/to/a/small/model"\n\n'
        f"and run: decant run {OWN_RECIPE}"
    )
