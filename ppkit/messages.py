"""Which messages a schedule needs between its ranks, and a schedule with them written into it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from ppkit.clock import activation_into, gradient_into
from ppkit.schedule import Action, Op, Schedule

__all__ = ["Channel", "add_messages", "channels"]


class Channel(NamedTuple):
    """What goes one way between two neighbouring stages on different ranks: activations or gradients."""

    stage: int  # where it is made
    to_stage: int  # where it is needed
    rank: int  # of stage
    to_rank: int  # of to_stage
    boundary: int  # the lower of the two stages
    compute: tuple[Op, ...]  # the operations that make it, and that need it
    send: Op
    receive: Op
    value: int  # the clock's number of micro-batch 0's


def channels(schedule: Schedule) -> Iterator[Channel]:
    """All channels of ``schedule``, from its first stage to its last."""
    ranks = schedule.stage_to_rank
    for low, high in pairwise(range(schedule.n_stages)):
        if ranks[low] != ranks[high]:
            up, down = activation_into(high), gradient_into(low)
            yield Channel(low, high, ranks[low], ranks[high], low, (Op.F,), Op.SEND_F, Op.RECV_F, up)
            if not schedule.forward_only:
                yield Channel(high, low, ranks[high], ranks[low], low, (Op.B, Op.I), Op.SEND_B, Op.RECV_B, down)


def add_messages(schedule: Schedule) -> Schedule:
    """The valid, compute-only ``schedule`` with a SEND and a RECV for each message; see ``with_comms``."""
    made = {(op, channel.stage): channel for channel in channels(schedule) for op in channel.compute}
    needed = {(op, channel.to_stage): channel for channel in channels(schedule) for op in channel.compute}
    # What is under way from one rank to another, in the order it is sent.
    links: dict[tuple[int, int], deque[Action]] = {}
    for action in (action for row in schedule.actions for action in row):
        if channel := made.get((action.op, action.stage)):
            receive = Action(channel.to_stage, channel.receive, action.microbatch)
            links.setdefault((channel.rank, channel.to_rank), deque()).append(receive)

    def row_with_messages(row: tuple[Action, ...]) -> Iterator[Action]:
        received: set[tuple[Op, int, int | None]] = set()
        for action in row:
            if channel := needed.get((action.op, action.stage)):
                needs = (channel.receive, action.stage, action.microbatch)
                while needs not in received:
                    # A link's messages come in the order they were sent: take the ones before it first.
                    first = links[channel.rank, channel.to_rank].popleft()
                    received.add((first.op, first.stage, first.microbatch))
                    yield first
            yield action
            if channel := made.get((action.op, action.stage)):
                yield Action(action.stage, channel.send, action.microbatch)

    return replace(schedule, actions=tuple(tuple(row_with_messages(row)) for row in schedule.actions))
