"""The other half of a tokenizer: the chat template, and the tokens that begin, end and pad a sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from decant.artifact import TEMPLATE_FILE
from decant.errors import QuantizeError
from decant_quant.checkpoint import read_json

_SETTINGS = "tokenizer_config.json"
# GGUF has three keys for tokens that end an answer: eos, eot, eom.
_MOST_STOPS = 3


@dataclass(frozen=True, slots=True)
class Ends:
    """Token ids with a meaning of their own; `stops` end an answer, the tokenizer's eos first."""

    bos: int | None
    stops: tuple[int, ...]
    pad: int | None
    add_bos: bool
    add_eos: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The tokens that are put around a text."""

    before: str | None = None
    after: str | None = None


def read_chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The default chat template: its own file, else tokenizer_config.json; None when there is none."""
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, str):
        return template
    named: list[dict[str, str]] = template or []
    return next((item["template"] for item in named if item["name"] == "default"), None)


def opens_with_special(template: str, definition: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a rendered chat begins with a special token, tried with one message; False if that fails."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    named = {f"{role}_token": _token_text(settings.get(f"{role}_token")) or "" for role in ("bos", "eos")}
    messages = [{"role": "user", "content": "x"}]
    try:
        rendered = environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, **named
        )
    except jinja2.TemplateError:
        return False
    added: list[dict[str, Any]] = definition.get("added_tokens") or []
    return any(rendered.startswith(str(item["content"])) for item in added)


def read_ends(
    folder: Path,
    *,
    settings: Mapping[str, Any],
    post_processor: Mapping[str, Any] | None,
    tokens: Sequence[str],
    template: str | None,
) -> Ends:
    """Reads which tokens begin, end and pad; QuantizeError when none ends an answer."""
    ids = {text: token_id for token_id, text in enumerate(tokens)}
    bos, eos, pad = (_token_text(settings.get(f"{role}_token")) for role in ("bos", "eos", "pad"))
    if "add_bos_token" in settings or "add_eos_token" in settings:
        # As transformers: with either flag there, the flags overrule the post-processor.
        flags = (settings.get("add_bos_token"), settings.get("add_eos_token"))
        plain = _Frame(bos if flags[0] else None, eos if flags[1] else None)
    else:
        plain = _post_processor_frame(folder, post_processor, eos=eos)
    bos = bos or plain.before
    if template is not None and bos is None and "bos_token" in template:
        raise QuantizeError(
            f"{folder}: the chat template names bos_token, the tokenizer has none, and llama.cpp would put"
            f" another token there; take it out of the template or name a bos_token in {_SETTINGS}"
        )
    frame = plain if template is None else _chat_frame(plain, template)
    return Ends(
        bos=_id(folder, bos, ids),
        stops=_stops(folder, _id(folder, eos, ids), size=len(tokens)),
        pad=_id(folder, pad, ids),
        add_bos=frame.before is not None,
        add_eos=frame.after is not None,
        notes=_notes(plain, frame, template),
    )


def _token_text(value: str | Mapping[str, str] | None) -> str | None:
    return value["content"] if isinstance(value, Mapping) else value or None


def _id(folder: Path, text: str | None, ids: Mapping[str, int]) -> int | None:
    if text is not None and text not in ids:
        raise QuantizeError(f"{folder}: the tokenizer has no token {text!r}; correct {_SETTINGS}")
    return None if text is None else ids[text]


def _post_processor_frame(folder: Path, definition: Mapping[str, Any] | None, *, eos: str | None) -> _Frame:
    steps: list[Mapping[str, Any]] = []
    if definition:
        steps = [step for step in definition.get("processors", [definition]) if step["type"] != "ByteLevel"]
    if not steps:
        return _Frame()
    pieces = [piece.get("SpecialToken", {}).get("id") for step in steps for piece in step.get("single", [])]
    match pieces:
        case [None]:
            return _Frame()
        case [str(before), None]:
            return _Frame(before)
        case [None, str(after)] if after == eos:
            return _Frame(None, after)
        case [str(before), None, str(after)] if after == eos:
            return _Frame(before, after)
        case _:
            raise QuantizeError(
                f"{folder}: GGUF can put one bos before a text and one eos after it, the post-processor of"
                f" tokenizer.json asks for something else; remove it and save the tokenizer again"
            )


def _chat_frame(plain: _Frame, template: str) -> _Frame:
    """llama.cpp frames rendered chats as it frames plain text, transformers does not: chats come first."""
    begins = plain.before is not None and ("bos_token" in template or plain.before in template)
    return replace(plain, before=plain.before if begins else None, after=None)


def _notes(plain: _Frame, frame: _Frame, template: str | None) -> tuple[str, ...]:
    if template is None:
        return ("there is no chat template: llama.cpp will answer chat requests with its own, ChatML",)
    lost = [text for text, kept in ((plain.before, frame.before), (plain.after, frame.after)) if text != kept]
    return tuple(
        f"plain text gets no {text}: the chat template has none, llama.cpp keeps one rule" for text in lost
    )


def _stops(folder: Path, eos: int | None, *, size: int) -> tuple[int, ...]:
    """The tokenizer's eos and those of generation_config.json; config.json's only when there is no other."""
    found = [] if eos is None else [eos]
    for name in ("generation_config.json", "config.json"):
        listed = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if listed is not None and (name == "generation_config.json" or not found):
            found += listed if isinstance(listed, list) else [listed]
    stops = tuple(dict.fromkeys(found))
    if not stops or max(stops) >= size:
        raise QuantizeError(
            f"{folder}: no token of its tokenizer ends an answer; name eos_token in {_SETTINGS}"
        )
    if len(stops) > _MOST_STOPS:
        raise QuantizeError(
            f"{folder}: {len(stops)} tokens end an answer, GGUF can name {_MOST_STOPS};"
            f" shorten eos_token_id in generation_config.json"
        )
    return stops
