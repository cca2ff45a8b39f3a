"""The columns of an event as a rank records it."""

from __future__ import annotations

from typing import Any

Row = list[Any]
"""An event before timelines are put together; its message is still (sender, receiver, tag, number)."""

FIELDS = (
    "kind",
    "start",
    "end",
    "stage",
    "microbatch",
    "name",
    "peer",
    "tag",
    "nbytes",
    "message",
    "held_until",
    "note",
)
