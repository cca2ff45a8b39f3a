"""Tasks 5 and 6: a step with a bug in it, and the whole step; what they show beside the checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ppkit.builders import gpipe
from ppkit.checks.drivers import lab02 as ranks
from ppkit.checks.judge import Passed, Verdict, graded, require_function
from ppkit.checks.mistakes.general import WRONG_VALUES
from ppkit.checks.mistakes.gpipe import EARLY_BACKWARD, G25
from ppkit.checks.oracle_gpipe import Cut, train
from ppkit.checks.show import show_beside
from ppkit.checks.steps import (
    STEP_PARAMETERS,
    digits_cut,
    judge_losses,
    judge_manner,
    judge_weights,
    recognise,
    require_waits,
    train_trial,
    weights_difference,
)
from ppkit.checks.trial import Trial
from ppkit.checks.values import all_equal

__all__ = ["check_first_rank_step", "check_gpipe_step", "show_step"]

Function = Callable[..., Any]
FIRST_RANK_PARAMETERS = ("stage", "optimizer", "microbatches")
# Ranks, and the rows of each step's micro-batches: equal, ragged, fewer than ranks.
SETTINGS = ((2, ((4, 4, 4),)), (3, ((5, 5, 2), (5, 5, 2))), (4, ((6, 5), (6, 5), (4, 3))))

_SUBSTITUTED = "The names `forward_all` and `microbatch_loss` stood for ppkit's own functions here, not for yours."

# Task 5: find the bug


@graded("Task 5, the bug", 15)
def check_first_rank_step(first_rank_step: Any) -> Passed:
    """Check the mended step of the first of two ranks; the second is ppkit's."""
    require_function(first_rank_step, "first_rank_step", FIRST_RANK_PARAMETERS)
    stages, data = digits_cut(2, ((4, 4, 4), (4, 4, 4)))
    trial = train_trial(ranks.first_rank, first_rank_step, stages, data)
    weights = trial.results[0]["weights"][0]
    if all_equal(weights, train(stages, data[:1], "G25").weights[0][0]):
        raise trial.unfinished("the bug is still in it: each backward runs with another micro-batch's gradient.", G25)
    recognise(trial, 0, stages, data)
    if text := weights_difference(trial, 0, stages, data):
        raise trial.wrong(text, WRONG_VALUES, rank=0)
    judge_manner(trial, 0, data)
    return Passed(
        "On 2 ranks, in two steps: every weight of rank 0 is that of one process.",
        timeline=trial.timeline,
        output=trial.output,
    )


# Task 6: the whole step


@graded("Task 6, gpipe_step", 25)
def check_gpipe_step(gpipe_step: Any) -> Passed:
    """Check training over 2, 3 and 4 ranks: the losses and weights of one process, and GPipe's order."""
    require_function(gpipe_step, "gpipe_step", STEP_PARAMETERS)
    try:
        for n_ranks, sizes in SETTINGS:
            trial = _judge_setting(gpipe_step, n_ranks, sizes)
    except Verdict as verdict:
        if verdict.done:
            verdict.facts = (*verdict.facts, _SUBSTITUTED)
        raise
    return Passed(
        "On 2, 3 and 4 ranks, with equal and ragged micro-batches, and with fewer of them than ranks: the losses and "
        "all weights are those of one process after every step.",
        "In each step one message for each micro-batch crossed each boundary in each direction, and on no rank did a "
        "backward begin before its last forward.",
        _SUBSTITUTED,
        timeline=trial.timeline,
        output=trial.output,
    )


def _judge_setting(step: Function, n_ranks: int, sizes: Sequence[Sequence[int]]) -> Trial:
    stages, data = digits_cut(n_ranks, sizes)
    trial = train_trial(ranks.train, step, stages, data)
    judge_weights(trial, stages, data)
    judge_losses(trial, stages, data)
    require_waits(trial)
    for rank in range(n_ranks):
        judge_manner(trial, rank, data)
        _judge_order(trial, rank, data)
    return trial


def _judge_order(trial: Trial, rank: int, data: list[Cut]) -> None:
    """Refuse backwards before the last forward."""
    for step in range(len(data)):
        events = trial.timeline.step(step).of_rank(rank)
        forwards = [event.start for event in events if event.kind == "F"]
        backwards = [event.start for event in events if event.kind == "B"]
        if forwards and backwards and min(backwards) < max(forwards):
            raise trial.wrong(f"in step {step}, a backward began before the last forward.", EARLY_BACKWARD, rank=rank)


def show_step(gpipe_step: Function) -> None:
    """Draw one step of the learner's on three emulated devices, and GPipe's schedule, on one time axis."""
    stages, data = digits_cut(3, ((3, 3, 3, 3),))
    schedule = gpipe(3, 4)
    show_beside(schedule, ranks.train, gpipe_step, stages, data, name="gpipe_step", parameters=STEP_PARAMETERS)
