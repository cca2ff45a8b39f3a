"""Drawings of timelines: an interactive Gantt, a static SVG, plain text."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ppkit.draw.gantt import figure_spec, gantt
from ppkit.draw.svg import to_svg
from ppkit.draw.text import to_text

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = ["gantt", "mimebundle", "to_svg", "to_text"]

# A static picture of more events than this would be large and show no single one of them.
MOST_SVG_EVENTS = 3000


def mimebundle(timeline: Timeline) -> dict[str, Any]:
    """What Jupyter shows of a timeline: the interactive Gantt, a static SVG and plain text."""
    bundle: dict[str, Any] = {"text/plain": to_text(timeline)}
    if len(timeline) <= MOST_SVG_EVENTS:
        bundle["image/svg+xml"] = to_svg(timeline)
    if find_spec("plotly") is not None:
        bundle["application/vnd.plotly.v1+json"] = {**figure_spec(timeline), "config": {"displaylogo": False}}
        if "google.colab" in sys.modules:  # shows no plotly mimetype, only HTML
            bundle["text/html"] = gantt(timeline).to_html(include_plotlyjs="cdn", full_html=False)
    return bundle
