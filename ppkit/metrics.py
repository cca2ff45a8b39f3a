"""What a timeline measures on one rank: the time it computes, and the forward results it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ppkit.event import COMM_KINDS, Event

__all__ = ["busy_seconds", "busy_spans", "held", "peak_in_flight"]


def busy_seconds(row: Iterable[Event]) -> float:
    """Seconds covered by the compute-lane events of one rank, which come by start; overlaps count once."""
    total, reached = 0.0, float("-inf")
    for event in row:
        if event.end > reached and event.kind not in COMM_KINDS:
            total += event.end - max(event.start, reached)
            reached = event.end
    return total


def busy_spans(row: Iterable[Event]) -> list[tuple[float, float]]:
    """The stretches, as (start, end) in order, in which a rank, whose events come by start, computes without a gap."""
    spans: list[tuple[float, float]] = []
    for event in row:
        if event.kind in COMM_KINDS:
            continue
        if spans and event.start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], event.end))
        else:
            spans.append((event.start, event.end))
    return spans


def peak_in_flight(row: Sequence[Event]) -> int:
    """The most forward results that one rank holds at once; see ``Timeline.peak_in_flight``."""
    # A release sorts before a forward at the same time.
    changes = sorted(change for event, end in held(row) for change in ((event.start, 1), (end, -1)))
    peak = count = 0
    for _, change in changes:
        count += change
        peak = max(peak, count)
    return peak


def held(row: Iterable[Event]) -> Iterator[tuple[Event, float]]:
    """Each forward of one rank, and when its result was freed; infinity for one that never was."""
    waiting: dict[tuple[int | None, int | None], list[Event]] = {}
    for event in row:
        same = waiting.setdefault((event.stage, event.microbatch), [])
        if event.kind == "F":
            same.append(event)
        # The latest forward: an earlier one of the same name that is still here never had a backward.
        elif event.kind in ("B", "I") and same:
            forward = same.pop()
            yield forward, event.end if forward.held_until is None else forward.held_until
    for same in waiting.values():
        for forward in same:
            yield forward, math.inf if forward.held_until is None else forward.held_until
