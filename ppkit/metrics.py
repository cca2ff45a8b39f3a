"""What a timeline measures on one rank: the time it computes, and the forward results it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ppkit.event import COMM_KINDS, Event

__all__ = ["busy_seconds", "peak_in_flight"]


def busy_seconds(row: Iterable[Event]) -> float:
    """Seconds covered by the compute-lane events of one rank, which come by start; overlaps count once."""
    total, reached = 0.0, float("-inf")
    for event in row:
        if event.end > reached and event.kind not in COMM_KINDS:
            total += event.end - max(event.start, reached)
            reached = event.end
    return total


def peak_in_flight(row: Sequence[Event]) -> int:
    """The most forward results that one rank holds at once; see ``Timeline.peak_in_flight``."""
    # A release sorts before a forward at the same time.
    changes = sorted([(event.start, 1) for event in row if event.kind == "F"] + [(end, -1) for end in _releases(row)])
    peak = held = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def _releases(row: Iterable[Event]) -> list[float]:
    freed: list[float] = []
    waiting: dict[tuple[int | None, int | None], list[Event]] = {}
    for event in row:
        same = waiting.setdefault((event.stage, event.microbatch), [])
        if event.kind == "F":
            same.append(event)
            if event.held_until is not None:
                freed.append(event.held_until)
        # The latest forward: an earlier one of the same name that is still here never had a backward.
        elif event.kind in ("B", "I") and same and same.pop().held_until is None:
            freed.append(event.end)
    return freed
