"""Tasks 5 and 6: a step with a bug in it, and the whole step; what they show beside the checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppkit.builders import naive
from ppkit.checks.drivers import lab01 as ranks
from ppkit.checks.judge import Passed, Verdict, Wrong, graded, require_function
from ppkit.checks.messages import Expected, backward_messages, forward_messages
from ppkit.checks.mistakes.general import MISSING_MESSAGE, RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.gpipe import G22
from ppkit.checks.mistakes.naive import (
    ACTIVATION_BACK,
    N03,
    N09_BACKWARD,
    N12,
    N12_FIRST,
    N13,
    N14,
    SUMMED,
)
from ppkit.checks.oracle import Batch, Training, build_stages, parameters, run, train
from ppkit.checks.show import show_beside
from ppkit.checks.steps import require_waits, why_unchanged
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import all_equal, first_difference
from ppkit.data import batches, digits

__all__ = ["check_first_rank_step", "check_train_step", "show_losses", "show_step"]

Function = Callable[..., Any]
TRAIN_PARAMETERS = ("stage", "optimizer", "batch", "targets", "shape", "rank", "n_ranks")
FIRST_RANK_PARAMETERS = ("stage", "optimizer", "batch")
DIGIT_WIDTHS, N_DIGITS, BATCH_SIZE = (64, 20, 16, 12), 41, 17  # batches of 17, 17 and 7 images

_SUBSTITUTED = "The names `forward_stage` and `backward_stage` stood for ppkit's own functions here, not for yours."

# Task 5: find the bug


@graded("Task 5, the bug", 10)
def check_first_rank_step(first_rank_step: Any) -> Passed:
    """Check the mended step of the first of two ranks; the second is ppkit's."""
    require_function(first_rank_step, "first_rank_step", FIRST_RANK_PARAMETERS)
    stages, data = _digits(2, n_steps=3)
    try:
        trial = _train_trial(ranks.first_rank, first_rank_step, stages, data)
    except Wrong as verdict:
        if verdict.mistake is N03:  # its next step meets the gradient of the first: seen alone, that says more
            _train_trial(ranks.first_rank, first_rank_step, stages, data[:1])
        raise
    weights = trial.results[0]["weights"][0]
    if _backward_comes_first(trial) and not all_equal(weights, train(stages, data[:1]).weights[0][0]):
        if all_equal(weights, parameters(stages[0])):
            raise trial.unfinished("the bug is still in it: rank 0 learns nothing.", N09_BACKWARD)
        raise trial.wrong("it learns something else than in one process.", N09_BACKWARD, rank=0)
    if all_equal(weights, train(stages, data[:1], "N12").weights[0][0]):
        raise trial.wrong("it learned from the sum of its outputs.", N12_FIRST, rank=0)
    if all_equal(weights, parameters(stages[0])):
        raise trial.wrong("its parameters are what they were before the step.", why_unchanged(trial, 0), rank=0)
    _judge_training(trial, stages, data)
    return Passed(
        "On 2 ranks, in three steps, the last with a smaller batch: every weight is that of one process.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _backward_comes_first(trial: Trial) -> bool:
    """Whether rank 0 began its first backward before it had received anything."""
    backwards = [event.start for event in trial.timeline.of_rank(0) if event.kind == "B"]
    receives = [event.end for event in trial.timeline.of_rank(0) if event.kind == "RECV"]
    return bool(backwards and receives) and min(backwards) < min(receives)


def show_losses(first_rank_step: Function) -> None:
    """Print the losses of steps on one batch on two ranks, the learner's on rank 0, beside those of one process."""
    stages, data = build_stages((*DIGIT_WIDTHS[:2], 10)), [digits(dtype=torch.float64, n_images=100)] * 8
    alone = train(stages, data).losses
    try:
        on_two = _train_trial(ranks.first_rank, first_rank_step, stages, data).results[1]["losses"]
    except Verdict as verdict:
        print(verdict.text("Your step on two ranks"))
        return
    print("step   one process   two ranks   difference")
    for step, (one, two) in enumerate(zip(alone, on_two, strict=True)):
        print(f"{step:>4}   {one:>11.4f}   {two:>9.4f}   {abs(two - one):>10.4f}")


# Task 6: the whole step


@graded("Task 6, train_step", 25)
def check_train_step(train_step: Any) -> Passed:
    """Check training over 2, 3 and 4 ranks: the losses and weights of one process after each step."""
    require_function(train_step, "train_step", TRAIN_PARAMETERS)
    try:
        trial = _judge_steps(train_step)
    except Verdict as verdict:
        if verdict.done:
            verdict.facts = (*verdict.facts, _SUBSTITUTED)
        raise
    return Passed(
        "On 2, 3 and 4 ranks, with batches of 17, 17 and 7 digits: the losses and all weights are those of "
        "one process after every step.",
        "In each step one message crossed each boundary in each direction.",
        _SUBSTITUTED,
        timeline=trial.timeline,
        output=trial.output,
    )


def _judge_steps(train_step: Function) -> Trial:
    for n_ranks, n_steps in ((2, 1), (3, 3), (4, 3)):
        stages, data = _digits(n_ranks, n_steps)
        trial = _train_trial(ranks.train, train_step, stages, data)
        _recognise(trial, stages, data)
        trial.require_messages()
        _judge_training(trial, stages, data)
        require_waits(trial)
    return trial


def _digits(n_ranks: int, n_steps: int) -> tuple[Sequence[torch.nn.Sequential], list[Batch]]:
    stages = build_stages((*DIGIT_WIDTHS[:n_ranks], 10))
    data = list(batches(*digits(dtype=torch.float64, n_images=N_DIGITS), BATCH_SIZE))
    return stages, data[:n_steps]


def _train_trial(driver: Function, step: Function, stages: Sequence[torch.nn.Sequential], data: list[Batch]) -> Trial:
    messages: list[Any] = []
    for batch in data:
        _, passes = run(stages, batch)
        forward, backward = forward_messages(stages, passes), backward_messages(stages, passes)
        messages += [*forward.messages, *backward.messages]
    n_ranks = len(stages)
    where = f"{n_ranks} ranks, {len(data)} step{'s' * (len(data) > 1)}"
    return on_ranks(
        *(driver, step, stages, data),
        n_ranks=n_ranks,
        where=where,
        expected=Expected(tuple(messages), forward.parameter_bytes),
    )


def _recognise(trial: Trial, stages: Sequence[torch.nn.Sequential], data: list[Batch]) -> None:
    """Refuse weights of the first step that a known mistake gives."""
    right = train(stages, data[:1]).weights[0]
    initial = tuple(map(parameters, stages))
    suspects = (
        (N14, initial, "its parameters are what they were before the step"),
        (N12, train(stages, data[:1], "N12").weights[0], "it learned from the sum of its outputs"),
        (N13, train(stages, data[:1], "N13").weights[0], "it learned from a loss of its own"),
        (SUMMED, train(stages, data[:1], "sum").weights[0], "it learned from a loss summed over the rows"),
        (ACTIVATION_BACK, train(stages, data[:1], "activation").weights[0], "what came back to it is its own output"),
    )
    got = [seen["weights"][0] for seen in trial.results]
    if all(all_equal(own, before) for own, before in zip(got, initial, strict=True)) and not any(
        trial.timeline.bytes_sent
    ):
        raise trial.unfinished("no parameter has changed, and nothing was sent.")
    for rank in reversed(range(len(stages))):
        for mistake, weights, text in suspects:
            if not all_equal(got[rank], right[rank]) and all_equal(got[rank], weights[rank]):
                if mistake is N14 and rank < len(stages) - 1 and not _sent(trial, rank + 1, rank):
                    text = f"no gradient reached it: no message went from rank {rank + 1} to rank {rank}"
                    mistake = MISSING_MESSAGE
                elif mistake is N14:
                    mistake = why_unchanged(trial, rank)
                raise trial.wrong(f"{text}.", mistake, rank=rank)


def _sent(trial: Trial, sender: int, receiver: int) -> bool:
    return any(event.kind == "SEND" and event.peer == receiver for event in trial.timeline.of_rank(sender))


def _judge_training(trial: Trial, stages: Sequence[torch.nn.Sequential], data: list[Batch]) -> None:
    """Refuse losses and weights other than those of one process."""
    right = train(stages, data)
    kept = train(stages, data, "G22").weights
    for step in range(len(data)):
        _judge_loss(trial, step, right, len(data[step][1]))
        for rank in reversed(range(len(stages))):
            got = trial.results[rank]["weights"][step]
            if text := first_difference(got, right.weights[step][rank]):
                mistake = G22 if step and all_equal(got, kept[step][rank]) else WRONG_VALUES
                raise trial.wrong(f"after step {step}, {text}.", mistake, rank=rank)


def _judge_loss(trial: Trial, step: int, right: Training, n_rows: int) -> None:
    last = len(trial.results) - 1
    loss, wanted = trial.results[last]["losses"][step], right.losses[step]
    if loss is None:
        raise trial.wrong(f"the last rank, {last}, returns nothing; it returns the loss.", RETURNED)
    if isinstance(loss, str):
        raise trial.wrong(f"the last rank, {last}, returned {loss}; it must return the loss.", RETURNED)
    if not math.isclose(loss, wanted, rel_tol=1e-6):
        raise trial.wrong(
            f"in step {step} the last rank, {last}, returned a loss of {loss:.6g} instead of {wanted:.6g}.",
            SUMMED if math.isclose(loss, wanted * n_rows, rel_tol=1e-6) else WRONG_VALUES,
        )


def show_step(train_step: Function) -> None:
    """Draw one step of the learner's on three emulated devices, and the naive schedule, on one time axis."""
    stages, data = _digits(3, 1)
    schedule = naive(3)
    show_beside(schedule, ranks.train, train_step, stages, data, name="train_step", parameters=TRAIN_PARAMETERS)
