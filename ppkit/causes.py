"""Why ranks idle: every second of a timeline in which a rank computes nothing, by its cause."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from ppkit.metrics import busy_spans
from ppkit.units import duration
from ppkit.waits import Wait, waits

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = ["IdleCauses", "IdleTable", "idle_causes", "split"]

_DUST = 1e-12  # of the makespan; sums of floating-point durations differ by less


class IdleCauses(NamedTuple):
    """Seconds in which one rank computes nothing, by cause; together they are its idle time.

    Args:
        fill: before its first computation: the pipeline is filling.
        waiting: between two computations, for another rank that isn't there yet.
        communication: for a message or a collective under way; a collective after the last computation too.
        overhead: between two computations, neither waiting nor communicating: what the program itself takes.
            A simulation has none.
        drain: after its last computation: the pipeline is draining.
    """

    fill: float = 0.0
    waiting: float = 0.0
    communication: float = 0.0
    overhead: float = 0.0
    drain: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all causes: the rank's idle time."""
        return sum(self)


class IdleTable(tuple[IdleCauses, ...]):
    """An `IdleCauses` for each rank, which shows itself as a table."""

    unit: str | None

    def __new__(cls, rows: Iterable[IdleCauses], unit: str | None = None) -> IdleTable:
        """Make the table.

        Args:
            rows: one for each rank.
            unit: the name of the timeline's unit, if it has no seconds.
        """
        table = super().__new__(cls, rows)
        table.unit = unit
        return table

    @property
    def total(self) -> IdleCauses:
        """Each cause summed over the ranks."""
        return IdleCauses(*map(sum, zip(*self, strict=True)))

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{'idle':<10}" + "".join(f"{name:>15}" for name in (*IdleCauses._fields, "total"))
        names = (*(f"rank {rank}" for rank in range(len(self))), "all ranks")
        for name, causes in zip(names, (*self, self.total), strict=True):
            yield f"{name:<10}" + "".join(f"{duration(value, self.unit):>15}" for value in (*causes, causes.total))


def idle_causes(timeline: Timeline) -> IdleTable:
    """The causes of every rank's idle time; see ``Timeline.idle_causes``."""
    simulated = timeline.source == "simulated"
    known = waits(timeline)
    # Without any message in it, nothing tells waiting from overhead: a gap in a pipeline mostly waits.
    unexplained = "waiting" if simulated or not any(known) else "overhead"
    rows = (_of_rank(timeline, rank, known[rank], unexplained) for rank in range(timeline.n_ranks))
    return IdleTable(rows, timeline.notes.get("unit"))


def _of_rank(timeline: Timeline, rank: int, waited: Sequence[Wait], unexplained: str) -> IdleCauses:
    spans = busy_spans(timeline.of_rank(rank))
    if not spans:
        return IdleCauses(fill=timeline.makespan)
    waiting = communication = left = 0.0
    longest = max((wait.event.duration for wait in waited), default=0.0)
    starts = [wait.event.start for wait in waited]
    for (_, start), (end, _) in pairwise(spans):
        if end - start < _DUST * timeline.makespan:
            continue  # rounding: the two meet
        first = bisect_left(starts, start - longest)
        one, other, rest = split(start, end, waited[first : bisect_left(starts, end)])
        waiting, communication, left = waiting + one, communication + other, left + rest
    # After the last computation only collectives count: a rank waits for nobody else any more.
    ended = spans[-1][1]
    last = [wait for wait in waited if wait.event.kind == "COLLECTIVE" and wait.event.end > ended]
    late, collective, drain = split(ended, timeline.end, last)
    causes = IdleCauses(spans[0][0] - timeline.start, waiting + late, communication + collective, 0.0, drain)
    return causes._replace(**{unexplained: getattr(causes, unexplained) + left})


def split(start: float, end: float, waited: Sequence[Wait]) -> tuple[float, float, float]:
    """Seconds from ``start`` to ``end`` that wait for another rank, that communicate, and that do neither."""
    waiting = communication = left = 0.0
    at = start
    for wait in waited:
        begin, stop = max(at, wait.event.start), min(end, wait.event.end)
        if stop > begin:
            ready = min(max(wait.ready, begin), stop)
            waiting, communication, left = waiting + (ready - begin), communication + (stop - ready), left + begin - at
            at = stop
    return waiting, communication, left + (end - at)
