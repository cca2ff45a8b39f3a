"""Memory over time, drawn under a Gantt: a step curve for each rank, its peak marked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from ppkit.draw import style
from ppkit.draw.geometry import Axis
from ppkit.units import bytes_text, duration

if TYPE_CHECKING:
    from ppkit.memory import Memory

__all__ = ["MOST_NAMED", "curve_name", "curve_traces", "steps"]

Spec: TypeAlias = "dict[str, Any]"

MOST_NAMED = 8  # more ranks than this would fill the page with a legend
_MOST_TEXTS = 2000


def curve_traces(memory: Memory, axis: Axis) -> Iterator[Spec]:
    """A trace for each rank, and one of all peaks."""
    n_ranks = len(memory.curves)
    detailed = sum(len(curve.times) for curve in memory.curves) <= _MOST_TEXTS
    for rank in range(n_ranks):
        shown = steps(memory, rank)
        texts = [_parts(memory, rank, time) for time, _ in shown] if detailed else []
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": curve_name(memory, rank),
            "yaxis": "y2",
            "x": [axis.value(time) for time, _ in shown],
            "y": [nbytes for _, nbytes in shown],
            "line": {
                "shape": "hv",
                "color": style.curve_colour(rank, n_ranks),
                "width": 2,
                "dash": style.CURVE_DASHES[rank % 4],
            },
            "legendrank": 1200 + rank,
            **({} if n_ranks <= MOST_NAMED else {"showlegend": False}),
            **({"hovertext": texts} if detailed else {}),
            "hovertemplate": f"rank {rank}, %{{y:.4s}}B{': %{hovertext}' if detailed else ''}<extra></extra>",
        }
    yield {
        "type": "scatter",
        "mode": "markers",
        "name": "peak",
        "yaxis": "y2",
        "x": [axis.value(time) for time in memory.peak_at],
        "y": list(memory.peak),
        "marker": {
            "size": 9,
            "color": [style.curve_colour(rank, n_ranks) for rank in range(n_ranks)],
            "line": {"color": style.TEXT, "width": 1},
        },
        "showlegend": False,
        "hovertext": [
            f"{curve_name(memory, rank)}: {_parts(memory, rank, at)}" for rank, at in enumerate(memory.peak_at)
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def curve_name(memory: Memory, rank: int) -> str:
    """Such as ``"rank 0: peak 6 kB at 8 s"``."""
    when = duration(memory.peak_at[rank], memory.timeline.notes.get("unit"))
    return f"rank {rank}: peak {bytes_text(memory.peak[rank])} at {when}"


def steps(memory: Memory, rank: int) -> list[tuple[float, int]]:
    """Where one rank's curve steps, as seconds and bytes from then on; its end too."""
    curve = memory.curves[rank]
    points = list(zip(curve.times, curve.totals, strict=True))
    changing = points[:1] + [other for one, other in pairwise(points) if one[1] != other[1]]
    return [*changing, (memory.timeline.makespan, points[-1][1])]


def _parts(memory: Memory, rank: int, seconds: float) -> str:
    parts = memory.curves[rank].at(seconds)
    return ", ".join(f"{part} {bytes_text(nbytes)}" for part, nbytes in parts.items() if nbytes)
