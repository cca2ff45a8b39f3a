"""Timelines as one static SVG picture: no script, no font or style from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from ppkit.draw import style
from ppkit.draw.curves import MOST_NAMED, curve_name
from ppkit.draw.geometry import Axis, Band, bands_below, bands_by_rank, drawn_at_once, message_lines
from ppkit.draw.look import Look
from ppkit.draw.svg_parts import LEFT, RIGHT, WIDTH, Picture, curves, short, ticks
from ppkit.timeline import Timeline

__all__ = ["to_svg"]

_CHAR, _TITLE_CHARS = 6.2, 128
_TITLE_HEIGHT, _BAND_GAP, _AXIS_HEIGHT, _PANEL, _PANEL_GAP = 28, 6, 52, 120, 18
_LEAST_ROW = 6.0


def to_svg(*timelines: Timeline, **options: Any) -> str:
    """The timelines as an SVG document 900 pixels wide, several as bands on one time axis.

    Args:
        timelines: at least one; each gets its own title.
        options: as ``gantt`` takes them; ``height`` is kept as far as the rows can be made to fit, and bars bear
            the texts that fit unless ``labels`` is ``False``.
    """
    look = Look(**options)
    communication, left_out = style.shown_communication(timelines)
    axis = Axis.of(timelines)
    heads = [style.title_lines(timeline, _TITLE_CHARS, left_out) for timeline in timelines]
    bands = _bands(timelines, communication, look)
    tags = style.row_names(timelines) if look.by_rank else [""] * len(bands)
    groups = [style.marks(timeline, communication) for timeline in timelines]
    lines = [message_lines(band) for band in bands]
    wanted = False if look.by_rank and look.messages == "auto" else look.messages
    if not drawn_at_once([line for found in lines for line in found], wanted):
        lines = [[] for _ in bands]
    entries = _entries(style.legend_keys(groups), any(lines), look)
    panel = _PANEL + _PANEL_GAP if look.memory else 0
    fixed = _fixed_height(look.title, heads) + panel + _legend(entries, 0.0)[1]
    row = _row_height(axis, bands, communication, look.height, fixed)
    body = [] if not look.title else [_text(24, look.title, 'font-size="18" font-weight="bold"')]
    places, bottom = _places(heads, bands, row, look)
    for head, (top, below), band, tag, marks, sent in zip(heads, places, bands, tags, groups, lines, strict=True):
        picture = Picture(axis, band, below, row, tag)
        gridded = len(bands) > 1 and not look.by_rank
        body += [*_heading(head, top), *(picture.grid() if gridded else ()), *picture.rows()]
        body += [*picture.bars(marks, look.labels is not False), *picture.messages(sent)]
        body += picture.critical() if look.critical else ()
    if look.memory:
        body += curves(look.memory, axis, bottom + _PANEL_GAP, _PANEL)
        bottom += panel
    legend, legend_height = _legend(entries, bottom + _AXIS_HEIGHT)
    body += [*ticks(axis, bottom), *legend]
    height = round(bottom + _AXIS_HEIGHT + legend_height)
    name = look.title or "; ".join(t.title for t in timelines)
    return _document(name, height, _beyond(timelines, tags), body)


def _bands(timelines: Sequence[Timeline], communication: bool, look: Look) -> list[Band]:
    if look.by_rank:
        return bands_by_rank(timelines, communication)
    # Here each has its own place on the page.
    return [replace(band, top=0.0) for band in bands_below(timelines, communication)]


def _places(
    heads: Sequence[Sequence[str]], bands: Sequence[Band], row: float, look: Look
) -> tuple[list[tuple[float, float]], float]:
    """For each band where its heading and where its rows begin; and where all ends."""
    bottom = float(_TITLE_HEIGHT if look.title else 0)
    places: list[tuple[float, float]] = []
    for number, (head, band) in enumerate(zip(heads, bands, strict=True)):
        top = bottom + _BAND_GAP * (number > 0 and not look.by_rank)
        bottom = top + _head_height(head) - 12 * (look.by_rank and number < len(bands) - 1)
        places.append((top, bottom))
        bottom += 0 if look.by_rank else row * band.bottom
    if look.by_rank:  # all headings first
        places = [(top, bottom) for top, _ in places]
        bottom += row * max(band.bottom for band in bands)
    return places, bottom


def _beyond(timelines: Sequence[Timeline], tags: Sequence[str]) -> int:
    """Pixels to the left of the picture that what is noted of the ranks takes."""
    longest = max(
        len(style.row_role(timeline, rank, tag))
        for timeline, tag in zip(timelines, tags, strict=True)
        for rank in range(timeline.n_ranks)
    )
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


def _row_height(axis: Axis, bands: Sequence[Band], communication: bool, height: int | None, fixed: float) -> float:
    n_rows = sum(band.timeline.n_ranks for band in bands)
    if height is None:
        return axis.row_height(n_rows, communication) * 0.85
    units = max(band.bottom for band in bands) if bands[-1].top else sum(band.bottom for band in bands)
    return max(_LEAST_ROW, (height - fixed) / units)


def _heading(head: Sequence[str], top: float) -> Iterator[str]:
    name, *rest = head
    yield _text(top + 24, name, 'font-size="16" font-weight="bold"')
    for number_, line in enumerate(rest):
        yield _text(top + 42 + 17 * number_, line, f'fill="{style.MUTED}"')


def _text(y: float, text: str, look: str) -> str:
    return f'<text x="{LEFT}" y="{short(y)}" {look}>{escape(text)}</text>'


def _entries(keys: Sequence[tuple[str, int]], messages: bool, look: Look) -> list[tuple[str, str, float]]:
    """The legend: names, colours, and how thick each is shown."""
    entries = [("idle", style.IDLE, 12.0)]
    entries += [(style.legend_name(group, chunk, keys), style.colour(group, chunk), 12.0) for group, chunk in keys]
    if messages:
        entries.append(("message", style.MESSAGE, 1.2))
    if look.critical:
        entries.append(("critical path (edge)", style.CRITICAL, 2.4))
    if look.memory and (n_ranks := len(look.memory.curves)) <= MOST_NAMED:
        entries += [(curve_name(look.memory, rank), style.curve_colour(rank, n_ranks), 2.4) for rank in range(n_ranks)]
    return entries


def _legend(entries: Sequence[tuple[str, str, float]], top: float) -> tuple[list[str], float]:
    parts, x, y = [], float(LEFT), top
    for name, colour, thick in entries:
        width = 34 + _CHAR * len(name)
        if x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + 20
        parts.append(
            f'<rect x="{short(x)}" y="{short(y + 6 - thick / 2)}" width="14" height="{short(thick)}" fill="{colour}"/>'
            f'<text x="{short(x + 19)}" y="{short(y + 10)}">{name}</text>'
        )
        x += width
    return parts, y - top + 24
