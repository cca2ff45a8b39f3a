"""Finds messages that were on their way when their sender's function returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppkit.launch.board import Board
from ppkit.launch.frames import Frame
from ppkit.launch.wording import sends
from ppkit.observe.fields import NEVER_WAITED

if TYPE_CHECKING:
    from ppkit.launch.watch import RankLog


def lost_sends(logs: Sequence[RankLog], board: Board) -> dict[int, Frame]:
    """Return, by the rank that waits for it, the line of an isend that its rank has returned without waiting for.

    gloo lets go of a message when nobody holds what `isend` returned, received or not.

    Args:
        logs: what is known of each rank.
        board: of the run.
    """
    found: dict[int, Frame] = {}
    for rank, log in enumerate(logs):
        call = log.pending
        if call is None or call["peer"] is None or sends(call) or logs[call["peer"]].result is None:
            continue
        received = {row.message for row in log.rows if row.kind == "RECV"}
        for row in logs[call["peer"]].rows:
            message = row.message
            if row.note != NEVER_WAITED or (row.kind, row.peer, row.tag) != ("SEND", rank, call["tag"]):
                continue
            stamp = None if message is None or message in received else board.send(*message)
            line = None if stamp is None else board.frame(call["peer"], stamp[1])
            if line is not None:
                found.setdefault(rank, line)
    return found
