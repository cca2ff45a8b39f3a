"""What makes one timeline longer than another: the difference of their makespans, by cause."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ppkit.causes import split
from ppkit.event import COMM_KINDS, Event
from ppkit.units import duration
from ppkit.waits import waits

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = ["Causes", "causes"]


class Causes(NamedTuple):
    """Seconds by which the second timeline is longer than the first, by cause; together the whole difference.

    All but the last are found along the second's critical path, the chain that makes it as long as it is.

    Args:
        operations: its computations take longer (below 0: shorter) than in the first.
        unpredicted: its computations that the first has not, such as an optimizer step.
        communication: its messages and collectives take longer than in the first.
        waiting: it waits for a rank of which nothing says what it did meanwhile.
        start: its first event starts later than the timeline does.
        overhead: time between its events: what the program itself takes.
        slack: how much shorter than the first's makespan the same chain is in the first, never above 0: there
            another chain was the longest, so that much of all the rest was still free.
    """

    operations: float = 0.0
    unpredicted: float = 0.0
    communication: float = 0.0
    waiting: float = 0.0
    start: float = 0.0
    overhead: float = 0.0
    slack: float = 0.0

    @property
    def total(self) -> float:
        """The difference of the makespans, in seconds."""
        return sum(self)

    def lines(self, by_kind: Mapping[str, float], unit: str | None = None) -> Iterator[str]:
        """The causes as a table, the biggest first."""
        words = {
            "operations": "operations take longer" if self.operations >= 0 else "operations take less",
            "unpredicted": "operations that the first has not",
            "communication": "communication",
            "waiting": "waiting for other ranks",
            "start": "late start",
            "overhead": "overhead between operations",
            "slack": "slack of this chain in the first",
        }
        dust = 1e-9 * max(map(abs, self))  # rounding
        kinds = [f"{kind} {_signed(value, unit)}" for kind, value in by_kind.items() if abs(value) > dust]
        for name, seconds in sorted(self._asdict().items(), key=lambda item: -abs(item[1])):
            if abs(seconds) > dust:
                yield f"  {words[name]:<34}{_signed(seconds, unit):>12}" + (
                    f"  ({', '.join(kinds)})" if name == "operations" and len(by_kind) > 1 else ""
                )
        yield f"  {'in all':<34}{_signed(self.total, unit):>12}"


def _signed(seconds: float, unit: str | None) -> str:
    return f"{'+' if seconds > 0 else ''}{duration(seconds, unit)}"


def causes(first: Timeline, second: Timeline, partners: Mapping[int, Event]) -> tuple[Causes, dict[str, float]]:
    """The causes, and the part of ``operations`` of each kind.

    Args:
        first: the prediction.
        second: what came instead.
        partners: for the id of an event of the second, the same event of the first.
    """
    found: dict[str, float] = defaultdict(float)
    kinds: dict[str, float] = defaultdict(float)
    chain = 0.0  # seconds of the same events in the first
    reached, waited = second.start, None
    for event in second.critical_path():
        if event.start > reached:
            if reached == second.start:
                found["start"] += event.start - reached
            else:
                waited = waits(second) if waited is None else waited
                late, under_way, left = split(reached, event.start, waited[event.rank])
                for name, seconds in (("waiting", late), ("communication", under_way), ("overhead", left)):
                    found[name] += seconds
            reached = event.start
        lasts = max(0.0, event.end - reached)
        reached = max(reached, event.end)
        partner = partners.get(id(event))
        predicted = partner.duration if partner else 0.0
        chain += predicted
        if event.kind in COMM_KINDS:
            found["communication"] += lasts - predicted
        elif partner is None:
            found["unpredicted"] += lasts
        else:
            found["operations"] += lasts - predicted
            kinds[event.kind] += lasts - predicted
    found["slack"] = chain - first.makespan
    return Causes(**found), dict(kinds)
