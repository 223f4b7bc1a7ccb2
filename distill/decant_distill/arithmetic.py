"""Numbers and sums in running text, computed again exactly, in fractions."""

import re
from fractions import Fraction

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SIGNED = rf"[-−]?[$€£]?{_NUMBER}%?"
_OPERATOR = r"[-−–+*/×·÷]|(?<=[\d% ])x(?=[\s\d(])"
# Every repetition is bounded: the text is a model's, and may be anything.
_EXPRESSION = (
    rf"[-−(]{{0,8}}{_SIGNED}(?:[)\s]{{0,6}}(?:{_OPERATOR})[(\s]{{0,6}}{_SIGNED}){{1,30}}[)\s]{{0,6}}"
)
_UNFINISHED = re.compile(r"(?:[-−–+*/×·÷^]|\b(?:plus|minus|times|by|of|over))\s*\Z")
_EQUATION = re.compile(
    rf"(?<![\w.,]){_EXPRESSION}(?:=|≈)\s*({_SIGNED})(?![\w%]|[.,]\d|\s*(?:{_OPERATOR})\s*\d)"
)
_TOKEN = re.compile(rf"{_NUMBER}%?|[-+*/()]")
_ALONE = re.compile(rf"([-−+]?)\s*[$€£]?\s*({_NUMBER})(?:\s*/\s*({_NUMBER}))?(\s*%)?")
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "÷": "/", "$": "", "€": "", "£": ""}
)


def number_in(text: str) -> Fraction | None:
    """The one number in a text, thousands separators and units aside; None for none or several."""
    found = _ALONE.findall(text)
    if len(found) != 1:
        return None
    sign, numerator, denominator, percent = found[0]
    value = _value(numerator)
    if denominator:
        divisor = _value(denominator)
        if not divisor:
            return None
        value /= divisor
    value = value / 100 if percent else value
    return -value if sign in ("-", "−") and sign else value


def wrong_equation(text: str) -> tuple[int, str | None]:
    """How many sums a text writes out, and the first that is wrong, with what it comes to.

    A result that was rounded counts as right to the places it shows. What is no plain sum is left out.
    """
    count = 0
    for equation in _EQUATION.finditer(text):
        left, _, _ = re.split(r"(=|≈)", equation[0], maxsplit=1)
        # What stands behind an operator is the end of a longer sum, with letters or too long to be read.
        before = text[max(0, equation.start() - 12) : equation.start()]
        value = None if _UNFINISHED.search(before) else _evaluate(left)
        if value is None:
            continue
        count += 1
        claimed = _claimed(equation[1])
        if abs(value - claimed) > _rounding(equation[1]):
            shown = f"{float(value):.10g}"
            return count, f"{' '.join(equation[0].split())}: it is {shown}"
    return count, None


def _claimed(text: str) -> Fraction:
    bare = text.translate(_SIGNS).strip()
    value = _value(bare.lstrip("-"))
    return -value if bare.startswith("-") else value


def _rounding(text: str) -> Fraction:
    places = len(text.rstrip("%").partition(".")[2])
    half = Fraction(1, 2 * 10**places) if places else Fraction(0)
    return half / 100 if text.endswith("%") else half


def _value(text: str) -> Fraction:
    bare = text.replace(",", "")
    return Fraction(bare.removesuffix("%")) / (100 if bare.endswith("%") else 1)


def _evaluate(text: str) -> Fraction | None:
    """The value of a sum by the usual precedence; None for what is none, such as an unclosed bracket."""
    tokens = _TOKEN.findall(text.translate(_SIGNS))
    try:
        value, rest = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if rest else value


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _product(tokens)
    while tokens and tokens[0] in "+-":
        term, rest = _product(tokens[1:])
        value = value + term if tokens[0] == "+" else value - term
        tokens = rest
    return value, tokens


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _factor(tokens)
    while tokens and tokens[0] in "*/":
        factor, rest = _factor(tokens[1:])
        value = value * factor if tokens[0] == "*" else value / factor
        tokens = rest
    return value, tokens


def _factor(tokens: list[str]) -> tuple[Fraction, list[str]]:
    head, *rest = tokens
    if head == "-":
        value, rest = _factor(rest)
        return -value, rest
    if head == "(":
        value, rest = _sum(rest)
        if rest[0] != ")":
            raise ValueError("a bracket that is not closed")
        return value, rest[1:]
    return _value(head), rest
