"""Numbers as people read them, the same in the terminal and on the page."""

import math

from decant.stats import Interval

UNKNOWN = "–"
MINUS = "−"

_UNITS = ("B", "kB", "MB", "GB", "TB")


def percent(share: float) -> str:
    """A share as a percentage: 0.9451 is `94.5%`."""
    return f"{100 * share:.1f}%"


def percent_range(interval: Interval) -> str:
    """An interval of shares in percent: `92.1 to 96.2`."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def points(share: float) -> str:
    """A signed difference of shares in percentage points: `−2.5`."""
    text = f"{abs(100 * share):.1f}"
    return text if text == "0.0" else f"{MINUS if share < 0 else '+'}{text}"


def points_range(interval: Interval) -> str:
    """An interval of differences in percentage points: `−4.0 to −1.1`."""
    return f"{points(interval.low)} to {points(interval.high)}"


def p_value(p: float) -> str:
    """A p-value: `p 0.004`."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def significant(value: float, digits: int = 3) -> str:
    """A positive number with so many significant digits, never in exponents: `0.00314`, `1,240`."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def usd(value: float) -> str:
    """$ with three significant digits: `$0.00314`."""
    return f"${significant(value)}"


def size(size_bytes: int) -> str:
    """A size in decimal units: `4.9 MB`."""
    value, unit = float(size_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{significant(value)} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """A duration with three significant digits in the unit that fits: `12.3 ms`, `1.23 s`."""
    return f"{significant(1000 * seconds)} ms" if seconds < 0.9995 else f"{significant(seconds)} s"


def short_duration(seconds: float) -> str:
    """A round duration for an axis: `200 ms`, `5 s`."""
    return f"{1000 * seconds:g} ms" if seconds < 0.9995 else f"{seconds:g} s"


def milliseconds(seconds: float) -> str:
    """Milliseconds with three significant digits, hundredths at most, without the unit."""
    value = 1000 * seconds
    return f"{value:.2f}" if value < 1 else significant(value)


def requests(count: float) -> str:
    """A number of requests, rounded up to a whole one: `12,401`."""
    return f"{math.ceil(count):,}"


def ratio(value: float) -> str:
    """How many times: `4.8x`."""
    return f"{significant(value, 2)}x"
