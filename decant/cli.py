"""`decant VERB`: finds the verb's module, builds its config from the command line, runs it.

Nothing heavy is imported until a verb is chosen, so that `decant --help` answers at once.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from decant import __version__
from decant.errors import DecantError

if TYPE_CHECKING:
    from decant.config import Config

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("decant_distill.demo.command", "run the whole loop on a bundled world and print its ledger"),
    "run": ("decant.pipeline", "run a recipe's stages in order, skipping what is done"),
    "serve": ("decant_serve.serve", "serve a model behind an OpenAI-compatible endpoint"),
    "waterfall": ("decant_serve.waterfall", "show where one served request's time went, rank by rank"),
    "label": ("decant_distill.label", "label a dataset with a teacher, with its reasoning"),
    "review": ("decant_distill.review", "read labels in the browser: accept, edit or reject"),
    "curate": ("decant_distill.curate", "turn labels into a training set"),
    "logits": ("decant_distill.train.logits", "score labels token by token with a teacher, for train"),
    "train": ("decant_distill.train.command", "teach a student with QLoRA"),
    "learning-curve": ("decant_distill.train.learning_curve", "say whether more labels would pay"),
    "ablate": ("decant_distill.train.ablate", "say where the rationale should stand, on your own rows"),
    "merge": ("decant_distill.merge", "merge an adapter into its base"),
    "quantize": ("decant_quant.quantize", "make a checkpoint smaller"),
    "eval": ("decant_bench.evaluate", "replay a dataset against an endpoint: answers and timings"),
    "ledger": ("decant_bench.ledger", "say what each stage kept and lost"),
    "bench run": ("decant_bench.bench", "put a load on an endpoint and measure its latency"),
    "bench calibrate": ("decant_bench.calibrate", "measure the benchmark's own error on known delays"),
    "bench compare": ("decant_bench.compare", "say which of two benchmark runs is faster, or that none is"),
    "bench ab": ("decant_bench.interleave", "load two endpoints in turns and say which is faster"),
    "bench sweep": ("decant_bench.sweep", "find the highest rate that still meets a latency objective"),
    "baseline": ("decant_distill.baseline", "score TF-IDF + logistic regression on the same requests"),
    "split": ("decant_distill.split", "split a dataset into parts by a hash of its texts"),
    "scratch": ("decant_distill.scratch", "make a small base model from scratch on plain text"),
    "problems": ("decant_distill.demo.problems", "write a bundled world's problems as a dataset"),
}


class Verb(Protocol):
    """What a verb's module offers."""

    CONFIG: "type[Config]"

    def run(self, config: Any) -> None:
        """Does the work; DecantError for what the user can mend."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 2 for a DecantError, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except DecantError as error:
        print(f"decant: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"decant: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("decant: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"decant {__version__}")
        return 0
    from decant.arguments import parse
    from decant.config import nearest

    name, *rest = _joined(arguments)
    if group := [verb for verb in VERBS if verb.startswith(f"{name} ")]:
        if rest and rest[0] not in ("-h", "--help", "help"):
            known = [verb.removeprefix(f"{name} ") for verb in group]
            raise DecantError(f"no such verb: {name} {rest[0]}{nearest(rest[0], known)}")
        print(f"usage: decant {name} VERB [options]\n\nverbs:\n{_listed(group)}")
        return 0
    if name not in VERBS:
        raise DecantError(f"no such verb: {name}{nearest(name, list(VERBS))}")
    verb = load_verb(name)
    verb.run(parse(verb.CONFIG, rest, verb=name, summary=VERBS[name][1]))
    return 0


def _joined(arguments: list[str]) -> list[str]:
    """The arguments with a verb of two words, such as `bench run`, as one."""
    two_words = " ".join(arguments[:2])
    return [two_words, *arguments[2:]] if two_words in VERBS else arguments


def _listed(names: Iterable[str]) -> str:
    return "\n".join(f"  {name:<15} {VERBS[name][1]}" for name in names)


def overview() -> str:
    """The text of `decant --help`."""
    return (
        "usage: decant VERB [options]\n\n"
        "Decant pours a big language model into a small one and proves what was lost on the way.\n\n"
        f"verbs:\n{_listed(VERBS)}\n\n"
        "`decant VERB --help` lists a verb's options; every option can also stand in a TOML file (--config)."
    )


def load_verb(name: str) -> Verb:
    """Imports the module behind a verb."""
    module: Any = importlib.import_module(VERBS[name][0])
    return module
