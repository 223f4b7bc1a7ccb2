"""What the scripted engine does, as the clients should find it."""

from dataclasses import dataclass
from pathlib import Path

from decant.files import write_json


@dataclass(frozen=True, slots=True)
class Truth:
    """The first of `tokens` tokens comes after `ttft_s`, the others `gap_s` apart."""

    ttft_s: float
    gap_s: float
    tokens: int

    def write_script(self, folder: Path) -> Path:
        """The script that does so."""
        chunks = [f"word{number} " for number in range(self.tokens)]
        answer = {"chunks": chunks, "ttft_s": self.ttft_s, "gaps_s": [self.gap_s], "prompt_tokens": 8}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "script.json", {"answers": [answer]})
        return folder / "script.json"
