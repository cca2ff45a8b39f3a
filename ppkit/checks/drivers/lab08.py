"""Lab 08 on a rank: calls the learner's functions of numbers, and notes what they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ppkit.checks.drivers.lab01 import number, substitute
from ppkit.checks.reference import choosing as reference

__all__ = ["calls", "calls_with_times"]

Function = Callable[..., Any]


def calls(function: Function, cases: Sequence[tuple[Any, ...]]) -> list[float | str | None]:
    """Call the learner's function for every case.

    Returns:
        a number for each; None for nothing, words for anything else.
    """
    return [number(function(*case)) for case in cases]


def calls_with_times(function: Function, cases: Sequence[tuple[Any, ...]]) -> list[float | str | None]:
    """The same; its `pipeline_seconds` and `all_reduce_seconds` are ppkit's."""
    substitute(function, {name: getattr(reference, name) for name in reference.__all__})
    return calls(function, cases)
