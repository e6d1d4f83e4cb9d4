"""Numbers as people read them."""

from datetime import datetime
from typing import Any


def count(number: float) -> str:
    """Return a count people can read: 16384 -> 16.4k, 209715200 -> 210M, 1.2e18 -> 1.2e+18."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if scale <= abs(number) < scale * 1e3:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}" if abs(number) >= 1e15 or number != int(number) else f"{int(number)}"


def duration(seconds: float) -> str:
    """Return seconds as 42 s, 3 min 20 s, 5.2 h or 3.1 days."""
    if seconds < 6000:
        return f"{seconds:.0f} s" if seconds < 100 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"


def cell_text(value: Any) -> str:
    """Return one value of a result as text: numbers to five digits, times in this time zone, NULL as such."""
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    return "NULL" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
