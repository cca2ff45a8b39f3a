"""Where things lie in a drawing: the time axis, and the rows of each timeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ppkit.timeline import Timeline
from ppkit.units import TimeUnit, unit_for

__all__ = ["MOST_MESSAGES", "Axis", "Band", "Line", "bands_below", "bands_by_rank", "drawn_at_once", "message_lines"]

MOST_MESSAGES, MOST_MESSAGES_AT_ONCE = 3000, 150


@dataclass(frozen=True)
class Axis:
    """The time axis: its span in seconds, its unit, and the decimals that matter."""

    span: float
    unit: TimeUnit

    @classmethod
    def of(cls, timelines: Sequence[Timeline]) -> Axis:
        """The axis that holds all of the timelines, each from its first start."""
        span = max(timeline.makespan for timeline in timelines)
        return cls(span, unit_for(span, timelines[0].notes.get("unit")))

    def value(self, seconds: float, extra: int = 2) -> float:
        """Seconds in the axis's unit, rounded to a hundred-thousandth of it, whole where it is whole."""
        rounded = round(seconds * self.unit.scale, self.decimals + extra)
        return int(rounded) if rounded == int(rounded) else rounded

    @property
    def decimals(self) -> int:
        """Decimals of a time in text: three or four significant digits of the span."""
        span = self.span * self.unit.scale
        return max(0, 3 - math.floor(math.log10(span))) if span else 0

    @staticmethod
    def row_height(n_rows: int, lanes: bool) -> float:
        """Pixels for a rank's row: less when there are many."""
        return max(22 if lanes else 16, min(60 if lanes else 42, 900 / n_rows))


@dataclass(frozen=True)
class Band:
    """The rows of one timeline, a unit high each, downwards from ``top``, every ``stride`` units."""

    timeline: Timeline
    top: float
    lanes: bool
    stride: float = 1.0
    gap: ClassVar[float] = 1.5

    @property
    def bottom(self) -> float:
        """Where the next row would begin."""
        return self.top + (self.timeline.n_ranks - 1) * self.stride + 1

    @property
    def thickness(self) -> float:
        """Height of a compute lane's bars."""
        return 0.58 if self.lanes else 0.8

    comm_thickness: ClassVar[float] = 0.28

    def compute(self, rank: int) -> float:
        """The middle of a rank's compute lane."""
        return round(self.top + rank * self.stride - (0.15 if self.lanes else 0), 2)

    def comm(self, rank: int) -> float:
        """The middle of a rank's communication lane, which lies under its compute lane."""
        return round(self.top + rank * self.stride + 0.32, 2)

    def message(self, sender: int, receiver: int) -> tuple[float, float]:
        """Where a message's line begins and ends: at the edges of the compute lanes that face each other."""
        half = self.thickness / 2 if receiver > sender else -self.thickness / 2
        return round(self.compute(sender) + half, 2), round(self.compute(receiver) - half, 2)


def bands_below(timelines: Sequence[Timeline], lanes: bool) -> list[Band]:
    """One band under the other."""
    bands: list[Band] = []
    for timeline in timelines:
        bands.append(Band(timeline, bands[-1].bottom + Band.gap if bands else 0.0, lanes))
    return bands


def bands_by_rank(timelines: Sequence[Timeline], lanes: bool) -> list[Band]:
    """The rows of one rank together, then those of the next."""
    return [Band(timeline, float(top), lanes, len(timelines) + 0.4) for top, timeline in enumerate(timelines)]


class Line(NamedTuple):
    """A message's line: when it left and arrived, in seconds from the first start, and the rows it joins."""

    sent: float
    begin: float
    arrived: float
    end: float


def message_lines(band: Band) -> list[Line]:
    """A line for each message, from where and when it left to where and when it arrived."""
    timeline = band.timeline
    lines = []
    for send, receive in timeline.messages:
        begin, end = band.message(send.rank, receive.rank)
        arrived = timeline.arrival(send, receive)
        lines.append(Line(send.start - timeline.start, begin, arrived - timeline.start, end))
    return lines


def drawn_at_once(lines: Sequence[Line], wanted: bool | str) -> bool:
    """Whether to draw the messages: as wanted, or for ``"auto"`` where they take time and are few enough to see."""
    if wanted == "auto":
        return len(lines) <= MOST_MESSAGES_AT_ONCE and any(line.arrived > line.sent for line in lines)
    return bool(wanted) and len(lines) <= MOST_MESSAGES
