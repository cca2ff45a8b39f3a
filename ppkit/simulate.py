"""What a schedule would take on ideal devices: stated costs in, a timeline out."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

from ppkit.clock import Walk, rules, walk
from ppkit.errors import CostsError, ScheduleError
from ppkit.event import Event
from ppkit.messages import channels
from ppkit.schedule import Op, Schedule
from ppkit.timeline import Timeline
from ppkit.validate import check_contents, check_waits

__all__ = ["Costs", "simulate"]

PerStage: TypeAlias = "float | Sequence[float]"

_NAMES = {
    Op.F: ("F", "forward"),
    Op.B: ("B", "backward"),
    Op.I: ("I", "input_grad"),
    Op.W: ("W", "weight_grad"),
}


@dataclass(frozen=True)
class Costs:
    """How long operations and messages take: durations in seconds, each a scalar or one value for each stage.

    Args:
        forward: seconds of an F.
        backward: seconds of a B, the full backward.
        input_grad: seconds of an I. Given together with ``weight_grad``, their sum is the full backward in
            place of ``backward``; left out together, each is half of it.
        weight_grad: seconds of a W.
        latency: seconds from a message's start to its arrival, however small it is.
        bandwidth: bytes per second of a link; None: without limit.
        activation_bytes: bytes of the activation that leaves a stage, a scalar or one value for each stage
            (the last one's is not used); the gradient that comes back is as large.

    A message takes ``latency + bytes / bandwidth`` between two ranks, no time within one. Sends don't block,
    and the messages of a link don't queue: two that start together arrive together.

    Raises:
        CostsError: a value is not a finite number of at least 0 (``bandwidth``: more than 0).
    """

    forward: PerStage = 1.0
    backward: PerStage = 2.0
    input_grad: PerStage | None = None
    weight_grad: PerStage | None = None
    latency: float = 0.0
    bandwidth: float | None = None
    activation_bytes: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.name in ("latency", "bandwidth"):
                checked: Any = _number(field.name, value, value)
            else:
                checked = _per_stage(field.name, value)
            object.__setattr__(self, field.name, checked)
        if self.bandwidth == 0:
            raise CostsError("bandwidth must be more than 0 bytes per second, or None for no limit; got 0")
        if (self.input_grad is None) != (self.weight_grad is None):
            given, absent = ("input_grad", "weight_grad")[:: 1 if self.weight_grad is None else -1]
            raise CostsError(
                f"{given}={getattr(self, given)!r} is given without {absent}: give both, whose sum is then "
                "the full backward, or neither, which makes each half of backward",
                values={given: getattr(self, given)},
            )

    def seconds(self, n_stages: int) -> dict[Op, tuple[float, ...]]:
        """How long each operation takes, for each of ``n_stages`` stages; communication by itself takes none.

        Raises:
            CostsError: a parameter has not one value for each stage.
        """
        free = (0.0,) * n_stages
        table = dict.fromkeys(Op, free)
        table[Op.F] = self._values("forward", n_stages)
        if self.input_grad is None:
            table[Op.B] = self._values("backward", n_stages)
            table[Op.I] = table[Op.W] = tuple(seconds / 2 for seconds in table[Op.B])
        else:
            self._values("backward", n_stages)  # a wrong length is a mistake even where it is not used
            table[Op.I] = self._values("input_grad", n_stages)
            table[Op.W] = self._values("weight_grad", n_stages)
            table[Op.B] = tuple(i + w for i, w in zip(table[Op.I], table[Op.W], strict=True))
        return table

    def nbytes(self, n_stages: int) -> tuple[int, ...]:
        """Bytes of a message between each of ``n_stages`` stages and the next; likewise CostsError."""
        return tuple(int(size) for size in self._values("activation_bytes", n_stages))

    def transfer(self, schedule: Schedule) -> tuple[float, ...]:
        """Seconds of a message between each stage of ``schedule`` and the next; 0 within a rank."""
        ranks = schedule.stage_to_rank
        sizes = self.nbytes(schedule.n_stages)
        over = [ranks[stage] != ranks[stage + 1] for stage in range(schedule.n_stages - 1)] + [False]
        rate = self.bandwidth or math.inf
        return tuple(self.latency + size / rate if far else 0.0 for size, far in zip(sizes, over, strict=True))

    def _values(self, name: str, n_stages: int) -> tuple[float, ...]:
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return (value,) * n_stages
        if len(value) != n_stages:
            raise CostsError(
                f"{name} needs one value, or one for each of the {n_stages} stages; got {len(value)}: {value!r}",
                values={name: value, "n_stages": n_stages},
            )
        return value


def _per_stage(name: str, value: Any) -> float | tuple[float, ...]:
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and getattr(value, "shape", None) != ():
        return tuple(_number(name, item, value) for item in value)
    return _number(name, value, value)


def _number(name: str, item: Any, value: Any) -> float:
    """``item``, one of ``value``, as a float; CostsError if it cannot be a duration or a size."""
    try:
        number = math.nan if isinstance(item, (str, bytes, bool)) else float(item)
    except (TypeError, ValueError):
        number = math.nan
    whole = name != "activation_bytes" or number.is_integer()
    if not (0 <= number < math.inf and whole):
        what = "whole number" if name == "activation_bytes" else "finite number"
        among = "" if item is value else f" in {value!r}"
        raise CostsError(f"{name} must be a {what} of at least 0; got {item!r}{among}", values={name: value})
    return number


def simulate(schedule: Schedule, costs: Costs = Costs()) -> Timeline:
    """When everything in ``schedule`` would happen on devices and links that take exactly ``costs``.

    Every rank runs its actions in the schedule's order, each as soon as the rank is free and what it needs
    has arrived. Without SEND and RECV in it, a value is sent as soon as it is made and taken when it is needed.
    REDUCE takes no time.

    Args:
        schedule: compute-only or with messages.
        costs: seconds of each operation and message.

    Returns:
        A timeline from second 0, its source ``"simulated"``. A SEND lasts from sent to arrived, and a RECV
        from when its rank waits for it, though not before it is sent, to when the rank has it: while it waits,
        a rank's compute lane is idle. An F's activation is held until the end of its B or I.

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
    for rank in range(schedule.n_ranks):
        events += _events_of(schedule, rank, done, *links)
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


def _events_of(schedule: Schedule, rank: int, done: Walk, receives: _Links, sends: _Links) -> Iterator[Event]:
    """What ``rank`` does, in its order: receive, compute, send."""
    row, ends, sent = schedule.actions[rank], done.ends[rank], done.sent
    freed = {(a.stage, a.microbatch): end for a, end in zip(row, ends, strict=True) if a.op in (Op.B, Op.I)}
    free = 0.0  # when the rank was ready for this action
    for action, start, end in zip(row, done.starts[rank], ends, strict=True):
        stage, op, part = action.stage, action.op, action.microbatch
        if part is None:  # costs say nothing of REDUCE: it is shown where it stands
            yield Event(rank, "COLLECTIVE", start, end, stage, None, "all_reduce")
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
