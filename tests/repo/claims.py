"""What a document claims in backticks and code blocks, and whether the repository bears it out."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from decant.arguments import build_parser
from decant.cli import VERBS, load_verb

# Commands of other people, which may stand in our documents unchecked.
FOREIGN = {
    *("apt", "cd", "curl", "docker", "export", "git", "kill", "llama-server", "pip", "python"),
    *("sh", "vllm"),
}
SOURCE_SUFFIXES = (".py", ".toml", ".txt")
AREAS = ("serve", "quant", "distill", "benchmarks")


@dataclass(frozen=True, slots=True)
class Claim:
    """Something a document says exists."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Sources:
    """The repository's source, as text, as the set of words in it, and as the modules it has."""

    root: Path
    text: str
    words: frozenset[str]
    modules: dict[str, str]
    targets: frozenset[str]

    @classmethod
    def read(cls, root: Path) -> "Sources":
        """Reads every source file outside the tests."""
        folders = [root / "decant", *(root / area for area in AREAS)]
        files = [p for folder in folders for p in sorted(folder.rglob("*")) if p.suffix in SOURCE_SUFFIXES]
        files += [root / "pyproject.toml", root / "deploy" / "Dockerfile"]
        texts = {path: path.read_text(encoding="utf-8") for path in files}
        makefile = (root / "Makefile").read_text(encoding="utf-8")
        text = "\n".join([*texts.values(), makefile])
        return cls(
            root=root,
            text=text,
            words=frozenset(re.findall(r"\w+", text)),
            modules={_module(path, root): content for path, content in texts.items() if path.suffix == ".py"},
            targets=frozenset(re.findall(r"^(\w+):", makefile, re.MULTILINE)),
        )


def claims_of(document: Path) -> list[Claim]:
    """The code spans of a document's prose and the commands of its shell blocks."""
    claims: list[Claim] = []
    fence: str | None = None
    pending = ""
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        opening = re.match(r"\s*```(\w*)", line)
        if opening:
            fence = None if fence is not None else opening[1]
        elif fence is None:
            claims += [Claim(number, span) for span in re.findall(r"`([^`]+)`", line)]
        elif fence in ("sh", "bash", "console"):
            pending += line.strip().removesuffix("\\")
            if not line.endswith("\\"):
                claims += [Claim(number, command) for command in [_command(pending)] if command]
                pending = ""
    return claims


def toml_blocks_of(document: Path) -> list[str]:
    """The TOML code blocks of a document."""
    return re.findall(r"^```toml\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def links_of(document: Path) -> list[str]:
    """The targets of a document's links to files, without their anchors."""
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    return [link for link in links if "://" not in link]


def complaint(claim: Claim, folder: Path, sources: Sources) -> str | None:
    """Why a claim is not true, or None when it is."""
    words = shlex.split(claim.text) if claim.text.startswith(("decant ", "make ")) else claim.text.split()
    if words[0] == "decant" and len(words) > 1:
        return _decant_complaint(words[1:])
    if words[0] == "make" and len(words) > 1:
        unknown = [word for word in words[1:] if "=" not in word and word not in sources.targets]
        return f"names no target of the Makefile: {unknown}" if unknown else None
    if words[0] in FOREIGN and len(words) > 1:
        return None
    if words[0].startswith("--"):
        known = any(words[0] in _options(verb) for verb in VERBS)
        return None if known else "is an option of no verb"
    # `key = value` shows a setting: the key must be real, the value is the reader's.
    name = words[0] if words[1:2] == ["="] else claim.text
    return None if _exists(name, folder, sources) else "is in no file of the repository"


def _command(line: str) -> str | None:
    """A shell line without its prompt, its comment and its leading assignments."""
    bare = re.sub(r"\s#.*", "", line.removeprefix("$ ")).strip()
    bare = re.sub(r"^(?:[A-Z_]+=\S*\s+)+", "", bare).rstrip("& ")
    return None if not bare or bare.startswith("#") else bare


def _exists(text: str, folder: Path, sources: Sources) -> bool:
    path = text.rstrip("/")
    if any((base / path).exists() for base in _bases(folder, sources.root)):
        return True
    # A method's name and its variant, such as the kinds of GGUF, are put together by the code.
    if re.fullmatch(r"\w+:\w+", text) and set(text.split(":")) <= sources.words:
        return True
    module, _, name = text.removesuffix("()").rpartition(".")
    homes = [known for known in sources.modules if module and f".{known}".endswith(f".{module}")]
    if text in sources.modules or any(_defines(sources.modules[home], name) for home in homes):
        return True
    return bool(re.search(rf"(?<!\w){re.escape(text.removesuffix('()'))}(?!\w)", sources.text))


def _bases(folder: Path, root: Path) -> list[Path]:
    """Where a path in a document may start: the root, the document's folder, or the package of an area."""
    return [root, folder, *folder.glob("decant_*"), root / "decant"]


def _defines(content: str, name: str) -> bool:
    pattern = rf"^\s*(?:(?:async )?def|class|type) {re.escape(name)}\b|^\s*{re.escape(name)}\s*[:=]"
    return re.search(pattern, content, re.MULTILINE) is not None


def _decant_complaint(words: Sequence[str]) -> str | None:
    two_words = " ".join(words[:2])
    verb, *rest = [two_words, *words[2:]] if two_words in VERBS else words
    groups = {name.partition(" ")[0] for name in VERBS if " " in name}
    if verb in ("--help", "--version", "VERB") or (verb in groups and not rest):
        return None
    if verb not in VERBS:
        return "is no verb"
    flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
    unknown = [flag for flag in flags if flag not in _options(verb)]
    return f"has no option {unknown}" if unknown else None


@cache
def _options(verb: str) -> frozenset[str]:
    parser = build_parser(load_verb(verb).CONFIG, verb=verb, summary=VERBS[verb][1])
    # argparse has no public list of its options.
    return frozenset(option for action in parser._actions for option in action.option_strings)


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    named = parts if parts[0] == "decant" else parts[1:]
    return ".".join(named).removesuffix(".__init__")
