"""The layout of a Gantt as plotly takes it: titles, axes, margins, legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, TypeAlias

from ppkit.draw import style
from ppkit.draw.geometry import Axis, Band
from ppkit.draw.look import Look
from ppkit.timeline import Timeline

__all__ = ["layout"]

Spec: TypeAlias = "dict[str, Any]"

_TITLE_CHARS, _LEGEND_WIDTH = 118, 800  # in a figure 900 pixels wide
_GAP = '<span style="font-size:7px">&nbsp;</span>'  # a low line between a figure's title and its first band's
_PANEL, _PANEL_GAP = 150, 22


def layout(bands: Sequence[Band], axis: Axis, look: Look, left_out: int, legend: Sequence[str]) -> Spec:
    """The figure's layout.

    Args:
        bands: what is drawn where.
        axis: the time axis.
        look: what was asked for.
        left_out: how many communication events are not drawn.
        legend: the names in it.
    """
    heads = [style.title_lines(band.timeline, _TITLE_CHARS, left_out) for band in bands]
    above = heads if look.by_rank else heads[:1]
    headings = [] if look.by_rank else [_heading(band, head) for band, head in zip(bands[1:], heads[1:], strict=True)]
    lines = sum(map(len, above)) - 1 + (look.title is not None)
    top, bottom = 42 + 18 * lines + (20 if look.title else 0), 62 + 20 * _legend_rows(legend)
    rows, below = max(band.bottom for band in bands), _PANEL + _PANEL_GAP if look.memory else 0
    height = look.height
    if height is None:
        row_height = axis.row_height(sum(band.timeline.n_ranks for band in bands), bands[0].lanes)
        height = round(top + bottom + rows * row_height + below)
    plot = max(height - top - bottom, 1)
    return {
        "title": _title(look.title, above),
        **({"annotations": headings} if headings else {}),
        "height": height,
        "margin": {"l": _left(bands, look), "r": 24, "t": top, "b": bottom},
        "paper_bgcolor": style.PAPER,
        "plot_bgcolor": style.PAPER,
        "font": {"family": style.FONT, "size": 13, "color": style.TEXT},
        "barmode": "overlay",
        "bargap": 0,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": style.PAPER, "font": {"size": 13, "color": style.TEXT}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": round(-48 / plot, 4),  # under the axis title
            "yanchor": "top",
            "traceorder": "normal",
            "itemsizing": "constant",
        },
        "xaxis": {
            "title": {"text": f"time ({axis.unit.symbol})", "standoff": 4, "font": {"size": 13}},
            "range": [0, axis.value(axis.span) or 1],
            "gridcolor": style.GRID,
            "ticks": "outside",
            "tickcolor": style.GRID,
            "zeroline": False,
            **({"anchor": "y2"} if below else {}),
        },
        "yaxis": _ranks(bands, look, rows) | ({"domain": [round(below / plot, 4), 1]} if below else {}),
        **({"yaxis2": _memory_axis(_PANEL / plot)} if below else {}),
    }


def _legend_rows(names: Sequence[str]) -> int:
    longest = max(map(len, names))
    return math.ceil(len(names) / max(1, _LEGEND_WIDTH // (7 * longest + 60)))


def _ranks(bands: Sequence[Band], look: Look, rows: float) -> Spec:
    tags = style.row_names([band.timeline for band in bands]) if look.by_rank else [""] * len(bands)
    every = [(band, tag, rank) for band, tag in zip(bands, tags, strict=True) for rank in range(band.timeline.n_ranks)]
    return {
        "range": [rows - 0.45, -0.55],
        "tickvals": [band.compute(rank) for band, _, rank in every],
        "ticktext": [_rank(band.timeline, rank, tag) for band, tag, rank in every],
        "showgrid": False,
        "ticklabelstandoff": 6,
        "zeroline": False,
        "fixedrange": True,
    }


def _memory_axis(share: float) -> Spec:
    return {
        "domain": [0, round(share, 4)],
        "title": {"text": "memory (B)", "font": {"size": 13}, "standoff": 6},
        "rangemode": "tozero",
        "exponentformat": "SI",
        "nticks": 5,
        "gridcolor": style.GRID,
        "zeroline": True,
        "zerolinecolor": style.GRID,
        "fixedrange": True,
    }


def _left(bands: Sequence[Band], look: Look) -> int:
    """Pixels for the names of the ranks."""
    roles = [style.rank_role(band.timeline, rank) for band in bands for rank in range(band.timeline.n_ranks)]
    tags = style.row_names([band.timeline for band in bands]) if look.by_rank else []
    return max(68, 16 + round(5.7 * max(map(len, roles + tags))))


def _rank(timeline: Timeline, rank: int, tag: str) -> str:
    under = style.row_role(timeline, rank, tag)
    return f"rank {rank}" + (f'<br><span style="font-size:11px">{escape(under, False)}</span>' if under else "")


def _title(title: str | None, heads: Sequence[list[str]]) -> Spec:
    above = f'<span style="font-size:18px"><b>{escape(title, False)}</b></span><br>{_GAP}<br>' if title else ""
    return {
        "text": above + "<br>".join(map(_headed, heads)),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": 22},
        "font": {"size": 16},
        "automargin": False,
    }


def _headed(head: list[str]) -> str:
    name, *rest = (escape(line, False) for line in head)
    return f"<b>{name}</b><br>" + "<br>".join(f'<span style="font-size:13px">{line}</span>' for line in rest)


def _heading(band: Band, head: list[str]) -> Spec:
    return {
        "text": _headed(head),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": band.top - 0.55,
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
        "bgcolor": style.PAPER,
        "borderpad": 0,
        "xshift": -1,
        "font": {"size": 16},
    }
