"""What users hand over as numbers and lists, NumPy's and PyTorch's included, as Python's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from operator import index
from typing import Any

__all__ = ["listed", "real", "seed_of", "whole"]


def real(value: Any) -> float:
    """``value`` as a float; NaN if it is no number, such as a text, a truth value, or one too large for a float."""
    try:
        return math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def whole(value: Any) -> int | None:
    """``value`` as an int; None if it is no whole number, such as a text, a truth value, or 2.0."""
    try:
        return None if isinstance(value, bool) else int(index(value))
    except TypeError:
        return None


def seed_of(value: Any) -> int | None:
    """``value`` as a seed of torch's random numbers; None if it is no whole number of 64 bits."""
    number = whole(value)
    return number if number is not None and -(2**63) <= number < 2**64 else None


def listed(value: Any) -> list[Any] | None:
    """What ``value`` holds in an order, be it a list, an array or a generator; None if it is nothing like that."""
    try:
        return None if isinstance(value, (str, bytes, Mapping, Set)) else list(value)
    except TypeError:
        return None
