"""The picture below an error: what the ranks did until it came."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ppkit.observe.fields import NEVER_FINISHED

if TYPE_CHECKING:
    from ppkit.timeline import Timeline


_due: list[Timeline] = []  # IPython may ask twice for the lines of an error


def show_below(timeline: Timeline) -> None:
    """Draw a timeline below the error that the running cell is about to show; nothing where no notebook runs."""
    ipython: Any = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    if not hasattr(shell, "kernel") or not len(timeline) or any(other is timeline for other in _due):
        return  # a terminal has no kernel

    def draw(*_: object) -> None:
        shell.events.unregister("post_run_cell", draw)
        _due.remove(timeline)
        ipython.display.display(replace(timeline, name=_title(timeline)))

    _due.append(timeline)
    shell.events.register("post_run_cell", draw)


def _title(timeline: Timeline) -> str:
    unfinished = [f"{event.label} on rank {event.rank}" for event in timeline if event.note == NEVER_FINISHED]
    return timeline.name + (f", never finished: {', '.join(unfinished)}" if unfinished else "")
