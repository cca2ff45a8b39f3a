"""The critical path: a longest chain of events, each of which had to wait for the one before."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ppkit.event import COMM_KINDS, Event
from ppkit.waits import Wait, waits

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = ["critical_path"]


def critical_path(timeline: Timeline) -> tuple[Event, ...]:
    """The chain that explains the makespan, in order of time; see ``Timeline.critical_path``."""
    last = max(timeline.events, key=lambda e: (e.end, e.kind not in COMM_KINDS, e.start), default=None)
    return tuple(_backwards(timeline, last))[::-1] if last else ()


def _backwards(timeline: Timeline, event: Event | None) -> Iterator[Event]:
    ranks, seen = _Ranks(timeline), set[int]()
    while event is not None:
        seen.add(id(event))
        yield event
        link, event = ranks.before(event, seen)
        if link is not None and link.duration:
            yield link


_Cause = tuple["Event | None", "Event | None"]  # the communication that came before, and the computation before that


class _Ranks:
    """What each rank computed and waited in, by when it ended."""

    def __init__(self, timeline: Timeline) -> None:
        self.simulated = timeline.source == "simulated"
        self.eps = 1e-9 * timeline.makespan  # sums of floats differ by a rounding
        rows = [timeline.of_rank(rank) for rank in range(timeline.n_ranks)]
        self.work = [sorted((e for e in row if e.kind not in COMM_KINDS), key=_end) for row in rows]
        self.work_ends = [list(map(_end, row)) for row in self.work]
        self.position = {id(e): at for row in self.work for at, e in enumerate(row)}
        self.made = {(e.rank, e.stage, e.microbatch, e.kind): e for row in self.work for e in row}
        # Of a stage's gradients the last: what its all-reduce waits for.
        self.gradients = {(e.rank, e.stage): e for row in self.work for e in row if e.kind in ("B", "W")}
        self.waits = [sorted(row, key=lambda wait: wait.event.end) for row in waits(timeline)]
        self.wait_ends = [[wait.event.end for wait in row] for row in self.waits]

    def before(self, event: Event, seen: set[int]) -> _Cause:
        """Why ``event`` did not start earlier: through which communication, and after which computation."""
        own = self.computed(event, seen)
        free = own.end if own else float("-inf")
        if event.kind in COMM_KINDS:
            return self._before_communication(event, own, free, seen)
        # Several may have ended at once: the receive of its own value first.
        found = list(self.waited(event.rank, free, event.start))
        found.sort(key=lambda wait: (wait.event.stage, wait.event.microbatch) != (event.stage, event.microbatch))
        for wait in found:
            if cause := self._through(wait, free, seen):
                return cause
        return None, own

    def _through(self, wait: Wait, free: float, seen: set[int]) -> _Cause | None:
        """What ``wait`` waited for, if it is why a rank that was free then had to."""
        event, other = wait.event, wait.other
        if other is None:
            if event.kind == "COLLECTIVE" and not self.simulated:  # all were there: its own rank was the last
                return event, self.computed(event, seen)
            return None
        # A message already sent keeps a simulated rank waiting until it arrives. Of a measured one nobody knows when
        # it could have arrived, but only that it was not yet sent.
        late = other.end if self.simulated else other.start
        if late <= free + self.eps:
            return None
        link = other if event.kind == "RECV" else event
        return link, self.computed(other, seen)

    def _before_communication(self, event: Event, own: Event | None, free: float, seen: set[int]) -> _Cause:
        """The same for a communication that ends a timeline, or an all-reduce before another."""
        for wait in self.waited(event.rank, free, event.end):
            if wait.event is event and wait.other is not None:
                return None, self.computed(wait.other, seen)
            earlier = wait.event.end <= event.start + self.eps
            if earlier and event.kind == wait.event.kind == "COLLECTIVE" and wait.event.end > free + self.eps:
                return None, wait.event
        return None, own

    def computed(self, event: Event, seen: set[int]) -> Event | None:
        """The last computation of its rank before ``event``; of several that ended at once, the one it needs."""
        maker = self._maker(event)
        if maker is not None and abs(maker.end - event.start) <= self.eps and id(maker) not in seen:
            return maker
        index = bisect_right(self.work_ends[event.rank], event.start + self.eps)
        index = min(index, self.position.get(id(event), index))
        return next((e for e in reversed(self.work[event.rank][:index]) if id(e) not in seen), None)

    def _maker(self, event: Event) -> Event | None:
        """What makes the value that a message or an all-reduce carries, where the events say so."""
        if event.kind == "COLLECTIVE":
            return self.gradients.get((event.rank, event.stage))
        if event.kind != "SEND":
            return None
        makes = (self.made.get((event.rank, event.stage, event.microbatch, kind)) for kind in ("F", "B", "I"))
        return next((e for e in makes if e is not None and abs(e.end - event.start) <= self.eps), None)

    def waited(self, rank: int, after: float, by: float) -> Iterator[Wait]:
        """What ``rank`` waited in that ended after one time and by another, the last first."""
        index = bisect_right(self.wait_ends[rank], by + self.eps)
        while index and self.wait_ends[rank][index - 1] >= after - self.eps:
            index -= 1
            yield self.waits[rank][index]


def _end(event: Event) -> float:
    return event.end
