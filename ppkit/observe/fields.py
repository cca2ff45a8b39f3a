"""An event as a rank records it, before the timelines of all ranks are put together."""

from __future__ import annotations

from dataclasses import dataclass

Message = tuple[int, int, int, int, int]
"""What identifies a message at both of its ends: sender, receiver, tag, group, and its number among those."""

Exchange = tuple[tuple[int, ...], int, int]
"""What identifies a collective on all of its ranks: these, their group, and its number among the group's."""

NEVER_WAITED = "never waited for"
NEVER_FINISHED = "never finished"


@dataclass(slots=True)
class Row:
    """The fields of `ppkit.Event` without the rank; times are of the host's monotonic clock."""

    kind: str
    start: float
    end: float
    name: str
    stage: int | None = None
    microbatch: int | None = None
    peer: int | None = None
    tag: int | None = None
    nbytes: int = 0
    message: Message | None = None
    held_until: float | None = None
    note: str = ""
