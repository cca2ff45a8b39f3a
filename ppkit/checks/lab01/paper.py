"""Tasks 1 and 2: the schedule in order, and two predictions."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from ppkit.builders import naive
from ppkit.checks.drivers import lab01 as ranks
from ppkit.checks.judge import Passed, Unfinished, Verdict, Wrong, graded, is_blank
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes.general import ESTIMATE, MISSING_MESSAGE, SCHEDULE
from ppkit.checks.oracle import build_stages
from ppkit.checks.reference.naive import train_step
from ppkit.checks.trial import on_ranks
from ppkit.data import digits
from ppkit.errors import ScheduleError
from ppkit.schedule import Schedule
from ppkit.simulate import simulate

__all__ = ["check_estimates", "check_schedule"]

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
        yours = Schedule("your schedule", 3, 3, 1, rows).validate()
    except ScheduleError as error:
        raise Wrong(error.message, mistake=SCHEDULE) from None
    right = naive(3).with_comms()
    for rank, (row, wanted) in enumerate(zip(yours.actions, right.actions, strict=True)):
        missing = sorted(str(action) for action in set(wanted) - set(row))
        if missing:
            raise Wrong(f"Rank {rank} lacks {', '.join(missing)}.\n{yours.grid()}", mistake=MISSING_MESSAGE)
    return Passed(f"It can run, and nothing is missing. Without its messages:\n{yours.compute_only().grid()}")


# Task 2: predict


@graded("Task 2, two numbers", 10)
def check_estimates(busy_fraction: Any, bytes_per_step: Any) -> Passed:
    """Check two predictions for four ranks against a run: the busy part of the machine, and the bytes sent."""
    right = 1 - simulate(naive(4)).bubble_fraction
    judged = [
        _estimate("busy_fraction", busy_fraction, right, ""),
        _estimate("bytes_per_step", bytes_per_step, float(_measured_bytes()), " bytes"),
    ]
    facts = [fact for fact, _ in judged]
    points = 5.0 * sum(verdict is Passed for _, verdict in judged)
    if any(verdict is Wrong for _, verdict in judged):
        raise Wrong(*facts, mistake=ESTIMATE, points=points)
    if any(verdict is Unfinished for _, verdict in judged):
        raise Unfinished(*facts, points=points)
    return Passed(*facts)


def _estimate(name: str, value: Any, right: float, unit: str) -> tuple[str, type[Verdict]]:
    if is_blank(value):
        return f"`{name}` has no number yet.", Unfinished
    try:
        guess = float(value)
    except (TypeError, ValueError, RuntimeError):
        return f"`{name}` is no number: {value!r}.", Wrong
    if math.isclose(guess, right, rel_tol=1e-3):
        return f"`{name}`: {guess:g}{unit} is right.", Passed
    if math.isnan(guess):
        return f"`{name}` is no number: {value!r}.", Wrong
    text = f"`{name}`: {guess:g}{unit} is too {'small' if guess < right else 'large'}."
    if not unit and guess > 1:
        text += " A fraction from 0 to 1 is asked, not a percentage."
    return text, Wrong


@lru_cache(maxsize=1)
def _measured_bytes() -> int:
    """What four ranks send in one step of the task's model: 32 rows, 64 numbers wide, float32."""
    stages = [stage.float() for stage in build_stages((64, 64, 64, 64, 10))]
    inputs, targets = digits(n_images=32)
    trial = on_ranks(
        ranks.train, train_step, stages, [(inputs, targets)], n_ranks=4, where="4 ranks", expected=Expected(())
    )
    return sum(trial.timeline.bytes_sent)
