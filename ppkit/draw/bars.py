"""The traces of a Gantt: idle rows, one trace of bars per kind, the lines of the messages."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ppkit.draw import style
from ppkit.draw.geometry import MOST_MESSAGES, Axis, Band, drawn_at_once, message_lines
from ppkit.draw.labels import Labels, labelled
from ppkit.draw.style import Mark
from ppkit.units import number

__all__ = ["bar_traces", "critical_trace", "idle_trace", "is_dense", "message_trace"]

Spec: TypeAlias = "dict[str, Any]"
Groups: TypeAlias = "Mapping[tuple[str, int], list[Mark]]"

MOST_HOVER_TEXTS = 1500  # with more marks, the text is put together in the browser


def idle_trace(bands: Sequence[Band], axis: Axis) -> Spec:
    """The background of the compute lanes, as long as each timeline: what no bar covers is idle time."""
    rows = [(band, rank) for band in bands for rank in range(band.timeline.n_ranks)]
    return {
        "type": "bar",
        "orientation": "h",
        "name": "idle",
        "y": [band.compute(rank) for band, rank in rows],
        "x": [axis.value(band.timeline.makespan) for band, _ in rows],
        "width": bands[0].thickness,
        "marker": {"color": style.IDLE},
        "hoverinfo": "skip",  # it lies under every bar, and would answer in place of some
    }


def is_dense(groups: Sequence[Groups]) -> bool:
    """Whether there are so many marks that single ones are seen only after zooming in."""
    return sum(len(marks) for found in groups for marks in found.values()) > MOST_HOVER_TEXTS


def bar_traces(bands: Sequence[Band], groups: Sequence[Groups], axis: Axis, labels: Labels) -> list[Spec]:
    """One trace per kind (and per chunk, where ranks hold several stages), over all bands."""
    keys = style.legend_keys(groups)
    dense = is_dense(groups)
    traces = []
    for rank, (group, chunk) in enumerate(keys):
        pairs = [
            (band, mark) for band, found in zip(bands, groups, strict=True) for mark in found.get((group, chunk), ())
        ]
        colour = style.colour(group, chunk)
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": style.legend_name(group, chunk, keys),
                "legendrank": 1001 + rank,
                **_places(pairs, axis, dense),
                "marker": _marker(colour, dense or _are_thin(pairs)),
                **labelled([mark for _, mark in pairs], axis, style.ink(colour), labels),
                **(_short_hover(pairs, axis) if dense else _full_hover(pairs, axis)),
            }
        )
    # Bars thinner than a pixel are drawn a pixel wide: forwards, the shorter, must not vanish under the backwards.
    return traces[::-1] if dense else traces


def _places(pairs: Sequence[tuple[Band, Mark]], axis: Axis, dense: bool) -> Spec:
    comm = pairs[0][1].event.lane == "comm"
    y = [band.comm(mark.event.rank) if comm else band.compute(mark.event.rank) for band, mark in pairs]
    base = [axis.value(mark.start) for _, mark in pairs]
    x = [axis.value(mark.length) for _, mark in pairs]
    width = Band.comm_thickness if comm else pairs[0][0].thickness
    pack = _packed if dense else list
    return {"y": pack(y), "base": pack(base), "x": pack(x), "width": width}


def _packed(values: Sequence[float], columns: int = 1) -> Spec:
    """Numbers as plotly's typed array: smaller than a list, and one line of a notebook's file in place of many."""
    whole = all(isinstance(value, int) for value in values)
    code, dtype = ("i", "i4") if whole and max(values) > 32767 else ("h", "i2") if whole else ("f", "f4")
    packed = array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    shape = {"shape": f"{len(values) // columns}, {columns}"} if columns > 1 else {}
    return {"dtype": dtype, "bdata": base64.b64encode(packed.tobytes()).decode(), **shape}


def _are_thin(pairs: Sequence[tuple[Band, Mark]]) -> bool:
    """Whether these are all-reduces of many small buckets: bars of about a pixel, one behind the other."""
    thin = [mark.length < band.timeline.makespan / 400 for band, mark in pairs if mark.event.kind == "COLLECTIVE"]
    return sum(thin) > len(pairs) / 2


def _marker(colour: str, plain: bool) -> Spec:
    # A white edge parts bars that touch; among thousands it would be all there is to see.
    return {"color": colour} if plain else {"color": colour, "line": {"color": style.PAPER, "width": 1}}


def _full_hover(pairs: Sequence[tuple[Band, Mark]], axis: Axis) -> Spec:
    texts = [style.hover(mark, axis.unit, axis.decimals) for _, mark in pairs]
    return {"hovertext": texts, "hovertemplate": "%{hovertext}<extra></extra>"}


def _short_hover(pairs: Sequence[tuple[Band, Mark]], axis: Axis) -> Spec:
    """The same text put together in the browser, for figures whose texts would take megabytes."""
    marks, symbol = [mark for _, mark in pairs], axis.unit.symbol
    first = marks[0].event
    ends = f"%{{base:.{axis.decimals}f}}–%{{x:.{axis.decimals}f}} {symbol}<extra></extra>"
    lengths = {axis.value(mark.length) for mark in marks}
    times = f"{number(lengths.pop())} {symbol}: {ends}" if len(lengths) == 1 else ends
    if first.lane == "comm":
        kinds = " or ".join(sorted({mark.event.kind.lower() for mark in marks}))
        data = _packed([value for mark in marks for value in (mark.event.rank, _index(mark.event.microbatch))], 2)
        return {
            "customdata": data,
            "hovertemplate": f"rank %{{customdata[0]}}, {kinds}, {times}",
        }
    data = _packed([_index(v) for mark in marks for v in (mark.event.microbatch, mark.event.stage)], 2)
    what = first.kind if first.microbatch is None else f"{first.kind}%{{customdata[0]}}"
    stage = "" if first.stage is None else " (stage %{customdata[1]})"
    # %{y} is the text of the row's tick, "rank 2"; %{x} is where the bar ends.
    return {"customdata": data, "hovertemplate": f"%{{y}}, {what}{stage}, {times}"}


def critical_trace(bands: Sequence[Band], axis: Axis) -> Spec:
    """An edge around every bar of the timelines' critical paths."""
    marks = [(band, mark) for band in bands for mark in style.critical_marks(band.timeline, band.lanes)]
    comm = [mark.event.lane == "comm" for _, mark in marks]
    return {
        "type": "bar",
        "orientation": "h",
        "name": "critical path",
        "legendrank": 1090,
        "y": [
            (band.comm if lane else band.compute)(mark.event.rank)
            for (band, mark), lane in zip(marks, comm, strict=True)
        ],
        "base": [axis.value(mark.start) for _, mark in marks],
        "x": [axis.value(mark.length) for _, mark in marks],
        "width": [Band.comm_thickness if lane else bands[0].thickness for lane in comm],
        "marker": {"color": "rgba(0,0,0,0)", "line": {"color": style.CRITICAL, "width": 2.5}},
        "hoverinfo": "skip",
    }


def _index(value: int | None) -> int:
    return -1 if value is None else value


def message_trace(bands: Sequence[Band], axis: Axis, shown: bool | str) -> Iterator[Spec]:
    """All messages as one trace of thin lines."""
    lines = [line for band in bands for line in message_lines(band)]
    if not lines or len(lines) > MOST_MESSAGES:
        return
    yield {
        "type": "scatter",
        "mode": "lines",
        "name": "message",
        "legendrank": 1100,
        "x": [x for line in lines for x in (axis.value(line.sent), axis.value(line.arrived), None)],
        "y": [y for line in lines for y in (line.begin, line.end, None)],
        "line": {"color": style.MESSAGE, "width": 1},
        "hoverinfo": "skip",
        **({} if drawn_at_once(lines, shown) else {"visible": "legendonly"}),
    }
