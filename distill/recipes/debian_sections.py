"""Real text with real labels for `sections.toml`, from the package index of a Debian or Ubuntu machine.

`python distill/recipes/debian_sections.py FOLDER` reads `apt-cache dumpavail` and writes train.jsonl,
dev.jsonl and test.jsonl: a package's one-line synopsis and the archive section its maintainers put it
in. Left out: synopses that stand in two sections, repeated ones, transitional, dummy and documentation
packages, and sections that say how a package is used, not what it is about (`libs`, `debug` and their
like), or are small.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

SKIPPED_SECTIONS = {
    "debug", "doc", "education", "embedded", "gnome", "introspection", "kde", "libdevel",
    "libs", "localization", "metapackages", "misc", "oldlibs", "otherosfs", "tasks", "vcs",
    "xfce", "zope", "comm", "cli-mono", "shells", "gnustep", "news", "tex",
}  # fmt: skip
SKIPPED_WORDS = ("transitional", "dummy", "documentation", "metapackage")

# Of 256 values of a hash's first byte: about one part in eight for test, one in sixteen for dev.
_TEST_BELOW, _DEV_BELOW = 31, 46


def main() -> None:
    """Writes the three files and says how many rows each has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to write")
    folder: Path = parser.parse_args().folder
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        sys.exit("debian_sections: `apt-cache dumpavail` lists nothing; run `apt-get update` first")
    rows = unambiguous(packages(listed.stdout.splitlines()))
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        chosen = [row for row in rows if split_of(row["text"]) == split]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        sys.stdout.write(f"{folder / split}.jsonl: {len(chosen)} rows\n")


def packages(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The id, text and label of every package of a Debian control listing; empty lines end a package."""
    fields: dict[str, str] = {}
    for line in (*lines, ""):
        name, colon, value = line.partition(": ")
        if colon and not line.startswith(" "):
            fields[name] = value.strip()
        elif not line and fields:
            text = fields.get("Description") or fields.get("Description-en", "")
            section = fields.get("Section", "").rpartition("/")[2]
            if text and section:
                yield {"id": fields["Package"], "text": text, "label": section}
            fields = {}


def unambiguous(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """One row for each synopsis that stands in a single section that is kept, in order of first sight."""
    first: dict[str, dict[str, str]] = {}
    sections: dict[str, set[str]] = {}
    for row in rows:
        key = row["text"].casefold()
        first.setdefault(key, row)
        sections.setdefault(key, set()).add(row["label"])
    return [
        row
        for key, row in first.items()
        if len(sections[key]) == 1
        and row["label"] not in SKIPPED_SECTIONS
        and not any(word in key for word in SKIPPED_WORDS)
    ]


def split_of(text: str) -> str:
    """The split of a synopsis: its own hash decides, so that a newer index moves no row."""
    first_byte = hashlib.sha256(text.casefold().encode()).digest()[0]
    return "test" if first_byte < _TEST_BELOW else "dev" if first_byte < _DEV_BELOW else "train"


if __name__ == "__main__":
    main()
