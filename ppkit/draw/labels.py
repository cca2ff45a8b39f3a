"""Which bars of a Gantt bear their text, and how large."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

from ppkit.draw.geometry import Axis
from ppkit.draw.style import Mark

__all__ = ["Labels", "choose_labels", "labelled"]

PLOT_WIDTH = 790  # pixels of the bars in a figure 900 wide: decides which texts fit
SIZE, COMM_SIZE = 13, 9


class Labels(Enum):
    """What to write on bars."""

    NONE = "nothing"
    FITTING = "the texts that fit"
    ON_ZOOM = "all texts of the compute lane; the browser hides those that do not fit until one zooms in"
    ALL = "all texts, shrunk to fit"


def choose_labels(marks: Iterable[Mark], axis: Axis, wanted: bool | str) -> Labels:
    """What to write, by the ``labels`` argument of ``gantt``; ``"auto"``: what fits, unless that is too little."""
    if wanted != "auto":
        return Labels.ALL if wanted else Labels.NONE
    fits = [_fits(mark, axis, SIZE) for mark in marks if mark.event.microbatch is not None and not _comm(mark)]
    return Labels.ON_ZOOM if 2 * sum(fits) < len(fits) else Labels.FITTING


def labelled(marks: Sequence[Mark], axis: Axis, ink: str, labels: Labels) -> dict[str, Any]:
    """The part of a trace that puts text on its bars; empty if none bears any."""
    size = COMM_SIZE if _comm(marks[0]) else SIZE
    if labels is Labels.NONE or (labels is Labels.ON_ZOOM and _comm(marks[0])):
        return {}
    texts = [mark.text if labels is not Labels.FITTING or _fits(mark, axis, size) else "" for mark in marks]
    if not any(texts):
        return {}
    return {
        "text": texts,
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"color": ink, "size": size},
    }


def _comm(mark: Mark) -> bool:
    return mark.event.lane == "comm"


def _fits(mark: Mark, axis: Axis, size: int) -> bool:
    return bool(axis.span) and mark.length / axis.span * PLOT_WIDTH >= 0.6 * size * len(mark.text) + 7
