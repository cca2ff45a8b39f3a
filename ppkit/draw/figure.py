"""The plotly figure of a Gantt, which also shows itself where nothing interactive runs; imports plotly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ppkit.draw import mimebundle
from ppkit.timeline import Timeline

__all__ = ["GanttFigure"]


class GanttFigure(go.Figure):  # type: ignore[misc]  # plotly ships no types
    """A ``plotly.graph_objects.Figure`` of timelines: change, write and show it as any other."""

    # Jupyter would ask these before and beside the bundle, and get plotly's default renderer, or plotly.js by HTML.
    _ipython_display_ = None
    _repr_html_ = None

    _timelines: Sequence[Timeline] = ()
    _options: Mapping[str, Any] = {}

    @classmethod
    def of(cls, spec: Mapping[str, Any], timelines: Sequence[Timeline], options: Mapping[str, Any]) -> GanttFigure:
        """The figure of a spec that ``figure_spec(*timelines, **options)`` made."""
        # The default template would add 6 kB to every figure; all that is seen is set in the layout.
        figure = cls(data=spec["data"], layout={**spec["layout"], "template": "none"})
        figure._timelines, figure._options = timelines, options
        return figure

    def spec(self) -> dict[str, Any]:
        """The figure as it is now, as plain dicts and lists, and without the empty template."""
        spec: dict[str, Any] = json.loads(self.to_json())
        if spec["layout"].get("template") == _EMPTY_TEMPLATE:
            del spec["layout"]["template"]
        return spec

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **kwargs: Any) -> dict[str, Any]:
        if not self._timelines:  # made by some function of plotly's from this class
            return dict(super()._repr_mimebundle_(include, exclude, **kwargs))
        return mimebundle(*self._timelines, figure=self, **self._options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles keep the timelines."""
        make, arguments = super().__reduce__()[:2]
        return make, arguments, {"_timelines": self._timelines, "_options": self._options}


_EMPTY_TEMPLATE = json.loads(go.Figure(layout={"template": "none"}).to_json())["layout"]["template"]
