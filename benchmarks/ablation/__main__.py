"""`python -m ablation EXPERIMENT`: trains the cells that are missing, then writes the results."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from ablation.cells import ARMS, Cell, cells_of
from ablation.report import write_report
from ablation.stages import Workshop, prepare_world, run_cell
from decant.config import apply_set, read_tree
from decant.errors import DecantError
from decant.progress import Progress

_STUDENT = Path(__file__).parent / "student.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one experiment; killed, it goes on where it stopped."""
    given = _parser().parse_args(arguments)
    settings = read_tree(_STUDENT)
    of_students = [change for change in given.set if change.split(".")[0] in settings]
    workshop = Workshop(folder=given.workdir, settings=settings, max_tokens=given.max_tokens)
    try:
        for change in of_students:
            apply_set(settings, change)
        for world in given.worlds:
            prepare_world(workshop, world, changes=[c for c in given.set if c not in of_students])
        cells = cells_of(given.experiment, worlds=given.worlds, seeds=given.seeds)
        _run_cells(workshop, cells, jobs=given.jobs)
        written = write_report(workshop, given.experiment, cells, folder=given.output)
    except DecantError as error:
        sys.stderr.write(f"ablation: {error}\n")
        return error.exit_code
    sys.stdout.write(written.read_text(encoding="utf-8"))
    return 0


def _run_cells(workshop: Workshop, cells: Sequence[Cell], *, jobs: int) -> None:
    with (
        Progress(len(cells), unit="cells", label="ablation") as progress,
        ThreadPoolExecutor(max_workers=jobs) as pool,
    ):
        running = [pool.submit(run_cell, workshop, cell) for cell in cells]
        try:
            for done in as_completed(running):
                progress.advance(1, last=done.result().parent.name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ablation", description=__doc__)
    parser.add_argument("experiment", choices=list(ARMS))
    parser.add_argument("--worlds", nargs="+", default=["counter", "swap"], metavar="WORLD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--jobs", type=int, default=1, help="students at once, one CPU thread each")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results"), help="folder for the results"
    )
    parser.add_argument("--max-tokens", type=int, default=96, help="longest answer of teacher and students")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change labels.toml (world.train_count=500) or student.toml (train.token_budget=100000)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
