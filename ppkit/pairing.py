"""Whether the messages that a schedule spells out pair: made, sent, received and needed, in one order."""

from __future__ import annotations

from itertools import islice
from typing import NoReturn

from ppkit.messages import Channel, channels
from ppkit.schedule import Action, Op, Schedule
from ppkit.validate import Cell, fail, find

__all__ = ["check_messages"]

_Channels = dict[tuple[Op, int], Channel]
_Link = tuple[int, int]  # the rank that sends, the rank that receives


def check_messages(schedule: Schedule) -> None:
    """Raise ScheduleError unless the messages of ``schedule``, whose actions are right, pair in order.

    Without tags, two ranks' messages pair in the order they are sent and received: a difference swaps values
    of one shape silently.
    """
    every = list(channels(schedule))
    sends: _Channels = {(channel.send, channel.stage): channel for channel in every}
    receives: _Channels = {(channel.receive, channel.to_stage): channel for channel in every}
    makes: _Channels = {(op, channel.stage): channel for channel in every for op in channel.compute}
    needs: _Channels = {(op, channel.to_stage): channel for channel in every for op in channel.compute}
    sent: dict[_Link, list[int]] = {(channel.rank, channel.to_rank): [] for channel in every}
    received: dict[_Link, list[int]] = {link: [] for link in sent}
    for rank, row in enumerate(schedule.actions):
        made: set[int] = set()
        out: set[int] = set()
        got: set[int] = set()
        for position, action in enumerate(row):
            key, microbatch = (action.op, action.stage), action.microbatch or 0
            if action.op in _COMPUTE:
                channel = needs.get(key)
                if channel and channel.value + microbatch not in got:
                    _explain_no_receive(schedule, rank, position, channel)
                if channel := makes.get(key):
                    made.add(channel.value + microbatch)
            elif action.op in _SENDS:
                channel = sends.get(key) or _explain_no_peer(schedule, rank, position)
                value = channel.value + microbatch
                if value in out or value not in made:
                    _explain_send(schedule, rank, position, repeated=value in out)
                out.add(value)
                sent[rank, channel.to_rank].append(value)
            elif action.op in _RECEIVES:
                channel = receives.get(key) or _explain_no_peer(schedule, rank, position)
                value = channel.value + microbatch
                if value in got:
                    _explain_repeated(schedule, rank, position)
                got.add(value)
                received[channel.rank, rank].append(value)
        if unsent := made - out:
            value = min(unsent)
            channel = next(c for c in every if 0 <= value - c.value < schedule.n_microbatches)
            _explain_no_send(schedule, rank, channel, value - channel.value)
    # Every value was found made, sent, received and needed, once each: only the order can differ.
    for link, values in sent.items():
        if values != received[link]:
            number = next(n for n, pair in enumerate(zip(values, received[link], strict=True)) if len(set(pair)) > 1)
            _explain_swap(schedule, link, number)


_COMPUTE, _SENDS, _RECEIVES = (Op.F, Op.B, Op.I), (Op.SEND_F, Op.SEND_B), (Op.RECV_F, Op.RECV_B)


def _explain_no_peer(schedule: Schedule, rank: int, position: int) -> NoReturn:
    action = schedule.actions[rank][position]
    other = action.stage + (1 if action.op in (Op.SEND_F, Op.RECV_B) else -1)
    if 0 <= other < schedule.n_stages:
        what = f"is not a message: stages {action.stage} and {other} are both on rank {rank}. Remove it"
    else:
        end = "first" if other < 0 else "last"
        what = f"has nobody at its other end: stage {action.stage} is the {end}. Remove it"
    _fail(schedule, rank, position, what)


def _explain_send(schedule: Schedule, rank: int, position: int, *, repeated: bool) -> NoReturn:
    if repeated:
        _explain_repeated(schedule, rank, position)
    _fail(schedule, rank, position, "sends what has not been computed yet. Put it later")


def _explain_repeated(schedule: Schedule, rank: int, position: int) -> NoReturn:
    first = schedule.actions[rank].index(schedule.actions[rank][position])
    what = f"is repeated: position {first} has it already, and the message exists once. Remove one"
    _fail(schedule, rank, position, what, (rank, first))


def _explain_no_receive(schedule: Schedule, rank: int, position: int, channel: Channel) -> NoReturn:
    microbatch = schedule.actions[rank][position].microbatch
    receive = Action(channel.to_stage, channel.receive, microbatch)
    send = Action(channel.stage, channel.send, microbatch)
    if later := find(schedule, receive):
        what = f"needs {receive}, which comes only after it. Put the receive first"
        _fail(schedule, rank, position, what, later)
    if sent := find(schedule, send):
        what = f"needs what rank {channel.rank} sends ({send}), but no {receive} receives it. Add it before"
        _fail(schedule, rank, position, what, sent)
    what = f"needs a value from rank {channel.rank}, but there is neither {send} nor {receive}. Add both"
    _fail(schedule, rank, position, what)


def _explain_no_send(schedule: Schedule, rank: int, channel: Channel, microbatch: int) -> NoReturn:
    row = schedule.actions[rank]
    makers = [Action(channel.stage, op, microbatch) for op in channel.compute]
    position = next(position for position, action in enumerate(row) if action in makers)
    other = find(schedule, Action(channel.to_stage, channel.receive, microbatch))
    waits = f"{Action(channel.to_stage, channel.receive, microbatch)} on " if other else ""
    send = Action(channel.stage, channel.send, microbatch)
    what = f"makes what {waits}rank {channel.to_rank} waits for, but no {send} sends it. Add it after"
    _fail(schedule, rank, position, what, other)


def _explain_swap(schedule: Schedule, link: _Link, number: int) -> NoReturn:
    source, target = link
    at = _nth(schedule, source, target, _SENDS, number)
    to = _nth(schedule, target, source, _RECEIVES, number)
    send, receive = schedule.actions[source][at], schedule.actions[target][to]
    fail(
        schedule,
        f"message {number} from rank {source} to rank {target}: rank {source} sends {send}, but rank {target} "
        f"receives {receive}. Messages between two ranks pair in order, so these would swap. Send and receive "
        "in the same order",
        [(source, at), (target, to)],
        rank=target,
        action=receive,
    )


def _nth(schedule: Schedule, rank: int, peer: int, ops: tuple[Op, Op], number: int) -> int:
    """Position of the n-th send to, or receive from, ``peer``."""
    up = Op.SEND_F if Op.SEND_F in ops else Op.RECV_B  # those whose other end is the next stage
    positions = (
        position
        for position, action in enumerate(schedule.actions[rank])
        if action.op in ops and schedule.stage_to_rank[action.stage + (1 if action.op is up else -1)] == peer
    )
    return next(islice(positions, number, None))


def _fail(schedule: Schedule, rank: int, position: int, what: str, other: Cell | None = None) -> NoReturn:
    action = schedule.actions[rank][position]
    marks = [(rank, position)] + ([other] if other else [])
    fail(schedule, f"rank {rank}, position {position}: {action} {what}", marks, rank=rank, action=action)
