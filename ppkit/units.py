"""Values as people read them: durations, sizes, fractions and kinds in short text."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["TimeUnit", "bytes_text", "duration", "kind_of", "number", "percent", "unit_for"]


class TimeUnit(NamedTuple):
    """A unit to show times in: what to multiply seconds by, and what to write after the number."""

    scale: float
    symbol: str


_UNITS = (TimeUnit(1.0, "s"), TimeUnit(1e3, "ms"), TimeUnit(1e6, "µs"), TimeUnit(1e9, "ns"))


def unit_for(seconds: float, name: str | None = None) -> TimeUnit:
    """The unit in which a span of ``seconds`` reads best.

    Args:
        seconds: the longest span to show.
        name: a unit of the caller's own, such as ``"time units"``: numbers then stay as they are.
    """
    if name:
        return TimeUnit(1.0, name)
    for unit in _UNITS:
        if abs(seconds) * unit.scale >= 0.9995:
            return unit
    return _UNITS[-1] if seconds else _UNITS[0]


def number(value: float, digits: int = 3) -> str:
    """``value`` to ``digits`` significant digits, whole numbers whole, no trailing zeros, no exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(decimals, 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float, name: str | None = None) -> str:
    """A duration with its unit, such as ``"20.1 ms"``."""
    unit = unit_for(seconds, name)
    return f"{number(seconds * unit.scale)} {unit.symbol}"


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal, such as ``"27.3 %"``."""
    return f"{100 * fraction:.1f} %"


def bytes_text(count: float) -> str:
    """A number of bytes in decimal units, such as ``"1.05 MB"``."""
    for scale, symbol in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{number(count / scale)} {symbol}"
    return f"{number(count)} B"


def kind_of(value: object) -> str:
    """The type of ``value`` in a sentence, such as ``"a list"`` or ``"an int"``."""
    name = type(value).__name__
    return f"a{'n' * name.lower().startswith(tuple('aeio'))} {name}"
