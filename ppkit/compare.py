"""Two timelines side by side, operation by operation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

from ppkit.difference import Causes, causes
from ppkit.errors import TimelineError
from ppkit.event import COMM_KINDS, Event
from ppkit.timeline import Timeline
from ppkit.units import duration, kind_of, number, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Comparison", "Row", "compare"]

# Rank, kind, stage, micro-batch, which one of these; last, for communication that names no stage, its peer.
Key: TypeAlias = "tuple[int, str, int | None, int | None, int, int | None]"


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

    @property
    def duration_difference(self) -> float:
        """Seconds by which it takes longer in the second timeline."""
        return self.second.duration - self.first.duration


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
    def makespan_difference(self) -> float:
        """Seconds by which the makespan of the second is longer."""
        return self.second.makespan - self.first.makespan

    @property
    def _same_makespan(self) -> bool:
        """But for rounding."""
        return math.isclose(self.first.makespan, self.second.makespan, rel_tol=1e-9)

    @property
    def causes(self) -> Causes:
        """What the difference of the makespans is made of, in seconds; the parts add up to it."""
        return self._causes[0]

    @cached_property
    def _causes(self) -> tuple[Causes, dict[str, float]]:
        return causes(self.first, self.second, {id(row.second): row.first for row in self.rows})

    def gantt(self, **options: Any) -> go.Figure:
        """Both timelines on one axis, the two rows of each rank together; options as ``ppkit.gantt`` takes them."""
        from ppkit.draw import gantt

        return gantt(self.first, self.second, **{"by_rank": True} | options)

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

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from ppkit.draw import mimebundle

        return {**mimebundle(self.first, self.second, by_rank=True), "text/plain": str(self)}

    def _lines(self) -> Iterator[str]:
        yield f"first:   {self.first.title}"
        yield f"second:  {self.second.title}"
        change = 0.0 if self._same_makespan else self.makespan_ratio - 1
        longer = f"{percent(abs(change))} {'longer' if change > 0 else 'shorter'}" if change else "the same"
        yield f"makespan second ÷ first: {number(self.makespan_ratio, 4)} ({longer})"
        counts = f"missing from the second: {len(self.missing)}; extra in it: {len(self.extra)}"
        yield f"operations in both: {len(self.rows)}; {counts}"
        if self.rows:
            unit = self.first.notes.get("unit")
            yield from _table(self.rows, unit)
            if not self._same_makespan:
                yield "why the second is longer or shorter, along its critical path:"
                yield from self.causes.lines(self._causes[1], unit)
            yield from _most_changed(self.rows, unit)
        if self.reordered_ranks:
            yield f"order differs on rank {', '.join(map(str, self.reordered_ranks))}"
        for word, events in (("missing", self.missing), ("extra", self.extra)):
            if events:
                yield f"{word}: {_few(events)}"


def compare(first: Timeline, second: Timeline) -> Comparison:
    """Pair the events of two timelines by rank, kind, stage, micro-batch and occurrence.

    Where the communication of one of them names no stage, as that of plain PyTorch does, messages pair by their
    rank, peer and order, and collectives by their rank and order.

    Raises:
        TimelineError: the second is no timeline, or they have different units.
    """
    given: Any = second
    if not isinstance(given, Timeline):
        raise TimelineError(
            f"compare() takes a Timeline, such as simulate(schedule) or run.timeline; got {kind_of(given)}"
        )
    units = [timeline.notes.get("unit", "seconds") for timeline in (first, second)]
    if units[0] != units[1]:
        raise TimelineError(
            f"compare(): the first timeline is in {units[0]}, the second in {units[1]}; compare two in the same unit",
            values={"units": units},
        )
    by_order = any(e.stage is None and e.kind in COMM_KINDS for timeline in (first, second) for e in timeline)
    ours, theirs = _keyed(first, by_order), _keyed(second, by_order)
    rows = tuple(
        Row(*key[:5], event, theirs[key], (theirs[key].start - second.start) - (event.start - first.start))
        for key, event in ours.items()
        if key in theirs
    )
    missing = tuple(event for key, event in ours.items() if key not in theirs)
    extra = tuple(event for key, event in theirs.items() if key not in ours)
    return Comparison(first, second, rows, missing, extra)


def _keyed(timeline: Timeline, by_order: bool) -> dict[Key, Event]:
    seen: Counter[tuple[int, str, int | None, int | None, int | None]] = Counter()
    found: dict[Key, Event] = {}
    for event in timeline.events:
        rank, kind, stage, part, peer = event.rank, event.kind, event.stage, event.microbatch, event.peer
        if by_order and kind in COMM_KINDS:
            stage = part = None
        else:
            peer = None
        name = (rank, kind, stage, part, peer)
        found[rank, kind, stage, part, seen[name], peer] = event
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


def _most_changed(rows: tuple[Row, ...], unit: str | None, most: int = 3) -> Iterator[str]:
    """The computations whose duration differs most, where they do."""
    works = [row for row in rows if row.first.lane == "compute"]
    changed = [row for row in works if not math.isclose(row.first.duration, row.second.duration, rel_tol=1e-9)]
    changed.sort(key=lambda row: -abs(row.duration_difference))
    if changed:
        texts = (
            f"rank {row.rank} {row.first.label} {duration(row.first.duration, unit)} → "
            f"{duration(row.second.duration, unit)}"
            for row in changed[:most]
        )
        yield f"most changed: {', '.join(texts)}"


def _few(events: tuple[Event, ...], limit: int = 5) -> str:
    """Computations one by one, the others counted by name."""
    work = [event for event in events if event.lane == "compute"]
    others = Counter(event.name or event.kind.lower() for event in events if event.lane == "comm")
    parts = [f"rank {event.rank} {event.label}" for event in work[:limit]]
    parts += [f"{len(work) - limit} more computations"] if len(work) > limit else []
    return ", ".join(parts + [f"{count} × {name}" for name, count in others.items()])
