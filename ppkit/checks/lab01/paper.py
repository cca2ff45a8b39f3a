"""Tasks 1 and 2: the schedule in order, and two predictions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ppkit.builders import naive
from ppkit.checks.drivers import lab01 as ranks
from ppkit.checks.estimates import Estimate, judge_estimates
from ppkit.checks.form import Form, Number
from ppkit.checks.judge import Passed, Unfinished, Wrong, graded, is_blank
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes.general import NO_ROWS
from ppkit.checks.mistakes.naive import NO_MESSAGES
from ppkit.checks.oracle import build_stages
from ppkit.checks.reference.naive import train_step
from ppkit.checks.schedules import cannot_run
from ppkit.checks.trial import on_ranks
from ppkit.data import digits
from ppkit.errors import ScheduleError
from ppkit.schedule import Schedule
from ppkit.simulate import simulate

__all__ = ["ask_estimates", "check_estimates", "check_schedule"]

# Task 1: put in order


@graded("Task 1, the schedule", 15)
def check_schedule(schedule: Any) -> Passed:
    """Check one naive training step over three stages, messages included, written as a list for each rank."""
    if is_blank(schedule):
        raise Unfinished()
    rows = schedule.actions if isinstance(schedule, Schedule) else schedule
    if isinstance(rows, (list, tuple)):
        blank = [rank for rank, row in enumerate(rows) if is_blank(row) or row in ([], [...], [None], "")]
        if blank:
            raise Unfinished(f"No actions yet for rank {', '.join(map(str, blank))}.")
    try:
        yours = Schedule("your schedule", 3, 3, 1, rows)
    except ScheduleError as error:
        raise Wrong(error.message, mistake=NO_ROWS) from None
    try:
        yours.validate()
    except ScheduleError as error:
        fact, mistake = cannot_run(error, yours.actions)
        raise Wrong(fact, mistake=mistake) from None
    right = naive(3).with_comms()
    for rank, (row, wanted) in enumerate(zip(yours.actions, right.actions, strict=True)):
        missing = sorted(str(action) for action in set(wanted) - set(row))
        if missing:
            raise Wrong(f"Rank {rank} lacks {', '.join(missing)}.\n{yours.grid()}", mistake=NO_MESSAGES)
    return Passed(f"It can run, and nothing is missing. Without its messages:\n{yours.compute_only().grid()}")


# Task 2: predict

ask_estimates = Form(
    Number("busy_fraction", "Busy part of all ranks' time, from 0 to 1"),
    Number("bytes_per_step", "Bytes that all ranks send in a step"),
)


@graded("Task 2, two numbers", 10)
def check_estimates(busy_fraction: Any, bytes_per_step: Any) -> Passed:
    """Check two predictions for four ranks against a run: the busy part of the machine, and the bytes sent."""
    right = 1 - simulate(naive(4)).bubble_fraction
    estimates = [
        Estimate("busy_fraction", busy_fraction, right),
        Estimate("bytes_per_step", bytes_per_step, float(_measured_bytes()), " bytes"),
    ]
    return judge_estimates(estimates, 10)


@lru_cache(maxsize=1)
def _measured_bytes() -> int:
    """What four ranks send in one step of the task's model: 32 rows, 64 numbers wide, float32."""
    stages = [stage.float() for stage in build_stages((64, 64, 64, 64, 10))]
    inputs, targets = digits(n_images=32)
    trial = on_ranks(
        ranks.train, train_step, stages, [(inputs, targets)], n_ranks=4, where="4 ranks", expected=Expected(())
    )
    return sum(trial.timeline.bytes_sent)
