"""Where the gradients of data-parallel replicas are reduced: `REDUCE` written into a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ppkit.costs import Reduction
from ppkit.errors import ScheduleError
from ppkit.schedule import Action, Op, Schedule

__all__ = ["bucket_times", "completed_by", "with_reduce"]


def with_reduce(schedule: Schedule) -> Schedule:
    """``schedule`` with a ``REDUCE`` for every stage; see ``Schedule.with_reduce``."""
    if schedule.forward_only:
        raise ScheduleError(f"{schedule.name} is forward only: it has no gradients to reduce")
    if any(action.op is Op.REDUCE for row in schedule.actions for action in row):
        return schedule
    rows = (_row_with_reduce(row) for row in schedule.validate().actions)
    return replace(schedule, actions=tuple(rows))


def _row_with_reduce(row: tuple[Action, ...]) -> tuple[Action, ...]:
    # The last that completes gradients; a SEND_B after it goes first, since another rank waits for it.
    last = {action.stage: at for at, action in enumerate(row) if action.op in (Op.B, Op.W, Op.SEND_B)}
    due = {at: Action(stage, Op.REDUCE) for stage, at in last.items()}
    return tuple(item for at, action in enumerate(row) for item in (action, due.get(at)) if item is not None)


def completed_by(row: Sequence[Action]) -> dict[int, int]:
    """Where the gradients of a stage can be reduced while its last backward still completes them.

    That is so if nothing but messages lies between this backward and the stage's ``REDUCE``. All replicas then start
    its buckets at the same place among their collectives, whichever part of them starts early.

    Args:
        row: the actions of one rank, of a valid schedule.

    Returns:
        for each such stage the position of its last ``B`` or ``W``.
    """
    found: dict[int, int] = {}
    last: int | None = None
    for at, action in enumerate(row):
        if action.op is Op.REDUCE:
            if last is not None and row[last].stage == action.stage:
                found[action.stage] = last
            last = None
        elif action.op.is_compute:
            last = at if action.op in (Op.B, Op.W) else None
    return found


def bucket_times(
    reductions: Sequence[Reduction], begin: float, end: float, due: float, free: float
) -> Iterator[tuple[float, float]]:
    """When the all-reduces of a stage start and end, one at a time.

    Args:
        reductions: in their order, as ``Costs.reductions`` gives them.
        begin: seconds, when the backward begins that completes the gradients evenly; where there is none to start
            in, the same as `end`.
        end: when it ends.
        due: when the turn of the stage's ``REDUCE`` comes; gradients that are complete only at its end start then.
        free: when the all-reduce before them is done.
    """
    for reduction in reductions:
        ready = due if reduction.complete == 1 else begin + reduction.complete * (end - begin)
        start = max(ready, free)
        free = start + reduction.seconds
        yield start, free
