"""Tasks 1 and 2: the schedule as data, and what is predicted of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppkit.builders import gpipe, one_f_one_b
from ppkit.checks.drivers import lab03 as ranks
from ppkit.checks.estimates import Choice, Estimate, judge_estimates
from ppkit.checks.form import Form, Number, Words
from ppkit.checks.judge import Passed, Wrong, graded, require_function
from ppkit.checks.lab03.order import judge_order
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.gpipe import G29
from ppkit.checks.mistakes.one_f_one_b import F40
from ppkit.checks.schedules import run_builder
from ppkit.schedule import Action
from ppkit.simulate import simulate

__all__ = ["ask_predictions", "check_predictions", "check_schedule"]

SIZES = ((3, 5), (4, 8), (2, 4), (1, 2), (4, 2), (3, 1))  # stages, micro-batches

# Task 1: as data


@graded("Task 1, the schedule", 20)
def check_schedule(one_f_one_b_schedule: Any) -> Passed:
    """Check 1F1B's schedule, made by the learner's function for several numbers of stages and micro-batches."""
    require_function(one_f_one_b_schedule, "one_f_one_b_schedule", ("n_stages", "n_microbatches"))
    schedules = run_builder(ranks.schedules, one_f_one_b_schedule, SIZES, explain=_explain)
    for schedule in schedules:
        orders = [[(action.op.value, action.microbatch or 0) for action in row] for row in schedule.actions]
        if found := judge_order(orders, schedule.n_microbatches):
            rank, text, mistake = found
            raise Wrong(f"{schedule.name}: on rank {rank}, {text}.\n{schedule.grid()}", mistake=mistake)
    return Passed(
        f"It can run for every size that was tried, as for {SIZES[0][0]} stages and {SIZES[0][1]} micro-batches:\n"
        + schedules[0].grid()
    )


def _explain(rows: Sequence[Sequence[Action]], p: int, m: int) -> Mistake | None:
    """Why rows that cannot run are not 1F1B's."""
    if len(rows) != p or any(action.stage != rank for rank, row in enumerate(rows) for action in row):
        return None
    found = judge_order([[(one.op.value, one.microbatch or 0) for one in row] for row in rows], m)
    return found[2] if found else None


# Task 2: predict

LENGTHS = ("shorter", "as long", "longer")
ask_predictions = Form(
    Number("held_on_rank_1", "Micro-batches whose activations rank 1 holds at most"),
    Number("idle_fraction", "Idle part of all ranks' time, from 0 to 1"),
    Words("idle_compared", "Idle, compared with GPipe", LENGTHS),
)


@graded("Task 2, three predictions", 15)
def check_predictions(held_on_rank_1: Any, idle_fraction: Any, idle_compared: Any) -> Passed:
    """Check three predictions for four stages and twelve micro-batches against both schedules, simulated."""
    ours, other = simulate(one_f_one_b(4, 12)), simulate(gpipe(4, 12))
    shorter, longer = ours.bubble_fraction < other.bubble_fraction, ours.bubble_fraction > other.bubble_fraction
    compared = "shorter" if shorter else "longer" if longer else "as long"
    estimates: list[Estimate | Choice] = [
        Estimate("held_on_rank_1", held_on_rank_1, float(ours.peak_in_flight[1]), " micro-batches"),
        Estimate("idle_fraction", idle_fraction, ours.bubble_fraction, known={ours.bubble_ratio: G29}),
        Choice("idle_compared", idle_compared, compared, LENGTHS, F40),
    ]
    return judge_estimates(estimates, 15)
