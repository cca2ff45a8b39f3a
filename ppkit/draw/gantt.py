"""The interactive Gantt: a plotly figure of one timeline or of several on one time axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ppkit.draw import style
from ppkit.draw.bars import bar_traces, idle_trace, is_dense, message_trace
from ppkit.draw.geometry import Axis, Band
from ppkit.draw.labels import Labels, choose_labels
from ppkit.errors import PpkitError, TimelineError
from ppkit.timeline import Timeline

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["figure_spec", "gantt", "write_html"]

Spec: TypeAlias = "dict[str, Any]"

_TITLE_CHARS, _LEGEND_WIDTH = 118, 800  # in a figure 900 pixels wide
_GAP = '<span style="font-size:7px">&nbsp;</span>'  # a low line between a figure's title and its first band's


def gantt(
    *timelines: Timeline,
    title: str | None = None,
    height: int | None = None,
    labels: bool | str = "auto",
    messages: bool | str = "auto",
) -> go.Figure:
    """Draw timelines as an interactive Gantt, several as bands one below the other on one time axis.

    In a notebook the figure also shows itself as a static picture and as text, where nothing interactive runs.

    Args:
        timelines: at least one; each gets its own title, which says its source and its emulation.
        title: one more line over all of them.
        height: pixels; by default what the rows need.
        labels: write micro-batch numbers on the bars: ``True``, ``False``, or ``"auto"`` where they fit.
        messages: draw lines from sender to receiver at once (``True``), after a click on the legend
            (``False``), or ``"auto"``: at once where messages take time and are few.

    Raises:
        TimelineError: there is no timeline, an argument is something else, or the units differ.
    """
    spec = figure_spec(*timelines, title=title, height=height, labels=labels, messages=messages)
    try:
        from ppkit.draw.figure import GanttFigure
    except ImportError as error:
        raise PpkitError("gantt() needs plotly: pip install plotly; to_svg() and to_text() do without") from error
    options = {"title": title, "height": height, "labels": labels, "messages": messages}
    return GanttFigure.of(spec, timelines, options)


def write_html(timeline: Timeline, path: str | Path) -> Path:
    """Write the Gantt as one HTML file with plotly.js in it, so that it opens without a network."""
    html = gantt(timeline).to_html(
        include_plotlyjs=True,
        full_html=True,
        div_id="ppkit-gantt",
        config={"displaylogo": False, "responsive": True},
    )
    path = Path(path)
    path.write_text(html.replace("<head>", f"<head><title>{escape(timeline.title)}</title>", 1), encoding="utf-8")
    return path


def figure_spec(
    *timelines: Timeline,
    title: str | None = None,
    height: int | None = None,
    labels: bool | str = "auto",
    messages: bool | str = "auto",
) -> Spec:
    """The figure of ``gantt`` as plain dicts and lists, made without plotly and the same every time."""
    _check(timelines, labels, messages)
    communication, left_out = style.shown_communication(timelines)
    axis = Axis.of(timelines)
    bands = list(_bands(timelines, communication))
    groups = [style.marks(timeline, communication) for timeline in timelines]
    every = [mark for found in groups for marks in found.values() for mark in marks]
    chosen = Labels.NONE if is_dense(groups) else choose_labels(every, axis, labels)
    data = [idle_trace(bands, axis), *bar_traces(bands, groups, axis, chosen), *message_trace(bands, axis, messages)]
    layout = _layout(bands, axis, title, height, left_out, _legend_rows(data))
    if chosen is Labels.ON_ZOOM:
        layout["uniformtext"] = {"minsize": 9, "mode": "hide"}
    return {"data": data, "layout": layout}


def _legend_rows(data: Sequence[Spec]) -> int:
    longest = max(len(trace["name"]) for trace in data)
    return math.ceil(len(data) / max(1, _LEGEND_WIDTH // (7 * longest + 60)))


def _check(timelines: Sequence[object], labels: object, messages: object) -> None:
    if not timelines:
        raise TimelineError("gantt() got no timeline; give it at least one: gantt(simulate(gpipe(4, 8)))")
    for position, value in enumerate(timelines, 1):
        if not isinstance(value, Timeline):
            raise TimelineError(f"argument {position} of gantt() is {_described(value)}")
    for name, value in (("labels", labels), ("messages", messages)):
        if value not in (True, False, "auto"):
            raise TimelineError(f'gantt({name}={value!r}): it is True, False or "auto"', values={name: value})
    units = dict.fromkeys(str(t.notes.get("unit", "seconds")) for t in timelines if isinstance(t, Timeline))
    if len(units) > 1:
        raise TimelineError(f"gantt() can't draw {' and '.join(units)} on one axis; draw each timeline by itself")


def _described(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"a {kind}; write gantt(*timelines) to draw each timeline in it"
    if hasattr(value, "timeline"):
        return f"a {kind}; give its .timeline"
    if hasattr(value, "stage_to_rank"):
        return f"a {kind}, which has no times; give simulate(schedule)"
    return f"a {kind}, not a Timeline"


def _bands(timelines: Sequence[Timeline], communication: bool) -> Iterator[Band]:
    top = 0.0
    for timeline in timelines:
        yield Band(timeline, top, communication)
        top += timeline.n_ranks + Band.gap


def _layout(
    bands: Sequence[Band], axis: Axis, title: str | None, height: int | None, left_out: int, legend_rows: int
) -> Spec:
    heads = [style.title_lines(band.timeline, _TITLE_CHARS, left_out) for band in bands]
    headings = [_heading(band, head) for band, head in zip(bands[1:], heads[1:], strict=True)]
    lines = len(heads[0]) - 1 + (title is not None)
    top, bottom = 42 + 18 * lines + (20 if title else 0), 62 + 20 * legend_rows
    rows = bands[-1].bottom
    if height is None:
        row_height = axis.row_height(sum(band.timeline.n_ranks for band in bands), bands[0].lanes)
        height = round(top + bottom + rows * row_height)
    return {
        "title": _title(title, heads[0]),
        **({"annotations": headings} if headings else {}),
        "height": height,
        "margin": {"l": _left(bands), "r": 24, "t": top, "b": bottom},
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
            "y": round(-48 / max(height - top - bottom, 1), 4),  # under the axis title
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
        },
        "yaxis": {
            "range": [rows - 0.45, -0.55],
            "tickvals": [band.compute(rank) for band in bands for rank in range(band.timeline.n_ranks)],
            "ticktext": [_rank(band.timeline, rank) for band in bands for rank in range(band.timeline.n_ranks)],
            "showgrid": False,
            "ticklabelstandoff": 6,
            "zeroline": False,
            "fixedrange": True,
        },
    }


def _left(bands: Sequence[Band]) -> int:
    """Pixels for the names of the ranks."""
    roles = [style.rank_role(band.timeline, rank) for band in bands for rank in range(band.timeline.n_ranks)]
    return max(68, 16 + round(5.7 * max(map(len, roles))))


def _rank(timeline: Timeline, rank: int) -> str:
    role = style.rank_role(timeline, rank)
    return f"rank {rank}" + (f'<br><span style="font-size:11px">{escape(role, False)}</span>' if role else "")


def _title(title: str | None, head: list[str]) -> Spec:
    above = f'<span style="font-size:18px"><b>{escape(title, False)}</b></span><br>{_GAP}<br>' if title else ""
    return {
        "text": above + _headed(head),
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
