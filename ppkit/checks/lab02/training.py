"""Tasks 5 and 6: a step with a bug in it, and the whole step; what they show beside the checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ppkit.builders import gpipe
from ppkit.checks.drivers import lab02 as ranks
from ppkit.checks.judge import Passed, Verdict, graded, require_function
from ppkit.checks.lab02.parts import forward_expected
from ppkit.checks.messages import Expected, backward_messages
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.gpipe import (
    G18,
    G19,
    G20,
    G21,
    G22,
    G22_BETWEEN,
    G23,
    G25,
    G26,
    G27,
    G32,
    ONE_BY_ONE,
)
from ppkit.checks.mistakes.naive import N14
from ppkit.checks.oracle import build_stages, run
from ppkit.checks.oracle_gpipe import Cut, cut, forward_backward, train
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import all_equal, first_difference
from ppkit.data import batches, digits
from ppkit.emulate import Emulation, Link
from ppkit.simulate import Costs, simulate

__all__ = ["check_first_rank_step", "check_gpipe_step", "show_step"]

Function = Callable[..., Any]
STEP_PARAMETERS = ("stage", "optimizer", "microbatches", "targets", "shapes", "rank", "n_ranks")
FIRST_RANK_PARAMETERS = ("stage", "optimizer", "microbatches")
WIDTHS = (64, 20, 16, 12)
# Ranks, and the rows of each step's micro-batches: equal, ragged, fewer than ranks.
SETTINGS = ((2, ((4, 4, 4),)), (3, ((5, 5, 2), (5, 5, 2))), (4, ((6, 5), (6, 5), (4, 3))))

_SUBSTITUTED = "The names `forward_all` and `microbatch_loss` stood for ppkit's own functions here, not for yours."

# Task 5: find the bug


@graded("Task 5, the bug", 15)
def check_first_rank_step(first_rank_step: Any) -> Passed:
    """Check the mended step of the first of two ranks; the second is ppkit's."""
    require_function(first_rank_step, "first_rank_step", FIRST_RANK_PARAMETERS)
    stages, data = _digits(2, ((4, 4, 4), (4, 4, 4)))
    trial = _train_trial(ranks.first_rank, first_rank_step, stages, data)
    weights = trial.results[0]["weights"][0]
    if all_equal(weights, train(stages, data[:1], "G25").weights[0][0]):
        raise trial.unfinished("the bug is still in it: each backward runs with another micro-batch's gradient.", G25)
    _recognise(trial, 0, stages, data)
    if text := _difference(trial, 0, stages, data):
        raise trial.wrong(text, WRONG_VALUES, rank=0)
    _judge_manner(trial, 0, data)
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
    stages, data = _digits(n_ranks, sizes)
    trial = _train_trial(ranks.train, step, stages, data)
    initial = [_parameters(stage) for stage in stages]
    if not any(trial.timeline.bytes_sent) and all(
        all_equal(seen["weights"][0], own) for seen, own in zip(trial.results, initial, strict=True)
    ):
        raise trial.unfinished("no parameter has changed, and nothing was sent.")
    for rank in reversed(range(n_ranks)):
        _recognise(trial, rank, stages, data)
    trial.require_messages()
    for rank in reversed(range(n_ranks)):
        if text := _difference(trial, rank, stages, data):
            raise trial.wrong(text, WRONG_VALUES, rank=rank)
    _judge_losses(trial, stages, data)
    for rank in range(n_ranks):
        _judge_manner(trial, rank, data)
    return trial


def _digits(n_ranks: int, sizes: Sequence[Sequence[int]]) -> tuple[Sequence[torch.nn.Sequential], list[Cut]]:
    stages = build_stages((*WIDTHS[:n_ranks], 10))
    images, labels = digits(dtype=torch.float64, n_images=sum(map(sum, sizes)))
    data, start = [], 0
    for rows in sizes:
        (batch,) = batches(images[start : start + sum(rows)], labels[start : start + sum(rows)], sum(rows))
        data.append(cut(batch, rows))
        start += sum(rows)
    return stages, data


def _train_trial(driver: Function, step: Function, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> Trial:
    messages: list[Any] = []
    for one in data:
        _, stored = forward_backward(stages, one)
        forward = forward_expected(stages, stored)
        messages += forward.messages
        messages += [message for parts in stored for message in backward_messages(stages, parts).messages]
    rows = " and ".join(str([len(part) for part in one.targets]) for one in data[:1])
    return on_ranks(
        *(driver, step, stages, data),
        n_ranks=len(stages),
        where=f"{len(stages)} ranks, micro-batches of {rows[1:-1]} rows",
        expected=Expected(tuple(messages), forward.parameter_bytes),
    )


def _parameters(stage: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in stage.named_parameters()}


def _recognise(trial: Trial, rank: int, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> None:
    """Refuse the weights after the first step that a known mistake gives."""
    n_optimizer_steps = sum(event.kind == "OPTIM" for event in trial.timeline.of_rank(rank))
    if n_optimizer_steps > len(data):
        text = f"the optimizer took {n_optimizer_steps} steps for {len(data)} batch{'es' * (len(data) > 1)}."
        raise trial.wrong(text, G21, rank=rank)
    got = trial.results[rank]["weights"][0]
    if all_equal(got, train(stages, data[:1]).weights[0][rank]):
        return
    if rank and trial.results[rank]["buffers"] < trial.results[rank]["calls"]:
        raise trial.wrong(
            "its stage was called with one and the same buffer for several micro-batches.", G23, rank=rank
        )
    ragged = len({len(part) for part in data[0].targets}) > 1
    suspects: list[tuple[Mistake, str, str]] = [
        (G18, "G18", "its gradients are those of unscaled losses"),
        (G19, "G19", "its gradients are scaled twice"),
        (G22_BETWEEN, "G22", "it learned from the last micro-batch alone"),
    ]
    suspects += [(G20, "G20", "small micro-batches count as much as large ones")] if ragged else []
    suspects += [(G25, "G25", "the micro-batches' gradients are swapped")] if rank == 0 and not ragged else []
    if all_equal(got, _parameters(stages[rank])):
        raise trial.wrong("its parameters are what they were before the step.", N14, rank=rank)
    for mistake, name, text in suspects:
        if all_equal(got, train(stages, data[:1], name).weights[0][rank]):
            raise trial.wrong(f"{text}.", mistake, rank=rank)


def _difference(trial: Trial, rank: int, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> str:
    """How a rank's weights differ from one process; refuse those that come of gradients never cleared."""
    right, kept = train(stages, data).weights, train(stages, data, "never").weights
    for step, got in enumerate(trial.results[rank]["weights"]):
        if text := first_difference(got, right[step][rank]):
            if step and all_equal(got, kept[step][rank]):
                raise trial.wrong(f"after step {step}, {text}.", G22, rank=rank)
            return f"after step {step}, {text}."
    return ""


def _judge_losses(trial: Trial, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> None:
    last = len(stages) - 1
    right = train(stages, data).losses
    for step, (loss, wanted) in enumerate(zip(trial.results[last]["losses"], right, strict=True)):
        if loss is None or isinstance(loss, str):
            text = f"the last rank, {last}, returned {loss or 'nothing'}; it must return the loss of the batch."
            raise trial.wrong(text, RETURNED)
        if not math.isclose(loss, wanted, rel_tol=1e-6):
            text = f"in step {step} the last rank, {last}, returned a loss of {loss:.6g} instead of {wanted:.6g}."
            raise trial.wrong(text, G32 if step or _is_share(loss, wanted, stages, data[0]) else WRONG_VALUES)


def _is_share(loss: float, wanted: float, stages: Sequence[torch.nn.Sequential], data: Cut) -> bool:
    """Whether a loss is the batch's by another scale, or that of a micro-batch."""
    m, shares = len(data), forward_backward(stages, data)[0]
    means = [run(stages, part)[0] for part in zip(data.inputs, data.targets, strict=True)]
    others = (wanted / m, wanted * m, wanted * data.n_rows, *shares, *means, sum(means), sum(means) / m)
    return any(math.isclose(loss, other, rel_tol=1e-6) for other in others)


def _judge_manner(trial: Trial, rank: int, data: list[Cut]) -> None:
    """Refuse right numbers that were not come by as GPipe does."""
    seen = trial.results[rank]
    if seen["retained"]:
        raise trial.wrong("a backward was told to keep its graph.", G26, rank=rank)
    if 0 < seen["backwards"] < sum(map(len, data)):
        text = f"{seen['backwards']} backward(s) ran for {sum(map(len, data))} micro-batches."
        raise trial.wrong(text, G27, rank=rank)
    for step in range(len(data)):
        events = trial.timeline.step(step).of_rank(rank)
        forwards = [event.start for event in events if event.kind == "F"]
        backwards = [event.start for event in events if event.kind == "B"]
        if forwards and backwards and min(backwards) < max(forwards):
            raise trial.wrong(f"in step {step}, a backward began before the last forward.", ONE_BY_ONE, rank=rank)


def show_step(gpipe_step: Function) -> None:
    """Draw one step of the learner's on three emulated devices, and GPipe's schedule, on one time axis."""
    from IPython.display import display

    from ppkit.draw import gantt

    stages, data = _digits(3, ((3, 3, 3, 3),))
    costs = Costs(forward=0.020, backward=0.040, latency=0.002)
    emulation = Emulation(forward=0.020, backward=0.040, link=Link(latency=0.002))
    try:
        require_function(gpipe_step, "gpipe_step", STEP_PARAMETERS)
        trial = on_ranks(
            *(ranks.train, gpipe_step, stages, data),
            n_ranks=3,
            where="3 ranks",
            expected=Expected(()),
            emulate=emulation,
        )
    except Verdict as verdict:
        print(verdict.text("Your step"))
        return
    timeline = trial.timeline.step(-1, clip=True) if trial.timeline.n_steps else trial.timeline
    display(gantt(replace(timeline, name="your step"), simulate(gpipe(3, 4), costs)))  # type: ignore[no-untyped-call]  # IPython's display has no types
