"""A timeline as one static SVG picture: no script, no font or style from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TypeAlias

from ppkit.draw import style
from ppkit.draw.geometry import Axis, Band
from ppkit.draw.style import Mark
from ppkit.timeline import Timeline
from ppkit.units import number

__all__ = ["to_svg"]

Groups: TypeAlias = "Mapping[tuple[str, int], list[Mark]]"

WIDTH, LEFT, RIGHT, CHAR = 900, 64, 20, 6.2
_TITLE_CHARS = 128


def to_svg(timeline: Timeline) -> str:
    """The timeline as an SVG document 900 pixels wide."""
    communication, left_out = style.shown_communication([timeline])
    head = style.title_lines(timeline, _TITLE_CHARS, left_out)
    axis, band = Axis.of([timeline]), Band(timeline, 0.0, communication)
    groups = style.marks(timeline, communication)
    picture = _Picture(axis, band, 34 + 17 * (len(head) - 1), axis.row_height(timeline.n_ranks, communication) * 0.85)
    legend, legend_height = _legend(groups, bool(_lines(timeline)), picture.bottom + 52)
    height = round(picture.bottom + 52 + legend_height)
    body = [
        f"<title>{escape(timeline.title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="{style.PAPER}"/>',
        *_heading(head),
        *picture.rows(),
        *picture.bars(groups),
        *picture.messages(_lines(timeline)),
        *picture.ticks(),
        *legend,
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" font-family="{style.FONT}" font-size="12" fill="{style.TEXT}">'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _lines(timeline: Timeline) -> list[tuple[float, int, float, int]]:
    """Messages as (sent, sender, arrived, receiver); none where they take no time or are too many to see."""
    pairs = timeline.messages
    if len(pairs) > 150 or not any(send.end > send.start for send, _ in pairs):
        return []
    zero = timeline.start
    return [(send.start - zero, send.rank, min(send.end, receive.end) - zero, receive.rank) for send, receive in pairs]


def _heading(head: Sequence[str]) -> Iterator[str]:
    name, *rest = (escape(line) for line in head)
    yield f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold">{name}</text>'
    for number_, line in enumerate(rest):
        yield f'<text x="{LEFT}" y="{42 + 17 * number_}" fill="{style.MUTED}">{line}</text>'


class _Picture:
    """Where a time and a rank lie on the page, and the parts drawn there."""

    def __init__(self, axis: Axis, band: Band, top: float, row: float) -> None:
        self.axis, self.band, self.top, self.row = axis, band, top, row
        self.bottom = top + row * band.timeline.n_ranks

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (seconds / self.axis.span if self.axis.span else 0)

    def y(self, row: float) -> float:
        return self.top + self.row * (row + 0.5)

    def rows(self) -> Iterator[str]:
        """The names of the ranks and the idle background."""
        thick = self.band.thickness * self.row
        for rank in range(self.band.timeline.n_ranks):
            middle = self.y(self.band.compute(rank))
            yield f'<text x="{LEFT - 8}" y="{_n(middle + 4)}" text-anchor="end">rank {rank}</text>'
            width = self.x(self.axis.span) - LEFT
            yield (
                f'<rect x="{LEFT}" y="{_n(middle - thick / 2)}" width="{_n(width)}" height="{_n(thick)}" '
                f'fill="{style.IDLE}"/>'
            )

    def bars(self, groups: Groups) -> Iterator[str]:
        for (group, chunk), marks in groups.items():
            colour = style.colour(group, chunk)
            yield f'<path fill="{colour}" stroke="{style.PAPER}" stroke-width=".8" d="{self._path(marks)}"/>'
            if labels := "".join(self._labels(marks)):
                size = 9 if marks[0].event.lane == "comm" else 11
                yield f'<g fill="{style.ink(colour)}" font-size="{size}" text-anchor="middle">{labels}</g>'

    def _path(self, marks: Sequence[Mark]) -> str:
        comm = marks[0].event.lane == "comm"
        thick = (Band.comm_thickness if comm else self.band.thickness) * self.row
        corners = []
        for mark in marks:
            x, y = self.x(mark.start), self._middle(mark) - thick / 2
            corners.append(f"M{_n(x)} {_n(y)}h{_n(self.x(mark.end) - x)}v{_n(thick)}H{_n(x)}z")
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
                yield f'<text x="{_n((x + end) / 2)}" y="{_n(y)}">{escape(mark.text)}</text>'

    def messages(self, lines: Sequence[tuple[float, int, float, int]]) -> Iterator[str]:
        path = ""
        for sent, sender, got, receiver in lines:
            begin, end = map(self.y, self.band.message(sender, receiver))
            path += f"M{_n(self.x(sent))} {_n(begin)}L{_n(self.x(got))} {_n(end)}"
        if path:
            yield f'<path d="{path}" fill="none" stroke="{style.MESSAGE}" stroke-width=".8"/>'

    def ticks(self) -> Iterator[str]:
        """The time axis under the rows."""
        y, unit = self.bottom + 4, self.axis.unit
        yield f'<path d="M{LEFT} {_n(y)}H{WIDTH - RIGHT}" stroke="{style.MUTED}"/>'
        for value in _nice(self.axis.span * unit.scale):
            x = self.x(value / unit.scale)
            yield f'<path d="M{_n(x)} {_n(y)}v5" stroke="{style.MUTED}"/>'
            yield _centred(x, y + 18, number(value, 6))
        yield _centred((LEFT + WIDTH - RIGHT) / 2, y + 34, f"time ({unit.symbol})")


def _centred(x: float, y: float, text: str) -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="middle">{escape(text)}</text>'


def _legend(groups: Groups, messages: bool, top: float) -> tuple[list[str], float]:
    n_chunks = 1 + max((chunk for _, chunk in groups), default=0)
    entries = [("idle", style.IDLE)]
    for group, chunk in groups:
        several = n_chunks if group in ("F", "B", "I", "W") else 1
        entries.append((style.legend_name(group, chunk, several), style.colour(group, chunk)))
    if messages:
        entries.append(("message", style.MESSAGE))
    parts, x, y = [], float(LEFT), top
    for name, colour in entries:
        width = 34 + CHAR * len(name)
        if x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + 20
        height = 1.2 if name == "message" else 12
        parts.append(
            f'<rect x="{_n(x)}" y="{_n(y + 6 - height / 2)}" width="14" height="{height}" fill="{colour}"/>'
            f'<text x="{_n(x + 19)}" y="{_n(y + 10)}">{name}</text>'
        )
        x += width
    return parts, y - top + 24


def _nice(span: float) -> list[float]:
    """About eight round numbers from zero to ``span``."""
    if not span:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(span / 8))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 8 * (1 - 1e-9))
    return [step * count for count in range(int(span / step + 1e-9) + 1)]


def _n(value: float) -> str:
    """A coordinate to a tenth of a pixel, in as few characters as it takes."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
