"""Judges a training step over micro-batches on ranks: its weights, its losses and its manner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppkit.checks.messages import Expected, backward_messages, forward_messages, never_waited
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.gpipe import G18, G19, G20, G21, G22, G22_BETWEEN, G23, G25, G26, G27, G32
from ppkit.checks.mistakes.naive import N14, N14_CLEARED, N14_NO_BACKWARD
from ppkit.checks.mistakes.one_f_one_b import F41
from ppkit.checks.oracle import build_stages, parameters, run
from ppkit.checks.oracle_gpipe import Cut, Stored, cut, forward_backward, train
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import all_equal, first_difference
from ppkit.data import batches, digits

__all__ = [
    "STEP_PARAMETERS",
    "digits_cut",
    "forward_expected",
    "judge_losses",
    "judge_manner",
    "judge_weights",
    "recognise",
    "require_steps",
    "require_waits",
    "train_trial",
    "weights_difference",
    "why_unchanged",
]

Function = Callable[..., Any]
STEP_PARAMETERS = ("stage", "optimizer", "microbatches", "targets", "shapes", "rank", "n_ranks")
WIDTHS = (64, 20, 16, 12)


def forward_expected(stages: Sequence[torch.nn.Module], stored: Sequence[Stored]) -> Expected:
    """The messages of all forwards."""
    each = [forward_messages(stages, parts) for parts in stored]
    return Expected(tuple(message for one in each for message in one.messages), each[0].parameter_bytes)


def digits_cut(n_ranks: int, sizes: Sequence[Sequence[int]]) -> tuple[Sequence[torch.nn.Sequential], list[Cut]]:
    """A classifier of digits in stages, and batches of digits.

    Args:
        n_ranks: number of stages.
        sizes: rows of each micro-batch of each batch.
    """
    stages = build_stages((*WIDTHS[:n_ranks], 10))
    images, labels = digits(dtype=torch.float64, n_images=sum(map(sum, sizes)))
    data, start = [], 0
    for rows in sizes:
        (batch,) = batches(images[start : start + sum(rows)], labels[start : start + sum(rows)], sum(rows))
        data.append(cut(batch, rows))
        start += sum(rows)
    return stages, data


def train_trial(driver: Function, step: Function, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> Trial:
    """Run a step of the learner's on each batch, by a driver."""
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


def require_steps(trial: Trial, rank: int, data: Sequence[Cut]) -> None:
    """Refuse more steps of the optimizer than there are batches."""
    n_steps = sum(event.kind == "OPTIM" for event in trial.timeline.of_rank(rank))
    if n_steps > len(data):
        text = f"the optimizer took {n_steps} steps for {len(data)} batch{'es' * (len(data) > 1)}."
        raise trial.wrong(text, G21, rank=rank)


def require_waits(trial: Trial) -> None:
    """Refuse sends that nobody has waited for: that they arrived was luck."""
    for event in never_waited(trial.timeline):
        raise trial.wrong(f"its {event.label} was never waited for.", F41, rank=event.rank)


def recognise(trial: Trial, rank: int, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> None:
    """Refuse the weights after the first step that a known mistake gives."""
    require_steps(trial, rank, data)
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
    if all_equal(got, parameters(stages[rank])):
        raise trial.wrong("its parameters are what they were before the step.", why_unchanged(trial, rank), rank=rank)
    for mistake, name, text in suspects:
        if all_equal(got, train(stages, data[:1], name).weights[0][rank]):
            raise trial.wrong(f"{text}.", mistake, rank=rank)


def why_unchanged(trial: Trial, rank: int) -> Mistake:
    """Why a rank's parameters are what they were before its first step."""
    kinds = [event.kind for event in trial.timeline.of_rank(rank)]
    if "B" not in kinds:
        return N14_NO_BACKWARD
    return N14_CLEARED if "OPTIM" in kinds[kinds.index("B") :] else N14


def weights_difference(trial: Trial, rank: int, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> str:
    """How a rank's weights differ from one process; refuse those that come of gradients never cleared."""
    right = train(stages, data).weights
    for step, got in enumerate(trial.results[rank]["weights"]):
        if text := first_difference(got, right[step][rank]):
            if step and all_equal(got, train(stages, data, "never").weights[step][rank]):
                raise trial.wrong(f"after step {step}, {text}.", G22, rank=rank)
            return f"after step {step}, {text}."
    return ""


def judge_losses(trial: Trial, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> None:
    """Refuse losses other than those of one process, on the last rank."""
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


def judge_manner(trial: Trial, rank: int, data: list[Cut]) -> None:
    """Refuse right numbers that were not come by as GPipe does."""
    seen = trial.results[rank]
    if seen["retained"]:
        raise trial.wrong("a backward was told to keep its graph.", G26, rank=rank)
    if 0 < seen["backwards"] < sum(map(len, data)):
        text = f"{seen['backwards']} backward(s) ran for {sum(map(len, data))} micro-batches."
        raise trial.wrong(text, G27, rank=rank)


def judge_weights(trial: Trial, stages: Sequence[torch.nn.Sequential], data: list[Cut]) -> None:
    """Refuse messages and weights other than those of one process, the known mistakes first."""
    initial = [parameters(stage) for stage in stages]
    if not any(trial.timeline.bytes_sent) and all(
        all_equal(seen["weights"][0], own) for seen, own in zip(trial.results, initial, strict=True)
    ):
        raise trial.unfinished("no parameter has changed, and nothing was sent.")
    for rank in reversed(range(len(stages))):
        recognise(trial, rank, stages, data)
    trial.require_messages()
    for rank in reversed(range(len(stages))):
        if text := weights_difference(trial, rank, stages, data):
            raise trial.wrong(text, WRONG_VALUES, rank=rank)
