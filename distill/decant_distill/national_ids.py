"""National identity numbers in running text, by their own shapes and check digits, of ten countries.

A number whose check is weak, or that has none, counts only behind a word that names it: one in eleven numbers
of nine digits passes the Dutch check.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

_NAMED_WITHIN = 40


@dataclass(frozen=True, slots=True)
class _Id:
    """One kind: its shape, the check of its bare characters, and the words that must stand before it."""

    shape: re.Pattern[str]
    is_valid: Callable[[str], bool]
    named: re.Pattern[str] | None = None


def find_national_ids(text: str) -> Iterator[tuple[int, int]]:
    """Where identity numbers stand in a text."""
    if _QUICK.search(text) is None:
        return
    for kind in _IDS:
        for found in kind.shape.finditer(text):
            bare = re.sub(r"[\s./-]", "", found[0]).upper()
            before = text[max(0, found.start() - _NAMED_WITHIN) : found.start()]
            is_named = kind.named is None or kind.named.search(before) is not None
            if is_named and kind.is_valid(bare):
                yield found.span()


def _us_ssn(bare: str) -> bool:
    """Area, group and serial as the Social Security Administration issues them; there is no check digit."""
    area, group, serial = bare[:3], bare[3:5], bare[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _uk_nino(bare: str) -> bool:
    """HMRC's rule for prefixes."""
    is_unused = bare[:2] in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")
    return not is_unused and bare[0] not in "DFIQUV" and bare[1] not in "DFIOQUV"


def _es_dni(bare: str) -> bool:
    """A DNI, or with a leading letter a NIE: the last letter is the number modulo 23."""
    number = {"X": "0", "Y": "1", "Z": "2"}.get(bare[0], bare[0]) + bare[1:-1]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == bare[-1]


def _fr_nir(bare: str) -> bool:
    """Sex, year, month, department (Corsica has letters), and 97 minus the number modulo 97."""
    number = bare[:13].replace("2A", "19").replace("2B", "18")
    month = int(bare[3:5])
    return (1 <= month <= 12 or 20 <= month <= 42) and 97 - int(number) % 97 == int(bare[13:])


def _it_cf(bare: str) -> bool:
    """The codice fiscale's last letter; odd places count by a table of their own."""
    odd = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True))
    letters = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    odd |= dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", letters, strict=True))
    total = sum(odd[character] for character in bare[:15:2])
    total += sum(int(c) if c.isdigit() else ord(c) - ord("A") for c in bare[1:15:2])
    return chr(ord("A") + total % 26) == bare[15]


def _de_tax(bare: str) -> bool:
    """Steuer-ID: one digit two or three times among the first ten, and ISO 7064's MOD 11, 10."""
    counts = sorted(map(bare[:10].count, set(bare[:10])), reverse=True)
    if counts[0] not in (2, 3) or counts[1:2] > [1]:
        return False
    rest = 10
    for digit in map(int, bare[:10]):
        rest = ((rest + digit) % 10 or 10) * 2 % 11
    return (11 - rest) % 10 == int(bare[10])


def _nl_bsn(bare: str) -> bool:
    """The eleven-test: weights 9 to 2, and -1 for the last digit."""
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    total = sum(weight * int(digit) for weight, digit in zip(weights, bare, strict=True))
    return len(set(bare)) > 1 and total % 11 == 0


def _pl_pesel(bare: str) -> bool:
    """A date of birth, its century in the month, and weights 1, 3, 7, 9."""
    century, month = divmod(int(bare[2:4]), 20)
    if century > 4 or not _is_date((1900, 2000, 2100, 2200, 1800)[century] + int(bare[:2]), month, bare[4:6]):
        return False
    total = sum((1, 3, 7, 9)[place % 4] * int(digit) for place, digit in enumerate(bare[:10]))
    return (10 - total % 10) % 10 == int(bare[10])


def _cn_id(bare: str) -> bool:
    """GB 11643: a date of birth, and ISO 7064's MOD 11-2."""
    if not _is_date(int(bare[6:10]), int(bare[10:12]), bare[12:14]) or not "1900" <= bare[6:10] <= "2099":
        return False
    total = sum(2 ** (17 - place) * int(digit) for place, digit in enumerate(bare[:17]))
    return "10X98765432"[total % 11] == bare[17]


def _in_aadhaar(bare: str) -> bool:
    """Verhoeff's check (1969), over the dihedral group of ten elements."""
    check = 0
    for place, character in enumerate(reversed(bare)):
        digit = int(character)
        for _ in range(place % 8):
            digit = _VERHOEFF[digit]
        check = _dihedral(check, digit)
    return check == 0


_VERHOEFF = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _dihedral(left: int, right: int) -> int:
    if left < 5:
        return (left + right) % 5 if right < 5 else (left + right - 5) % 5 + 5
    return (left - right) % 5 + 5 if right < 5 else (left - right) % 5


def _is_date(year: int, month: int, day: str) -> bool:
    try:
        date(year, month, int(day))
    except ValueError:
        return False
    return True


def _shape(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.,/+-]){pattern}(?![\w/+-]|[.,]\d)", re.ASCII)


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", re.IGNORECASE)


_QUICK = re.compile(r"\d[ .-]?\d[ .-]?\d|[A-Za-z]{6}\d\d[A-Za-z]\d\d")
_IDS = (
    _Id(_shape(r"\d{3}-\d{2}-\d{4}"), _us_ssn),
    _Id(_shape(r"\d{9}|\d{3} \d{2} \d{4}"), _us_ssn, _words(r"SSN|social security(?: number)?")),
    _Id(_shape(r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]"), _uk_nino),
    _Id(_shape(r"(?:\d{8}|[XYZ]-?\d{7})[- ]?[A-Z]"), _es_dni),
    _Id(_shape(r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}"), _fr_nir),
    _Id(_shape(r"[A-Z]{6}\d{2}[ABCDEHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"), _it_cf),
    _Id(
        _shape(r"[1-9]\d ?\d{3} ?\d{3} ?\d{3}"),
        _de_tax,
        _words(r"steuer-?id(?:entifikationsnummer|nr)?|steuerliche identifikationsnummer|idnr|tax id"),
    ),
    _Id(_shape(r"\d{9}"), _nl_bsn, _words(r"BSN|burgerservicenummer|sofinummer")),
    _Id(_shape(r"\d{11}"), _pl_pesel, _words(r"PESEL")),
    _Id(_shape(r"[1-9]\d{16}[\dXx]"), _cn_id),
    _Id(_shape(r"[2-9]\d{3} \d{4} \d{4}"), _in_aadhaar),
    _Id(_shape(r"[2-9]\d{11}"), _in_aadhaar, _words(r"aadhaar|aadhar|UIDAI?")),
)
