"""One optimizer step cut out of a timeline."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from ppkit.errors import TimelineError
from ppkit.event import Event
from ppkit.timeline import Timeline
from ppkit.values import whole

__all__ = ["step"]


def step(timeline: Timeline, n: int, *, clip: bool) -> Timeline:
    """Optimizer step ``n`` of the timeline, moved to start at zero; see ``Timeline.step``."""
    asked = whole(n)
    if asked is None:
        raise TimelineError(f"step({n!r}): it is a whole number, the first step is 0", values={"step": n})
    index = asked + timeline.n_steps if asked < 0 else asked
    if not 0 <= index < timeline.n_steps:
        steps = f"steps 0 to {timeline.n_steps - 1}" if timeline.n_steps else "no optimizer step (no OPTIM event)"
        raise TimelineError(f"no step {n}: the timeline has {steps}", values={"step": n})
    kept: list[Event] = []
    for row in map(timeline.of_rank, range(timeline.n_ranks)):
        optims = [event for event in row if event.kind == "OPTIM"]
        ends = [event.end for event in optims]
        # An OPTIM event belongs to the step that it ends, even if it took no time.
        own = {id(event): number for number, event in enumerate(optims)}
        kept += [e for e in row if own.get(id(e), bisect_right(ends, e.start)) == index]
    return replace(timeline, events=tuple(_clipped(kept) if clip else kept)).shifted()


def _clipped(events: list[Event]) -> list[Event]:
    """The events from the start of the first computation on."""
    begin = min(event.start for event in events if event.lane == "compute")
    return [e._replace(start=max(e.start, begin)) for e in events if e.end > begin or e.start >= begin]
