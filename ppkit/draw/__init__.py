"""Drawings of timelines: an interactive Gantt, a static SVG, plain text."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ppkit.draw.gantt import figure_spec, gantt
from ppkit.draw.svg import to_svg
from ppkit.draw.text import critical_line, to_text

if TYPE_CHECKING:
    from ppkit.draw.figure import GanttFigure
    from ppkit.timeline import Timeline

__all__ = ["gantt", "mimebundle", "to_svg", "to_text"]

# A static picture of more events than this would be large and show no single one of them.
MOST_SVG_EVENTS = 3000


def mimebundle(
    *timelines: Timeline, figure: GanttFigure | None = None, title: str | None = None, **options: Any
) -> dict[str, Any]:
    """What Jupyter shows of timelines: the interactive Gantt, a static SVG and plain text.

    Args:
        timelines: at least one.
        figure: their figure, if it is made already; it may have been changed since.
        title: as ``gantt`` takes it.
        options: the others that ``gantt`` takes.
    """
    texts = [title] if title else []
    for timeline in timelines:
        path = f"\n{critical_line(timeline)}" if options.get("critical") else ""
        texts.append(to_text(timeline) + path)
    texts += [str(options["memory"])] if options.get("memory") else []
    bundle: dict[str, Any] = {"text/plain": "\n\n".join(texts)}
    if sum(map(len, timelines)) <= MOST_SVG_EVENTS:
        bundle["image/svg+xml"] = to_svg(*timelines, title=title, **options)
    if figure is not None or find_spec("plotly") is not None:
        spec = figure_spec(*timelines, title=title, **options) if figure is None else figure.spec()
        bundle["application/vnd.plotly.v1+json"] = {**spec, "config": {"displaylogo": False}}
        if "google.colab" in sys.modules:  # shows no plotly mimetype, only HTML
            shown = gantt(*timelines, title=title, **options) if figure is None else figure
            bundle["text/html"] = shown.to_html(include_plotlyjs="cdn", full_html=False)
    return bundle
