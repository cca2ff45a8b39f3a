"""What operations, messages and memory cost: the numbers that a simulation takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeAlias

from ppkit.errors import CostsError
from ppkit.schedule import Op, Schedule, check_count
from ppkit.values import listed, real

__all__ = ["Costs", "PerStage", "Reduction"]

PerStage: TypeAlias = "float | Sequence[float]"
Sizes: TypeAlias = "int | Sequence[int]"


class Reduction(NamedTuple):
    """One all-reduce of gradients of a stage: all of them, or a bucket."""

    complete: float  # the part of the stage's last backward after which these gradients are there
    seconds: float
    sent: int  # bytes, by each rank
    bucket: int | None  # its number; None: all at once
    nbytes: float  # of these gradients


@dataclass(frozen=True, repr=False)
class Costs:
    """What operations and messages take: seconds and bytes, most of them a scalar or one value for each stage.

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
        n_replicas: data-parallel replicas of each stage, whose gradients a ``REDUCE`` sums.
        reduce_seconds: seconds of a ``REDUCE``; left out: what a ring all-reduce takes on these links.
        bucket_bytes: gradients are reduced in buckets of so many bytes, under the stage's last backward too; left
            out: all of a stage's at once, after it.
        parameter_bytes: bytes of a stage's parameters.
        gradient_bytes: bytes of their gradients; left out: as many as of the parameters.
        optimizer_bytes: bytes of the optimizer's state: for Adam two numbers a parameter, for plain SGD none.
        stored_bytes: bytes that an F keeps for its B or I; left out: ``activation_bytes``.
        leftover_bytes: bytes that an I leaves for its W; left out: ``stored_bytes``. (The zero-bubble paper's
            M_B and M_W are the two for a transformer layer, and nearly equal.)

    A message takes ``latency + bytes / bandwidth`` between two ranks, no time within one. Sends don't block,
    and the messages of a link don't queue: two that start together arrive together. A ring all-reduce among n
    replicas takes 2(n−1) such steps with 1/n of the gradients each: 2(n−1)·latency + 2(n−1)/n · bytes / bandwidth.

    Raises:
        CostsError: a value is not a finite number of at least 0 (``bandwidth``: more than 0; sizes and counts:
            whole; ``n_replicas`` and ``bucket_bytes``: of at least 1).
    """

    forward: PerStage = 1.0
    backward: PerStage = 2.0
    input_grad: PerStage | None = None
    weight_grad: PerStage | None = None
    latency: float = 0.0
    bandwidth: float | None = None
    activation_bytes: Sizes = 0
    n_replicas: int = 1
    reduce_seconds: PerStage | None = None
    bucket_bytes: int | None = None
    parameter_bytes: Sizes = 0
    gradient_bytes: Sizes | None = None
    optimizer_bytes: Sizes = 0
    stored_bytes: Sizes | None = None
    leftover_bytes: Sizes | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.name in _SCALARS:
                checked: Any = _number(field.name, value, value)
            else:
                checked = _per_stage(field.name, value)
            object.__setattr__(self, field.name, checked)
        object.__setattr__(self, "n_replicas", int(self.n_replicas))
        if (self.input_grad is None) != (self.weight_grad is None):
            given, absent = ("input_grad", "weight_grad")[:: 1 if self.weight_grad is None else -1]
            raise CostsError(
                f"{given}={getattr(self, given)!r} is given without {absent}: give both, whose sum is then "
                "the full backward, or neither, which makes each half of backward",
                values={given: getattr(self, given)},
            )

    def __repr__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = (f"{f.name}={given[f.name]!r}" for f in fields(self) if f.name in _ALWAYS or given[f.name] != f.default)
        return f"Costs({', '.join(shown)})"

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
        return self.sizes("activation_bytes", n_stages)

    def sizes(self, name: str, n_stages: int) -> tuple[int, ...]:
        """Bytes of one of the parameters that end in ``_bytes``, for each of ``n_stages``; likewise CostsError."""
        while getattr(self, name) is None:
            name = _LEFT_OUT[name]
        return tuple(int(size) for size in self._values(name, n_stages))

    def reduce(self, n_stages: int) -> tuple[tuple[float, int], ...]:
        """For each of ``n_stages``: seconds of its ``REDUCE``, and bytes that a rank sends in it; CostsError too."""
        steps, n, rate = 2 * (self.n_replicas - 1), self.n_replicas, self.bandwidth or math.inf
        sizes = self.sizes("gradient_bytes", n_stages)
        sent = [steps * size / n for size in sizes]
        if self.reduce_seconds is None:
            seconds = tuple(steps * self.latency + size / rate for size in sent)
        else:
            seconds = self._values("reduce_seconds", n_stages)
        return tuple(zip(seconds, map(round, sent), strict=True))

    def reductions(self, n_stages: int) -> tuple[tuple[Reduction, ...], ...]:
        """For each of ``n_stages`` the all-reduces that its ``REDUCE`` is, in their order; CostsError too.

        A backward completes a stage's gradients evenly, byte by byte, so that the first of four equal buckets is full
        after a quarter of it. The last bucket may be smaller than the others.
        """
        every = list(zip(self.sizes("gradient_bytes", n_stages), self.reduce(n_stages), strict=True))
        found = {one: tuple(self._buckets(*one)) for one in set(every)}  # most stages are alike
        return tuple(found[one] for one in every)

    def _buckets(self, nbytes: int, whole: tuple[float, int]) -> Iterator[Reduction]:
        seconds, sent = whole
        if self.bucket_bytes is None or not nbytes:
            yield Reduction(1.0, seconds, sent, None, nbytes)
            return
        latency = 2 * (self.n_replicas - 1) * self.latency if self.reduce_seconds is None else 0.0  # of each bucket
        for number in range(math.ceil(nbytes / self.bucket_bytes)):
            end = min((number + 1) * self.bucket_bytes, nbytes)
            size = end - number * self.bucket_bytes
            share = size / nbytes
            own = latency + (seconds - latency) * share
            yield Reduction(end / nbytes, own, round(sent * share), number, size)

    def transfer(self, schedule: Schedule) -> tuple[float, ...]:
        """Seconds of a message between each stage of ``schedule`` and the next; 0 within a rank."""
        ranks = schedule.stage_to_rank
        sizes = self.nbytes(schedule.n_stages)
        over = [ranks[stage] != ranks[stage + 1] for stage in range(schedule.n_stages - 1)] + [False]
        return tuple(self.transfer_seconds(size) if far else 0.0 for size, far in zip(sizes, over, strict=True))

    def transfer_seconds(self, nbytes: float) -> float:
        """Seconds of a message of so many bytes between two ranks."""
        return self.latency + nbytes / (self.bandwidth or math.inf)

    def per_chunk(self, n_chunks: int) -> Costs:
        """What a chunk costs where every stage is cut into so many equal ones, as interleaved schedules do.

        A chunk takes its share of a stage's seconds and holds its share of the bytes, rounded up; a message stays
        as large as it was, and so does what an F stores if ``stored_bytes`` is left out.

        Args:
            n_chunks: chunks a stage; 2 for ``zero_bubble_v``.

        Raises:
            CostsError: a parameter has one value for each stage: say yourself what each chunk takes.
            ScheduleError: ``n_chunks`` is not a whole number of at least 1.
        """
        n = check_count("n_chunks", n_chunks)
        shares: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                raise CostsError(
                    f"per_chunk() cuts stages that cost the same, but {field.name} has a value for each of "
                    f"{len(value)}: give Costs one for each of the {n * len(value)} chunks instead",
                    values={field.name: value},
                )
            if value is not None and field.name not in _WHOLE:
                shares[field.name] = math.ceil(value / n) if field.name.endswith("_bytes") else value / n
        return replace(self, **shares)

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


# What a chunk has as much of as a whole stage.
_WHOLE = ("latency", "bandwidth", "activation_bytes", "n_replicas", "bucket_bytes")

_SCALARS = ("latency", "bandwidth", "n_replicas", "bucket_bytes")

_ALWAYS = ("forward", "backward")  # what every simulation uses; the rest is shown where it is not the default

# What a size that is left out is like.
_LEFT_OUT = {"gradient_bytes": "parameter_bytes", "leftover_bytes": "stored_bytes", "stored_bytes": "activation_bytes"}


# Where 0 won't do either, what will.
_ABOVE_ZERO = {
    "bandwidth": "a finite number of bytes per second above 0, or None for no limit",
    "n_replicas": "a whole number of at least 1: the pipeline itself is one",
    "bucket_bytes": "a whole number of at least 1, or None to reduce a stage at once",
}


def _per_stage(name: str, value: Any) -> float | tuple[float, ...]:
    several = listed(value)
    return _number(name, value, value) if several is None else tuple(_number(name, item, value) for item in several)


def _number(name: str, item: Any, value: Any) -> float:
    """``item``, one of ``value``, as a float; CostsError if it cannot be a duration or a size."""
    number = real(item)
    counts = name.endswith("_bytes") or name == "n_replicas"
    enough = number > 0 if name in _ABOVE_ZERO else number >= 0
    if not (enough and number < math.inf and (not counts or number.is_integer())):
        what = _ABOVE_ZERO.get(name) or f"a {'whole' if counts else 'finite'} number of at least 0"
        among = "" if item is value else f" in {value!r}"
        raise CostsError(f"{name} must be {what}; got {item!r}{among}", values={name: value})
    return number
