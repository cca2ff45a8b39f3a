"""Timelines as one static SVG picture: no script, no font or style from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TypeAlias

from ppkit.draw import style
from ppkit.draw.geometry import Axis, Band, Line, drawn_at_once, message_lines
from ppkit.draw.style import Mark
from ppkit.timeline import Timeline
from ppkit.units import number

__all__ = ["to_svg"]

Groups: TypeAlias = "Mapping[tuple[str, int], list[Mark]]"

WIDTH, LEFT, RIGHT, CHAR = 900, 64, 20, 6.2
_TITLE_CHARS = 128
_TITLE_HEIGHT, _BAND_GAP, _AXIS_HEIGHT = 28, 6, 52
_LEAST_ROW = 6.0


def to_svg(
    *timelines: Timeline,
    title: str | None = None,
    height: int | None = None,
    labels: bool | str = "auto",
    messages: bool | str = "auto",
) -> str:
    """The timelines as an SVG document 900 pixels wide, several as bands on one time axis.

    Args:
        timelines: at least one; each gets its own title.
        title: one more line over all of them.
        height: pixels, as far as the rows can be made to fit; by default what they need.
        labels: ``False`` writes nothing on the bars; else they bear the texts that fit.
        messages: draw lines from sender to receiver; ``"auto"`` where messages take time and are few.
    """
    communication, left_out = style.shown_communication(timelines)
    axis = Axis.of(timelines)
    heads = [style.title_lines(timeline, _TITLE_CHARS, left_out) for timeline in timelines]
    bands = [Band(timeline, 0.0, communication) for timeline in timelines]
    groups = [style.marks(timeline, communication) for timeline in timelines]
    lines = [message_lines(band) for band in bands]
    if not drawn_at_once([line for found in lines for line in found], messages):
        lines = [[] for _ in bands]
    keys = style.legend_keys(groups)
    fixed = _fixed_height(title, heads) + _legend(keys, any(lines), 0.0)[1]
    row = _row_height(axis, timelines, communication, height, fixed)
    body = [] if not title else [_text(24, title, 'font-size="18" font-weight="bold"')]
    bottom = float(_TITLE_HEIGHT if title else 0)
    for number_, (head, band) in enumerate(zip(heads, bands, strict=True)):
        top = bottom + _BAND_GAP * (number_ > 0)
        picture = _Picture(axis, band, top + _head_height(head), row)
        body += [*_heading(head, top), *(picture.grid() if len(bands) > 1 else ()), *picture.rows()]
        body += [*picture.bars(groups[number_], labels is not False), *picture.messages(lines[number_])]
        bottom = picture.bottom
    legend, legend_height = _legend(keys, any(lines), bottom + _AXIS_HEIGHT)
    body += [*_ticks(axis, bottom), *legend]
    height = round(bottom + _AXIS_HEIGHT + legend_height)
    return _document(title or "; ".join(t.title for t in timelines), height, _beyond(timelines), body)


def _beyond(timelines: Sequence[Timeline]) -> int:
    """Pixels to the left of the picture that what is noted of the ranks takes."""
    longest = max(len(style.rank_role(timeline, rank)) for timeline in timelines for rank in range(timeline.n_ranks))
    return max(0, round(5.2 * longest) + 16 - LEFT)


def _document(title: str, height: int, beyond: int, body: Sequence[str]) -> str:
    width, left = WIDTH + beyond, -beyond
    start = f'x="{left}" ' if beyond else ""
    parts = [
        f"<title>{escape(title)}</title>",
        f'<rect {start}width="{width}" height="{height}" fill="{style.PAPER}"/>',
        *body,
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{left} 0 {width} {height}" role="img" font-family="{style.FONT}" font-size="12" fill="{style.TEXT}">'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _head_height(head: Sequence[str]) -> int:
    return 34 + 17 * (len(head) - 1)


def _fixed_height(title: str | None, heads: Sequence[Sequence[str]]) -> int:
    """Pixels of everything but the rows and the legend."""
    above = _TITLE_HEIGHT if title else 0
    return above + sum(map(_head_height, heads)) + _BAND_GAP * (len(heads) - 1) + _AXIS_HEIGHT


def _row_height(
    axis: Axis, timelines: Sequence[Timeline], communication: bool, height: int | None, fixed: float
) -> float:
    n_rows = sum(timeline.n_ranks for timeline in timelines)
    if height is None:
        return axis.row_height(n_rows, communication) * 0.85
    return max(_LEAST_ROW, (height - fixed) / n_rows)


def _heading(head: Sequence[str], top: float) -> Iterator[str]:
    name, *rest = head
    yield _text(top + 24, name, 'font-size="16" font-weight="bold"')
    for number_, line in enumerate(rest):
        yield _text(top + 42 + 17 * number_, line, f'fill="{style.MUTED}"')


def _text(y: float, text: str, look: str) -> str:
    return f'<text x="{LEFT}" y="{_n(y)}" {look}>{escape(text)}</text>'


def _x(axis: Axis, seconds: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (seconds / axis.span if axis.span else 0)


class _Picture:
    """Where a time and a rank of one timeline lie on the page, and the parts drawn there."""

    def __init__(self, axis: Axis, band: Band, top: float, row: float) -> None:
        self.axis, self.band, self.top, self.row = axis, band, top, row
        self.bottom = top + row * band.timeline.n_ranks

    def x(self, seconds: float) -> float:
        return _x(self.axis, seconds)

    def y(self, row: float) -> float:
        return self.top + self.row * (row + 0.5)

    def grid(self) -> Iterator[str]:
        """Upright lines that carry the ticks of the axis up to a band far from it."""
        lines = "".join(f"M{_n(x)} {_n(self.top)}V{_n(self.bottom)}" for x, _ in _tick_places(self.axis))
        yield f'<path d="{lines}" stroke="{style.GRID}" stroke-width=".8"/>'

    def rows(self) -> Iterator[str]:
        """The names of the ranks and the idle background, as long as the timeline."""
        thick = self.band.thickness * self.row
        for rank in range(self.band.timeline.n_ranks):
            middle = self.y(self.band.compute(rank))
            role = style.rank_role(self.band.timeline, rank)
            at = f'x="{LEFT - 8}" y="{_n(middle - 2 if role else middle + 4)}" text-anchor="end"'
            yield f"<text {at}>rank {rank}</text>"
            if role:
                at = f'x="{LEFT - 8}" y="{_n(middle + 10)}" text-anchor="end" font-size="10"'
                yield f"<text {at}>{escape(role)}</text>"
            width = self.x(self.band.timeline.makespan) - LEFT
            yield (
                f'<rect x="{LEFT}" y="{_n(middle - thick / 2)}" width="{_n(width)}" height="{_n(thick)}" '
                f'fill="{style.IDLE}"/>'
            )

    def bars(self, groups: Groups, labels: bool) -> Iterator[str]:
        for (group, chunk), marks in groups.items():
            colour = style.colour(group, chunk)
            yield f'<path fill="{colour}" stroke="{style.PAPER}" stroke-width=".8" d="{self._path(marks)}"/>'
            if labels and (texts := "".join(self._labels(marks))):
                size = 9 if marks[0].event.lane == "comm" else 11
                yield f'<g fill="{style.ink(colour)}" font-size="{size}" text-anchor="middle">{texts}</g>'

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

    def messages(self, lines: Sequence[Line]) -> Iterator[str]:
        path = ""
        for sent, begin, arrived, end in lines:
            path += f"M{_n(self.x(sent))} {_n(self.y(begin))}L{_n(self.x(arrived))} {_n(self.y(end))}"
        if path:
            yield f'<path d="{path}" fill="none" stroke="{style.MESSAGE}" stroke-width=".8"/>'


def _ticks(axis: Axis, bottom: float) -> Iterator[str]:
    """The time axis under the rows."""
    y = bottom + 4
    yield f'<path d="M{LEFT} {_n(y)}H{WIDTH - RIGHT}" stroke="{style.MUTED}"/>'
    for x, text in _tick_places(axis):
        yield f'<path d="M{_n(x)} {_n(y)}v5" stroke="{style.MUTED}"/>'
        yield _centred(x, y + 18, text)
    yield _centred((LEFT + WIDTH - RIGHT) / 2, y + 34, f"time ({axis.unit.symbol})")


def _tick_places(axis: Axis) -> Iterator[tuple[float, str]]:
    for value in _nice(axis.span * axis.unit.scale):
        yield _x(axis, value / axis.unit.scale), number(value, 6)


def _centred(x: float, y: float, text: str) -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="middle">{escape(text)}</text>'


def _legend(keys: Sequence[tuple[str, int]], messages: bool, top: float) -> tuple[list[str], float]:
    entries = [("idle", style.IDLE)]
    entries += [(style.legend_name(group, chunk, keys), style.colour(group, chunk)) for group, chunk in keys]
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
