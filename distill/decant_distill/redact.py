"""Takes what is private out of texts: addresses, numbers and keys become placeholders such as [EMAIL_1].

What has a checksum (cards, IBANs, most identity numbers) or a grammar (IP addresses) is checked, so that
other numbers stay. Names take a model, and are looked for where they are asked for.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from decant.task import Message
from decant_distill.national_ids import find_national_ids
from decant_distill.redact_names import NameKind, NamesConfig, open_names

PatternKind = Literal["email", "secret", "iban", "national_id", "card", "ip", "phone"]
RedactKind = PatternKind | NameKind
KINDS: tuple[PatternKind, ...] = get_args(PatternKind)
NAME_KINDS: tuple[NameKind, ...] = get_args(NameKind)


@dataclass(frozen=True, slots=True)
class Span:
    """Something private at `text[start:end]`."""

    kind: RedactKind
    start: int
    end: int


def find_private(
    text: str, kinds: Sequence[RedactKind] = KINDS, names: NamesConfig | None = None
) -> list[Span]:
    """What is private in a text, in order and without overlap; of two that overlap the more certain kind.

    `names` says which model finds names, if their kinds are among `kinds`.
    """
    taken: list[Span] = []

    def take(kind: RedactKind, found: Iterator[tuple[int, int]]) -> None:
        for start, end in found:
            if all(end <= other.start or start >= other.end for other in taken):
                taken.append(Span(kind, start, end))

    # The order of KINDS is that of certainty, and names are the least certain.
    for kind in KINDS:
        if kind in kinds:
            take(kind, _FINDERS[kind](text))
    for kind in NAME_KINDS:
        if kind in kinds:
            take(kind, open_names(names or NamesConfig())(text, kind))
    return sorted(taken, key=lambda span: span.start)


class Placeholders:
    """Replaces what is private; within one of these the same value gets the same placeholder."""

    def __init__(self, kinds: Sequence[RedactKind] = KINDS, names: NamesConfig | None = None) -> None:
        self._kinds = kinds
        self._names = names
        self._known: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def redact(self, text: str) -> str:
        """The text with placeholders."""
        parts: list[str] = []
        reached = 0
        for span in find_private(text, self._kinds, self._names):
            parts += [text[reached : span.start], self._placeholder(span.kind, text[span.start : span.end])]
            reached = span.end
            self.counts[span.kind] += 1
        return "".join([*parts, text[reached:]]) if parts else text

    def _placeholder(self, kind: str, value: str) -> str:
        key = (kind, "".join(value.split()).casefold())
        if key not in self._known:
            self._numbers[kind] += 1
            self._known[key] = f"[{kind.upper()}_{self._numbers[kind]}]"
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Redaction:
    """Redacts the user message of a request, and the true answer with the same placeholders."""

    kinds: tuple[RedactKind, ...]
    names: NamesConfig

    @classmethod
    def of(cls, kinds: tuple[RedactKind, ...], names: NamesConfig) -> "Redaction | None":
        """The redaction asked for, if any; MissingExtraError or ConfigError where names cannot be found."""
        if any(kind in NAME_KINDS for kind in kinds):
            open_names(names)
        return cls(kinds, names) if kinds else None

    def placeholders(self) -> Placeholders:
        """Those of one row."""
        return Placeholders(self.kinds, self.names)

    def __call__(
        self, messages: list[Message], gold: str | None
    ) -> tuple[list[Message], str | None, dict[str, int] | None]:
        """The messages, the true answer, and how many of each kind were taken out of the messages."""
        placeholders = self.placeholders()
        *before, last = messages
        clean = [*before, {**last, "content": placeholders.redact(last["content"])}]
        counts = dict(placeholders.counts)
        return clean, None if gold is None else placeholders.redact(gold), counts or None


_Finder = Callable[[str], Iterator[tuple[int, int]]]

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
_SECRETS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    re.compile(
        r"(?<![\w-])(?:sk-[\w-]{20,}|(?:ghp|gho|ghu|ghs|ghr)_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|hf_\w{30,}"
        r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|xox[abeprs]-[\w-]{10,}|[rsp]k_live_\w{16,})(?![\w-])"
    ),
    re.compile(
        r"(?i)(?:api[_ -]?key|access[_ -]?token|secret(?:[_ -]?key)?|password|passwd|pwd)"
        r"[\"']?\s*[:=]\s*[\"']?"
        r"(?P<value>[^\s\"',;]{8,})"
    ),
)
# One quick look: a text without any of these has no secret, one without so many digits no number to check.
_SECRET_SIGNS = (
    *("KEY-----", "eyJ", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "hf_"),
    *("AKIA", "ASIA", "AIza", "xox", "_live_", "=", ":"),
)
_DIGITS = re.compile(r"\d[ ()./-]{0,3}\d[ ()./-]{0,3}\d[\d ()./-]{3,}\d")
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?=[ A-Z0-9])")
# ISO 13616's registry: how long an IBAN is, by country.
_IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "NL", "FO", "GL"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "EG", "GT", "HU", "LB", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
}
_CARD = re.compile(r"(?<![\d.,])[3-6]\d(?:[ -]?\d){11,17}(?!\d)")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_PHONES = (
    re.compile(r"(?<![\w.])(?<!\d )(?:\+|00)[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,5}\)?){2,6}(?![\w])"),
    re.compile(r"(?<![\w.+-])\(?[2-9]\d{2}\)?[ .-]\d{3}[.-]\d{4}(?![\w-])"),
    re.compile(r"(?<![\w.,+/-])(?<!\d )0[1-9]\d{1,3}[ /-]\d{3,8}(?:[ -]\d{2,4}){0,3}(?![\w,]|[.]\d)"),
)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    return (found.span() for found in _EMAIL.finditer(text)) if "@" in text else iter(())


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    if not any(sign in text for sign in _SECRET_SIGNS):
        return
    for pattern in _SECRETS:
        for found in pattern.finditer(text):
            yield found.span("value") if "value" in pattern.groupindex else found.span()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for found in _IBAN_START.finditer(text):
        length = _IBAN_LENGTHS.get(found[0][:2], 0)
        end, iban = found.start(), ""
        while end < len(text) and len(iban) < length and (text[end].isalnum() or text[end] == " "):
            iban += text[end].strip()
            end += 1
        ends_there = not text[end : end + 1].isalnum()
        if length and len(iban) == length and ends_there and iban.isascii() and _mod_97(iban) == 1:
            yield found.start(), end


def _mod_97(iban: str) -> int:
    """ISO 7064's check: 1 for a valid IBAN."""
    turned = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97


def _cards(text: str) -> Iterator[tuple[int, int]]:
    if _DIGITS.search(text) is None:
        return
    for found in _CARD.finditer(text):
        digits = [int(character) for character in found[0] if character.isdigit()]
        if len(set(digits)) > 1 and _luhn(digits):
            yield found.span()


def _luhn(digits: Sequence[int]) -> bool:
    """ISO/IEC 7812's check."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _ips(text: str) -> Iterator[tuple[int, int]]:
    for found in (*_IPV4.finditer(text), *_IPV6.finditer(text)):
        is_short = ":" in found[0] and not (any(c.isdigit() for c in found[0]) and len(found[0]) > 5)
        try:
            ipaddress.ip_address(found[0])
        except ValueError:
            continue
        if not is_short:
            yield found.span()


def _phones(text: str) -> Iterator[tuple[int, int]]:
    if _DIGITS.search(text) is None:
        return
    for pattern in _PHONES:
        for found in pattern.finditer(text):
            if 8 <= sum(character.isdigit() for character in found[0]) <= 15:
                yield found.span()


_FINDERS: dict[PatternKind, _Finder] = {
    "email": _emails,
    "secret": _secrets,
    "iban": _ibans,
    "national_id": find_national_ids,
    "card": _cards,
    "ip": _ips,
    "phone": _phones,
}
