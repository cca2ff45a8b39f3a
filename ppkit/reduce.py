"""Where the gradients of data-parallel replicas are reduced: `REDUCE` written into a schedule."""

from __future__ import annotations

from dataclasses import replace

from ppkit.errors import ScheduleError
from ppkit.schedule import Action, Op, Schedule

__all__ = ["with_reduce"]


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
