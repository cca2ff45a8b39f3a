"""Tasks 1 and 2: the schedule as data, and two predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppkit.builders import gpipe
from ppkit.checks.drivers import lab02 as ranks
from ppkit.checks.estimates import Estimate, judge_estimates
from ppkit.checks.form import Form, Number
from ppkit.checks.judge import Passed, Wrong, graded, require_function
from ppkit.checks.mistakes.gpipe import FORWARDS_OUT_OF_ORDER, G25, G29, NOT_GPIPE
from ppkit.checks.schedules import order_of, run_builder
from ppkit.schedule import Op, Schedule
from ppkit.simulate import simulate

__all__ = ["ask_estimates", "check_estimates", "check_schedule"]

SIZES = ((1, 1), (2, 3), (3, 4), (4, 2), (4, 8))  # stages, micro-batches

# Task 1: as data


@graded("Task 1, the schedule", 15)
def check_schedule(gpipe_schedule: Any) -> Passed:
    """Check GPipe's schedule, made by the learner's function for several numbers of stages and micro-batches."""
    require_function(gpipe_schedule, "gpipe_schedule", ("n_stages", "n_microbatches"))
    schedules = run_builder(ranks.schedules, gpipe_schedule, SIZES)
    for schedule in schedules:
        _require_gpipe(schedule)
    return Passed(
        f"It can run for every size that was tried, as for {SIZES[2][0]} stages and {SIZES[2][1]} micro-batches:\n"
        + schedules[2].grid()
    )


def _require_gpipe(schedule: Schedule) -> None:
    for rank, row in enumerate(schedule.actions):
        ops = [action.op for action in row]
        if ops != sorted(ops, key=lambda op: op is not Op.F):
            raise Wrong(
                f"{schedule.name}: rank {rank} has a forward after a backward.\n{schedule.grid()}", mistake=NOT_GPIPE
            )
        if (order := order_of(row, Op.F)) != sorted(order):
            text = f"{schedule.name}: the forwards of rank {rank} go in the order {_text(order)}."
            raise Wrong(f"{text}\n{schedule.grid()}", mistake=FORWARDS_OUT_OF_ORDER)
    orders = [order_of(row, Op.B) for row in schedule.actions]
    for rank, order in enumerate(orders):
        if order != orders[-1]:
            text = f"{schedule.name}: the backwards of rank {rank} go in the order {_text(order)}, those of rank "
            raise Wrong(f"{text}{len(orders) - 1} in the order {_text(orders[-1])}.\n{schedule.grid()}", mistake=G25)


def _text(order: Sequence[int]) -> str:
    return ", ".join(map(str, order))


# Task 2: predict

ask_estimates = Form(
    Number("idle_fraction", "Idle part of all ranks' time, from 0 to 1"),
    Number("activations_held", "Micro-batches whose activations rank 0 holds at most"),
)


@graded("Task 2, two numbers", 10)
def check_estimates(idle_fraction: Any, activations_held: Any) -> Passed:
    """Check two predictions for four stages and twelve micro-batches against GPipe's schedule, simulated."""
    timeline = simulate(gpipe(4, 12))
    estimates = [
        Estimate("idle_fraction", idle_fraction, timeline.bubble_fraction, known={timeline.bubble_ratio: G29}),
        Estimate("activations_held", activations_held, float(timeline.peak_in_flight[0]), " micro-batches"),
    ]
    return judge_estimates(estimates, 10)
