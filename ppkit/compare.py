"""Two timelines side by side, operation by operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from ppkit.event import Event
from ppkit.timeline import Timeline
from ppkit.units import duration, number, percent

__all__ = ["Comparison", "Row", "compare"]

Key: TypeAlias = "tuple[int, str, int | None, int | None, int]"


@dataclass(frozen=True)
class Row:
    """One operation in both timelines.

    Args:
        occurrence: 0 for the first operation of this rank, kind, stage and micro-batch, 1 for the second, ...
        first: the event in the timeline that was asked.
        second: the event in the other one.
        start_difference: seconds by which it starts later in the second, both counted from their first start.
    """

    rank: int
    kind: str
    stage: int | None
    microbatch: int | None
    occurrence: int
    first: Event
    second: Event
    start_difference: float

    @property
    def duration_ratio(self) -> float:
        """Its duration in the second timeline ÷ in the first; infinity (or 1) where that is zero."""
        if self.first.duration:
            return self.second.duration / self.first.duration
        return float("inf") if self.second.duration else 1.0


@dataclass(frozen=True, repr=False)
class Comparison:
    """What ``first.compare(second)`` found.

    Args:
        rows: the operations that both have, by start in the first.
        missing: events of the first that the second lacks.
        extra: events of the second that the first lacks.
    """

    first: Timeline
    second: Timeline
    rows: tuple[Row, ...]
    missing: tuple[Event, ...]
    extra: tuple[Event, ...]

    @property
    def makespan_ratio(self) -> float:
        """Makespan of the second ÷ that of the first; infinity (or 1) where the first has none."""
        if self.first.makespan:
            return self.second.makespan / self.first.makespan
        return float("inf") if self.second.makespan else 1.0

    @property
    def reordered_ranks(self) -> tuple[int, ...]:
        """Ranks that run the operations both have in another order on their compute lane."""
        return tuple(rank for rank in range(self.first.n_ranks) if self._reordered(rank))

    def _reordered(self, rank: int) -> bool:
        rows = [row for row in self.rows if row.rank == rank and row.first.lane == "compute"]
        starts = [row.second.start for row in rows]
        return starts != sorted(starts)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__

    def _lines(self) -> Iterator[str]:
        yield f"first:   {self.first.title}"
        yield f"second:  {self.second.title}"
        change = self.makespan_ratio - 1
        longer = f"{percent(abs(change))} {'longer' if change > 0 else 'shorter'}" if change else "the same"
        yield f"makespan second ÷ first: {number(self.makespan_ratio, 4)} ({longer})"
        counts = f"missing from the second: {len(self.missing)}; extra in it: {len(self.extra)}"
        yield f"operations in both: {len(self.rows)}; {counts}"
        if self.rows:
            yield from _table(self.rows, self.first.notes.get("unit"))
        if self.reordered_ranks:
            yield f"order differs on rank {', '.join(map(str, self.reordered_ranks))}"
        for word, events in (("missing", self.missing), ("extra", self.extra)):
            if events:
                yield f"{word}: {_few(events)}"


def compare(first: Timeline, second: Timeline) -> Comparison:
    """Pair the events of two timelines by rank, kind, stage, micro-batch and occurrence."""
    ours, theirs = _keyed(first), _keyed(second)
    rows = tuple(
        Row(*key, event, theirs[key], (theirs[key].start - second.start) - (event.start - first.start))
        for key, event in ours.items()
        if key in theirs
    )
    missing = tuple(event for key, event in ours.items() if key not in theirs)
    extra = tuple(event for key, event in theirs.items() if key not in ours)
    return Comparison(first, second, rows, missing, extra)


def _keyed(timeline: Timeline) -> dict[Key, Event]:
    seen: Counter[tuple[int, str, int | None, int | None]] = Counter()
    found: dict[Key, Event] = {}
    for event in timeline.events:
        name = (event.rank, event.kind, event.stage, event.microbatch)
        key = (*name, seen[name])
        found[key] = event
        seen[name] += 1
    return found


def _table(rows: tuple[Row, ...], unit: str | None) -> Iterator[str]:
    heads = f"{'median, first':>14} {'median, second':>15} {'ratio':>7} {'most shifted':>13}"
    yield f"{'kind':<10} {'count':>6} {heads}"
    for kind in dict.fromkeys(row.kind for row in rows):
        same = [row for row in rows if row.kind == kind]
        first = median(row.first.duration for row in same)
        second = median(row.second.duration for row in same)
        ratio = number(second / first) if first else "-"
        shift = max((row.start_difference for row in same), key=abs)
        shifted = f"{'+' if shift > 0 else ''}{duration(shift, unit)}"
        medians = f"{duration(first, unit):>14} {duration(second, unit):>15} {ratio:>7}"
        yield f"{kind:<10} {len(same):>6} {medians} {shifted:>13}"


def _few(events: tuple[Event, ...], limit: int = 5) -> str:
    text = ", ".join(f"rank {event.rank} {event.label}" for event in events[:limit])
    return text + (f" and {len(events) - limit} more" if len(events) > limit else "")
