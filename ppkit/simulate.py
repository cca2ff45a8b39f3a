"""What a schedule would take on ideal devices: stated costs in, a timeline out."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ppkit.clock import Walk, rules, walk
from ppkit.costs import Costs, Reduction
from ppkit.errors import CostsError, ScheduleError
from ppkit.event import Event
from ppkit.messages import channels
from ppkit.reduce import bucket_times, completed_by
from ppkit.schedule import Op, Schedule
from ppkit.simulate_ddp import bucket_label
from ppkit.timeline import Timeline
from ppkit.validate import check_contents, check_waits

__all__ = ["Costs", "simulate"]

_NAMES = {
    Op.F: ("F", "forward"),
    Op.B: ("B", "backward"),
    Op.I: ("I", "input_grad"),
    Op.W: ("W", "weight_grad"),
}


_DEFAULT = Costs()


def simulate(schedule: Schedule, costs: Costs = _DEFAULT) -> Timeline:
    """When everything in ``schedule`` would happen on devices and links that take exactly ``costs``.

    Every rank runs its actions in the schedule's order, each as soon as the rank is free and what it needs
    has arrived. Without SEND and RECV in it, a value is sent as soon as it is made and taken when it is needed.
    A REDUCE starts when its turn comes in its rank's order and the one before it is done, and runs beside the
    computation: a rank goes on at once, but the step ends only when the last one is done. With
    ``costs.bucket_bytes`` it is several all-reduces, one after another; and where nothing but messages comes
    between the stage's last B or W and its REDUCE, each starts in there, when its part of the gradients is
    complete: after the same part of that B or W, as `ppkit.hybrid` does it.

    Args:
        schedule: compute-only or with messages.
        costs: seconds of each operation and message.

    Returns:
        A timeline from second 0, its source ``"simulated"``. A SEND lasts from sent to arrived, and a RECV
        from when its rank waits for it, though not before it is sent, to when the rank has it: while it waits,
        a rank's compute lane is idle. A REDUCE is a COLLECTIVE, or one for each bucket. An F's activation is held
        until the end of its B or I, in a schedule that is forward only to its own end.

    Raises:
        ScheduleError: the schedule is not valid, or its ranks wait for each other for ever.
        CostsError: a cost has not one value for each stage.
    """
    if not isinstance(schedule, Schedule):
        raise ScheduleError(f"simulate needs a Schedule, such as one_f_one_b(4, 8); got {schedule!r}")
    if not isinstance(costs, Costs):
        raise CostsError(f"costs must be a Costs, such as Costs(forward=1.0, backward=2.0); got {costs!r}")
    with _no_collection():
        return _simulate(schedule, costs)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector still: beside torch it would walk a million objects at every few thousand events."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _simulate(schedule: Schedule, costs: Costs) -> Timeline:
    check_contents(schedule)
    transfer = costs.transfer(schedule)
    table = rules(schedule, costs.seconds(schedule.n_stages), transfer)
    done = walk(schedule, table)
    check_waits(schedule, done)
    links = _links(schedule, transfer, costs.nbytes(schedule.n_stages))
    events: list[Event] = []
    reductions = costs.reductions(schedule.n_stages)
    for rank in range(schedule.n_ranks):
        events += _events_of(schedule, rank, done, *links)
        events += _reductions_of(schedule, rank, done, reductions)
    return Timeline(tuple(events), "simulated", schedule.n_ranks, schedule.name)


class _Link(NamedTuple):
    """One end of the messages between two stages on different ranks; micro-batch m's are numbered + m."""

    peer: int  # the rank at the other end
    value: int  # the clock's number
    seconds: float
    nbytes: int
    number: int


# For the operation that receives (or sends), for its stage.
_Links = dict[Op, dict[int, _Link]]


def _links(schedule: Schedule, transfer: Sequence[float], nbytes: Sequence[int]) -> tuple[_Links, _Links]:
    """The links by who receives and by who sends; compute does both where the schedule has no messages."""
    receives: _Links = {op: {} for op in Op}
    sends: _Links = {op: {} for op in Op}
    comms = schedule.has_comms
    for count, channel in enumerate(channels(schedule)):
        number = count * schedule.n_microbatches
        link = (channel.value, transfer[channel.boundary], nbytes[channel.boundary], number)
        for op in (channel.receive,) if comms else channel.compute:
            receives[op][channel.to_stage] = _Link(channel.rank, *link)
        for op in (channel.send,) if comms else channel.compute:
            sends[op][channel.stage] = _Link(channel.to_rank, *link)
    return receives, sends


def _events_of(
    schedule: Schedule,
    rank: int,
    done: Walk,
    receives: _Links,
    sends: _Links,
) -> Iterator[Event]:
    """What ``rank`` does, in its order: receive, compute, send."""
    row, ends, sent = schedule.actions[rank], done.ends[rank], done.sent
    last = (Op.F,) if schedule.forward_only else (Op.B, Op.I)
    freed = {(a.stage, a.microbatch): end for a, end in zip(row, ends, strict=True) if a.op in last}
    free = 0.0  # when the rank was ready for this action
    for action, start, end in zip(row, done.starts[rank], ends, strict=True):
        stage, op, part = action.stage, action.op, action.microbatch
        if part is None:  # REDUCE: the clock lets nobody wait for it
            continue
        if link := receives[op].get(stage):
            peer, value, seconds, nbytes, number = link
            left = sent[value + part]
            begin, arrival = max(free, left), max(free, left + seconds)
            yield Event(rank, "RECV", begin, arrival, stage, part, "recv", peer, None, nbytes, number + part)
        if name := _NAMES.get(op):
            held = freed[stage, part] if op is Op.F else None
            yield Event(rank, name[0], start, end, stage, part, name[1], None, None, 0, None, held)
        if link := sends[op].get(stage):
            peer, _, seconds, nbytes, number = link
            yield Event(rank, "SEND", end, end + seconds, stage, part, "send", peer, None, nbytes, number + part)
        free = end


def _reductions_of(
    schedule: Schedule, rank: int, done: Walk, reductions: Sequence[Sequence[Reduction]]
) -> Iterator[Event]:
    """The all-reduces of ``rank``, one at a time, beside what it computes."""
    row, starts, ends = schedule.actions[rank], done.starts[rank], done.ends[rank]
    due = [at for at, action in enumerate(row) if action.op is Op.REDUCE]
    under = completed_by(row) if due else {}  # the backward that a stage's buckets may start in
    free = 0.0
    for at in due:
        stage = row[at].stage
        last = under.get(stage, at)
        times = bucket_times(reductions[stage], starts[last], ends[last], starts[at], free)
        for (begin, free), (_, _, sent, number, nbytes) in zip(times, reductions[stage], strict=True):
            name = "all_reduce" if number is None else bucket_label(number, nbytes, f"stage {stage}")
            yield Event(rank, "COLLECTIVE", begin, free, stage, None, name, nbytes=sent)
