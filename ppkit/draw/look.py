"""What may be asked of a drawing, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from ppkit.errors import TimelineError
from ppkit.timeline import Timeline
from ppkit.units import kind_of

if TYPE_CHECKING:
    from ppkit.memory import Memory

__all__ = ["Look", "check"]


@dataclass(frozen=True)
class Look:
    """The options of ``gantt``, which says what they mean."""

    title: str | None = None
    height: int | None = None
    labels: bool | str = "auto"
    messages: bool | str = "auto"
    critical: bool = False
    by_rank: bool = False
    memory: Memory | None = None


def check(timelines: Sequence[object], look: Look) -> None:
    """Raise TimelineError where there is nothing to draw, or something that can't be."""
    if not timelines:
        raise TimelineError("gantt() got no timeline; give it at least one: gantt(simulate(gpipe(4, 8)))")
    for position, value in enumerate(timelines, 1):
        if not isinstance(value, Timeline):
            raise TimelineError(f"argument {position} of gantt() is {_described(value)}")
    if look.title is not None and not isinstance(look.title, str):
        raise TimelineError(f"gantt(title={look.title!r}): it is a text", values={"title": look.title})
    height: Any = look.height
    if height is not None and not (isinstance(height, Real) and 10 <= float(height) < math.inf):
        raise TimelineError(f"gantt(height={height!r}): a number of pixels, 10 or more", values={"height": height})
    for name in ("labels", "messages"):
        value = getattr(look, name)
        if value not in (True, False, "auto"):
            raise TimelineError(f'gantt({name}={value!r}): it is True, False or "auto"', values={name: value})
    for name in ("critical", "by_rank"):
        if not isinstance(getattr(look, name), bool):
            value = getattr(look, name)
            raise TimelineError(f"gantt({name}={value!r}): it is True or False", values={name: value})
    units = dict.fromkeys(str(t.notes.get("unit", "seconds")) for t in timelines if isinstance(t, Timeline))
    if len(units) > 1:
        raise TimelineError(f"gantt() can't draw {' and '.join(units)} on one axis; draw each timeline by itself")
    _check_memory(timelines, look.memory)


def _check_memory(timelines: Sequence[object], memory: object) -> None:
    if memory is None:
        return
    if not hasattr(memory, "curves"):
        raise TimelineError(f"gantt(memory={memory!r}): it is what memory(timeline, costs) returns")
    if len(timelines) != 1 or timelines[0] != getattr(memory, "timeline", None):
        raise TimelineError(
            "gantt() draws memory under the one timeline that it is of: memory(timeline, costs).gantt()"
        )


def _described(value: object) -> str:
    kind = kind_of(value)
    if isinstance(value, (list, tuple)):
        return f"{kind}; write gantt(*timelines) to draw each timeline in it"
    if hasattr(value, "timeline"):
        return f"{kind}; give its .timeline"
    if hasattr(value, "stage_to_rank"):
        return f"{kind}, which has no times; give simulate(schedule)"
    return f"{kind}, not a Timeline"
