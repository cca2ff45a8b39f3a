"""The parts of a static picture: rows, bars, messages, memory curves, the time axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from ppkit.draw import style
from ppkit.draw.curves import steps
from ppkit.draw.geometry import Axis, Band, Line
from ppkit.draw.style import Mark
from ppkit.units import bytes_text, number

if TYPE_CHECKING:
    from ppkit.memory import Memory

__all__ = ["LEFT", "RIGHT", "WIDTH", "Picture", "curves", "place", "short", "ticks"]

Groups: TypeAlias = "Mapping[tuple[str, int], list[Mark]]"

WIDTH, LEFT, RIGHT = 900, 64, 20
_DASHES = {"solid": "", "dash": "6 3", "dot": "1.5 2.5", "dashdot": "7 2.5 1.5 2.5"}


def place(axis: Axis, seconds: float) -> float:
    """Where a time lies, in pixels from the left."""
    return LEFT + (WIDTH - LEFT - RIGHT) * (seconds / axis.span if axis.span else 0)


class Picture:
    """Where a time and a rank of one timeline lie on the page, and the parts drawn there."""

    def __init__(self, axis: Axis, band: Band, top: float, row: float, tag: str = "") -> None:
        self.axis, self.band, self.top, self.row, self.tag = axis, band, top, row, tag
        self.bottom = top + row * band.bottom

    def x(self, seconds: float) -> float:
        """Where a time lies."""
        return place(self.axis, seconds)

    def y(self, row: float) -> float:
        """Where the middle of a row lies."""
        return self.top + self.row * (row + 0.5)

    def grid(self) -> Iterator[str]:
        """Upright lines that carry the ticks of the axis up to a band far from it."""
        lines = "".join(f"M{short(x)} {short(self.top)}V{short(self.bottom)}" for x, _ in tick_places(self.axis))
        yield f'<path d="{lines}" stroke="{style.GRID}" stroke-width=".8"/>'

    def rows(self) -> Iterator[str]:
        """The names of the ranks and the idle background, as long as the timeline."""
        thick = self.band.thickness * self.row
        for rank in range(self.band.timeline.n_ranks):
            middle = self.y(self.band.compute(rank))
            role = style.row_role(self.band.timeline, rank, self.tag)
            at = f'x="{LEFT - 8}" y="{short(middle - 2 if role else middle + 4)}" text-anchor="end"'
            yield f"<text {at}>rank {rank}</text>"
            if role:
                at = f'x="{LEFT - 8}" y="{short(middle + 10)}" text-anchor="end" font-size="10"'
                yield f"<text {at}>{escape(role)}</text>"
            width = self.x(self.band.timeline.makespan) - LEFT
            yield (
                f'<rect x="{LEFT}" y="{short(middle - thick / 2)}" width="{short(width)}" height="{short(thick)}" '
                f'fill="{style.IDLE}"/>'
            )

    def bars(self, groups: Groups, labels: bool) -> Iterator[str]:
        """The bars, a path for each group, and the texts that fit on them."""
        for (group, chunk), marks in groups.items():
            colour = style.colour(group, chunk)
            yield f'<path fill="{colour}" stroke="{style.PAPER}" stroke-width=".8" d="{self._path(marks)}"/>'
            if labels and (texts := "".join(self._labels(marks))):
                size = 9 if marks[0].event.lane == "comm" else 11
                yield f'<g fill="{style.ink(colour)}" font-size="{size}" text-anchor="middle">{texts}</g>'

    def critical(self) -> Iterator[str]:
        """An edge around what is on the critical path."""
        for mark in style.critical_marks(self.band.timeline, self.band.lanes):
            yield (f'<path fill="none" stroke="{style.CRITICAL}" stroke-width="2" d="{self._path([mark])}"/>')

    def _path(self, marks: Sequence[Mark]) -> str:
        comm = marks[0].event.lane == "comm"
        thick = (Band.comm_thickness if comm else self.band.thickness) * self.row
        corners = []
        for mark in marks:
            x, y = self.x(mark.start), self._middle(mark) - thick / 2
            corners.append(f"M{short(x)} {short(y)}h{short(self.x(mark.end) - x)}v{short(thick)}H{short(x)}z")
        return "".join(corners)

    def _middle(self, mark: Mark) -> float:
        rank = mark.event.rank
        return self.y(self.band.comm(rank) if mark.event.lane == "comm" else self.band.compute(rank))

    def _labels(self, marks: Sequence[Mark]) -> Iterator[str]:
        size = 9 if marks[0].event.lane == "comm" else 11
        if self.row < 1.6 * size or (size == 9 and self.row < 40):
            return
        for mark in marks:
            x, end = self.x(mark.start), self.x(mark.end)
            if end - x >= 0.6 * size * len(mark.text) + 2:
                y = self._middle(mark) + 0.36 * size
                yield f'<text x="{short((x + end) / 2)}" y="{short(y)}">{escape(mark.text)}</text>'

    def messages(self, lines: Sequence[Line]) -> Iterator[str]:
        """A line from each sender to its receiver."""
        path = ""
        for sent, begin, arrived, end in lines:
            path += f"M{short(self.x(sent))} {short(self.y(begin))}L{short(self.x(arrived))} {short(self.y(end))}"
        if path:
            yield f'<path d="{path}" fill="none" stroke="{style.MESSAGE}" stroke-width=".8"/>'


def ticks(axis: Axis, bottom: float) -> Iterator[str]:
    """The time axis under the rows."""
    y = bottom + 4
    yield f'<path d="M{LEFT} {short(y)}H{WIDTH - RIGHT}" stroke="{style.MUTED}"/>'
    for x, text in tick_places(axis):
        yield f'<path d="M{short(x)} {short(y)}v5" stroke="{style.MUTED}"/>'
        yield _centred(x, y + 18, text)
    yield _centred((LEFT + WIDTH - RIGHT) / 2, y + 34, f"time ({axis.unit.symbol})")


def tick_places(axis: Axis) -> Iterator[tuple[float, str]]:
    for value in _nice(axis.span * axis.unit.scale):
        yield place(axis, value / axis.unit.scale), number(value, 6)


def _centred(x: float, y: float, text: str) -> str:
    return f'<text x="{short(x)}" y="{short(y)}" text-anchor="middle">{escape(text)}</text>'


def curves(memory: Memory, axis: Axis, top: float, height: float) -> Iterator[str]:
    """The memory of each rank as a step curve, its peak marked, with lines for no bytes, half the most and the most."""
    n_ranks, most, bottom = len(memory.curves), max(memory.peak), top + height
    for share in (0, 0.5, 1):
        y = bottom - height * share
        yield f'<path d="M{LEFT} {short(y)}H{WIDTH - RIGHT}" stroke="{style.GRID}" stroke-width=".8"/>'
        text = bytes_text(share * most)
        yield f'<text x="{LEFT - 8}" y="{short(y + 4)}" text-anchor="end" font-size="11">{text}</text>'
    for rank in range(n_ranks):
        path = _steps(axis, bottom, height / most, steps(memory, rank))
        dash = _DASHES[style.CURVE_DASHES[rank % 4]]
        look = f'fill="none" stroke="{style.curve_colour(rank, n_ranks)}" stroke-width="1.8"'
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        yield f'<path d="{path}" {look}{dashes}/>'
    for rank, (at, peak) in enumerate(zip(memory.peak_at, memory.peak, strict=True)):
        x, y = place(axis, at), bottom - height * peak / most
        look = f'fill="{style.curve_colour(rank, n_ranks)}" stroke="{style.TEXT}" stroke-width=".8"'
        yield f'<circle cx="{short(x)}" cy="{short(y)}" r="4" {look}/>'


def _steps(axis: Axis, bottom: float, scale: float, points: Iterable[tuple[float, int]]) -> str:
    path = ""
    for (at, nbytes), (until, _) in pairwise(points):
        y = short(bottom - scale * nbytes)
        path += f"{'V' + y if path else f'M{short(place(axis, at))} {y}'}H{short(place(axis, until))}"
    return path


def _nice(span: float) -> list[float]:
    """About eight round numbers from zero to ``span``."""
    if not span:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(span / 8))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 8 * (1 - 1e-9))
    return [step * count for count in range(int(span / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A coordinate to a tenth of a pixel, in as few characters as it takes."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
