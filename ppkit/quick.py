"""What a pipeline's step takes and holds, without its events: for the planner, which asks for hundreds of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from ppkit.builders import gpipe, one_f_one_b
from ppkit.costs import Costs
from ppkit.interleaved import interleaved_1f1b
from ppkit.reduce import bucket_times
from ppkit.schedule import Op, Schedule
from ppkit.zero_bubble import zero_bubble_h1

__all__ = ["SCHEDULES", "build", "forget", "peak_bytes", "step_seconds"]

SCHEDULES: dict[str, Callable[[int, int, int], Schedule]] = {
    "1F1B": lambda p, m, _: one_f_one_b(p, m),
    "GPipe": lambda p, m, _: gpipe(p, m),
    "interleaved 1F1B": interleaved_1f1b,
    "ZB-H1": lambda p, m, _: zero_bubble_h1(p, m),
}
"""Builders by name: of ranks, micro-batches, and chunks that a rank's layers are cut in (where not: 1)."""


@lru_cache(maxsize=64)
def build(name: str, n_ranks: int, n_microbatches: int, n_chunks: int) -> Schedule:
    """The schedule of a name; kept, since many ways of training share it."""
    return SCHEDULES[name](n_ranks, n_microbatches, n_chunks)


_MANY = 4096  # micro-batches on one device, after which no sum is made of them one by one


class _Last(NamedTuple):
    """When the last backward of each stage, or its weight half, starts and ends."""

    starts: Sequence[float]
    ends: Sequence[float]


def step_seconds(name: str, n_ranks: int, n_microbatches: int, n_chunks: int, costs: Costs) -> float:
    """The makespan of ``simulate(schedule.with_reduce(), costs)``, without the events.

    To the last bit, but for thousands of micro-batches on one device.

    Args:
        name: one of `SCHEDULES`.
        n_ranks: of the pipeline.
        n_microbatches: of a step.
        n_chunks: of a rank's layers; 1 but for the interleaved schedule.
        costs: of each stage; all-reduces are counted if it has more than one replica.
    """
    n_stages = n_ranks * n_chunks
    last = _LAST[name](n_ranks, n_microbatches, n_chunks, costs)
    end = max(last.ends)
    if costs.n_replicas == 1:
        return end
    free = [0.0] * n_ranks  # when a rank's link is: its stages are reduced in the order in which they end
    reductions = costs.reductions(n_stages)
    for stage in sorted(range(n_stages), key=last.ends.__getitem__):
        rank, begin, due = stage % n_ranks, last.starts[stage], last.ends[stage]
        for _, over in bucket_times(reductions[stage], begin, due, due, free[rank]):
            free[rank] = over
    return max(end, *free)


def _times(costs: Costs, p: int) -> tuple[dict[Op, tuple[float, ...]], list[float]]:
    """Seconds of each operation, and of a message between each stage and the next."""
    return costs.seconds(p), [costs.transfer_seconds(nbytes) for nbytes in costs.nbytes(p)]


def _all_then_all(p: int, m: int, _: int, costs: Costs) -> _Last:
    """GPipe: in both directions a micro-batch is done once the one before it and the neighbour's are."""
    seconds, link = _times(costs, p)
    forward, backward = seconds[Op.F], seconds[Op.B]
    there = [0.0] * m  # when each micro-batch's value has come to the stage
    free = []
    for r in range(p):
        now = 0.0
        for i in range(m):
            now = max(now, there[i]) + forward[r]
            there[i] = now + link[r]
        free.append(now)
    there, starts, ends = [0.0] * m, [0.0] * p, [0.0] * p
    for r in reversed(range(p)):
        now = free[r]
        for i in range(m):
            starts[r] = max(now, there[i])
            now = starts[r] + backward[r]
            there[i] = now + link[r - 1]
        ends[r] = now
    return _Last(starts, ends)


def _in_turns(p: int, m: int, _: int, costs: Costs, halves: bool = False) -> _Last:
    """1F1B, and ZB-H1, which is 1F1B of F and I with a W after each, on rank r of r micro-batches before."""
    seconds, link = _times(costs, p)
    forward, backward, weights = seconds[Op.F], seconds[Op.I if halves else Op.B], seconds[Op.W]
    if p == 1 and m > _MANY and not halves:
        end = m * (forward[0] + backward[0])
        return _Last([end - backward[0]], [end])
    warm_up = [min(p - 1 - r, m) for r in range(p)]
    free, starts = [0.0] * p, [0.0] * p
    there: list[list[float]] = [[0.0] * m]  # for each stage, when its inputs are there
    for r in range(p):
        there.append([])
        for i in range(warm_up[r]):
            free[r] = max(free[r], there[r][i]) + forward[r]
            there[r + 1].append(free[r] + link[r])
    for i in range(m):
        for r in range(max(0, p - m + i), p):  # those that have a forward left
            free[r] = max(free[r], there[r][warm_up[r] + i]) + forward[r]
            there[r + 1].append(free[r] + link[r])
        back = 0.0
        for r in reversed(range(p)):
            starts[r] = max(free[r], back)
            free[r] = starts[r] + backward[r]
            back = free[r] + link[r - 1]
            if halves and i >= r:
                starts[r], free[r] = free[r], free[r] + weights[r]
    for r in range(p if halves else 0):
        for _ in range(min(r, m)):
            starts[r], free[r] = free[r], free[r] + weights[r]
    return _Last(starts, free)


def _walked(p: int, m: int, n_chunks: int, costs: Costs) -> _Last:
    """Interleaved: every action in turn, each as soon as its rank is free and its value is there."""
    n = p * n_chunks
    seconds, link = _times(costs, n)
    if p == 1:
        link = [0.0] * n  # from chunk to chunk on one rank
    # A slot is an operation of a stage: F of stage s is s, its B is n + s.
    takes = [*seconds[Op.F], *seconds[Op.B]]
    delay = [*link, 0.0, *link]  # of the value that it makes, to the stage after or before
    onward = [*range(1, n), None, None, *range(n, 2 * n - 1)]  # the slot that needs this value
    there: list[list[float | None]] = [[0.0 if slot in (0, 2 * n - 1) else None] * m for slot in range(2 * n)]
    rows, done, now = _slots(p, m, n_chunks), [0] * p, [0.0] * p
    starts, ends = [0.0] * n, [0.0] * n
    waiting: dict[tuple[int, int], int] = {}
    ready = list(range(p))
    while ready:
        rank = ready.pop()
        row, free, at = rows[rank], now[rank], done[rank]
        for slot, i in row[at:]:
            arrived = there[slot][i]
            if arrived is None:
                waiting[slot, i] = rank
                break
            start = max(free, arrived)
            free = start + takes[slot]
            to = onward[slot]
            if to is not None:
                there[to][i] = free + delay[slot]
                if (to, i) in waiting:
                    ready.append(waiting.pop((to, i)))
            if slot >= n:
                starts[slot - n], ends[slot - n] = start, free
            at += 1
        done[rank], now[rank] = at, free
    return _Last(starts, ends)


@lru_cache(maxsize=64)
def _slots(p: int, m: int, n_chunks: int) -> list[list[tuple[int, int]]]:
    """For each rank the slots, as above, and micro-batches of the interleaved schedule's actions."""
    schedule = build("interleaved 1F1B", p, m, n_chunks)
    first = {Op.F: 0, Op.B: schedule.n_stages}
    return [[(first[a.op] + a.stage, a.microbatch or 0) for a in row] for row in schedule.actions]


_LAST: dict[str, Callable[[int, int, int, Costs], _Last]] = {
    "1F1B": _in_turns,
    "GPipe": _all_then_all,
    "interleaved 1F1B": _walked,
    "ZB-H1": partial(_in_turns, halves=True),
}


def peak_bytes(name: str, n_ranks: int, n_microbatches: int, n_chunks: int, costs: Costs) -> tuple[int, ...]:
    """For each rank the peak of ``memory(simulate(schedule, costs), costs)``, which the order of its actions decides.

    Args:
        name: as for `step_seconds`, like the next three.
        n_ranks: of the pipeline.
        n_microbatches: of a step.
        n_chunks: of a rank's layers.
        costs: its sizes; what an I leaves for its W must be as much as what it frees, as it is by default.
    """
    n = n_ranks * n_chunks
    names = ("parameter_bytes", "optimizer_bytes", "gradient_bytes", "stored_bytes")
    parameters, optimizer, gradients, stored = (costs.sizes(name, n) for name in names)
    peaks = []
    for rank in range(n_ranks):
        stages = range(rank, n, n_ranks)
        most = max(
            sum(held * stored[s] + written * gradients[s] for s, held, written in zip(stages, *state, strict=True))
            for state in _states(name, n_ranks, n_microbatches, n_chunks, rank)
        )
        peaks.append(sum(parameters[s] + optimizer[s] for s in stages) + most)
    return tuple(peaks)


def forget() -> None:
    """Let go of the schedules that were kept."""
    for kept in (build, _slots, _states):
        kept.cache_clear()


_State = tuple[tuple[int, ...], tuple[int, ...]]  # of a rank's stages: micro-batches held, and whether it has gradients


@lru_cache(maxsize=4096)
def _states(name: str, p: int, m: int, n_chunks: int, rank: int) -> Sequence[_State]:
    """What a rank holds when it holds the most; several where that depends on the sizes."""
    if name != "interleaved 1F1B":
        held = {"GPipe": m, "1F1B": min(p - rank, m), "ZB-H1": min(p, m)}[name]
        return [((held,), (1,))]
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}  # the most of the first chunk beside the others
    held_of, written = [0] * n_chunks, [0] * n_chunks
    n = p * n_chunks
    for slot, _ in _slots(p, m, n_chunks)[rank]:
        backward, chunk = slot >= n, slot % n // p
        if backward:
            written[chunk] = 1
        else:
            held_of[chunk] += 1
        others = tuple(held_of[1:]), tuple(written)
        found[others] = max(found.get(others, 0), held_of[0])
        held_of[chunk] -= backward
    return [((first, *others), has) for (others, has), first in found.items()]
