"""Rows of actions as an aligned text grid, with cells marked and long grids cut around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppkit.schedule import Action

__all__ = ["Row", "draw"]

Row = Sequence["Action | None"]

_WIDE, _TALL = 14, 10  # ticks and ranks beyond which an error shows only what is around its mark


def draw(
    rows: Sequence[Row],
    marked: Collection[tuple[int, int]] = (),
    notes: Mapping[int, str] | None = None,
    around: Sequence[tuple[int, int]] | None = None,
) -> str:
    """Text of the grid: a line for each rank, a column for each tick, ``.`` where the rank idles.

    Args:
        rows: for each rank its cells, all of one length.
        marked: cells, as (rank, column), to put in brackets.
        notes: text to add at the end of a rank's line.
        around: cells, as (rank, column), around which to cut a big grid; None: show all of it.
    """
    notes = notes or {}
    width = len(rows[0])
    shown = _window([column for _, column in around], width, _WIDE) if around else range(width)
    lines = _window([rank for rank, _ in around], len(rows), _TALL) if around else range(len(rows))
    label = len(f"rank {len(rows) - 1}")
    body = [[_cell(rows[rank][column], (rank, column) in marked) for column in shown] for rank in lines]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    out = [f"{'':{label}}  …"] if lines and lines[0] > 0 else []
    for rank, cells in zip(lines, body, strict=True):
        text = " ".join(f"{cell:{size}}" for cell, size in zip(cells, widths, strict=True))
        left = "… " if shown and shown[0] > 0 else ""
        right = " …" if shown and shown[-1] < width - 1 else ""
        note = f"  <- {notes[rank]}" if rank in notes else ""
        out.append(f"{f'rank {rank}':{label}}  {left}{text}{right}{note}".rstrip())
    return "\n".join([*out, f"{'':{label}}  …"] if lines and lines[-1] < len(rows) - 1 else out)


def _cell(action: Action | None, marked: bool) -> str:
    text = "." if action is None else str(action)
    return f"[{text}]" if marked else text


def _window(points: Sequence[int], size: int, most: int) -> range:
    """The part of ``range(size)`` around ``points``, at most ``most`` long; all of it if it is short."""
    if size <= most:
        return range(size)
    # Points too far apart to show together: the first of them is the one the message begins with.
    low, high = (min(points), max(points)) if max(points) - min(points) < most else (points[0], points[0])
    start = min(max(0, low - (most - (high - low + 1)) // 2), size - most)
    return range(start, start + most)
