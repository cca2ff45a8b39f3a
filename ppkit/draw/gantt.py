"""The interactive Gantt: a plotly figure of one timeline or of several on one time axis."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ppkit.draw import style
from ppkit.draw.bars import bar_traces, critical_trace, idle_trace, is_dense, message_trace
from ppkit.draw.curves import curve_traces
from ppkit.draw.geometry import Axis, bands_below, bands_by_rank
from ppkit.draw.labels import Labels, choose_labels
from ppkit.draw.layout import layout
from ppkit.draw.look import Look, check
from ppkit.errors import PpkitError
from ppkit.exports import write
from ppkit.timeline import Timeline

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ppkit.memory import Memory

__all__ = ["figure_spec", "gantt", "write_html"]

Spec: TypeAlias = "dict[str, Any]"


def gantt(
    *timelines: Timeline,
    title: str | None = None,
    height: int | None = None,
    labels: bool | str = "auto",
    messages: bool | str = "auto",
    critical: bool = False,
    by_rank: bool = False,
    memory: Memory | None = None,
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
        critical: put an edge around what is on each timeline's ``critical_path()``.
        by_rank: draw the rows of one rank together, then those of the next, in place of one timeline after the other.
        memory: what ``ppkit.memory.memory(timeline, costs)`` returned for the one timeline; drawn beneath it.

    Raises:
        TimelineError: there is no timeline, an argument is something else, or the units differ.
    """
    options: Spec = {"title": title, "height": height, "labels": labels, "messages": messages}
    options |= {"critical": critical, "by_rank": by_rank, "memory": memory}
    spec = figure_spec(*timelines, **options)
    try:
        from ppkit.draw.figure import GanttFigure
    except ImportError as error:
        raise PpkitError("gantt() needs plotly: pip install plotly; to_svg() and to_text() do without") from error
    return GanttFigure.of(spec, timelines, options)


def write_html(timeline: Timeline, path: str | Path) -> Path:
    """Write the Gantt as one HTML file with plotly.js in it, so that it opens without a network."""
    html = gantt(timeline).to_html(
        include_plotlyjs=True,
        full_html=True,
        div_id="ppkit-gantt",
        config={"displaylogo": False, "responsive": True},
    )
    return write(path, html.replace("<head>", f"<head><title>{escape(timeline.title)}</title>", 1))


def figure_spec(*timelines: Timeline, **options: Any) -> Spec:
    """The figure of ``gantt`` as plain dicts and lists, made without plotly and the same every time."""
    look = Look(**options)
    check(timelines, look)
    communication, left_out = style.shown_communication(timelines)
    axis = Axis.of(timelines)
    bands = (bands_by_rank if look.by_rank else bands_below)(timelines, communication)
    groups = [style.marks(timeline, communication) for timeline in timelines]
    every = [mark for found in groups for marks in found.values() for mark in marks]
    chosen = Labels.NONE if is_dense(groups) else choose_labels(every, axis, look.labels)
    data = [idle_trace(bands, axis), *bar_traces(bands, groups, axis, chosen)]
    if look.critical:
        data.append(critical_trace(bands, axis))
    # Rank by rank, messages would cross the rows of the other timelines.
    data += message_trace(bands, axis, False if look.by_rank and look.messages == "auto" else look.messages)
    if look.memory:
        data += curve_traces(look.memory, axis)
    named = [trace["name"] for trace in data if trace.get("showlegend", True)]
    spec: Spec = {"data": data, "layout": layout(bands, axis, look, left_out, named)}
    if chosen is Labels.ON_ZOOM:
        spec["layout"]["uniformtext"] = {"minsize": 9, "mode": "hide"}
    return spec
