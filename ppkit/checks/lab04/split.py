"""Task 4: the backward of a stage in two halves, judged against autograd's whole one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppkit.checks.drivers import lab04 as ranks
from ppkit.checks.judge import Passed, Wrong, graded, require_function
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.gpipe import G24
from ppkit.checks.mistakes.zero_bubble import N12_HALF, Z80, Z81, Z82, Z83, Z84
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import difference, equal

__all__ = ["check_split"]

ROWS, WIDTHS = (4, 2, 4), (5, 3)
INPUT_PARAMETERS = ("stage_input", "output", "output_grad")
WEIGHT_PARAMETERS = ("stage", "stage_input", "output", "output_grad")

Gradients = list[tuple[Tensor, ...]]  # for each micro-batch: of the input, then of each parameter


@graded("Task 4, input_grad and weight_grads", 20)
def check_split(input_grad: Any, weight_grads: Any) -> Passed:
    """Check both halves of a backward, on several micro-batches: first all of the one, then all of the other."""
    require_function(input_grad, "input_grad", INPUT_PARAMETERS)
    require_function(weight_grads, "weight_grads", WEIGHT_PARAMETERS)
    stage, inputs, grads = _numbers()
    try:
        trial = on_ranks(
            *(ranks.split, input_grad, weight_grads, stage, inputs, grads),
            n_ranks=1,
            where="your functions",
            expected=Expected(()),
        )
    except Wrong as verdict:
        if verdict.mistake is G24:
            verdict.mistake = Z80
        raise
    seen = trial.results[0]
    if all(value is None for value in (*seen["inputs"], *seen["weights"])):
        raise trial.unfinished("both returned None.")
    right = _gradients(stage, inputs, grads)
    unweighted = _gradients(stage, inputs, [torch.ones_like(grad) for grad in grads])
    for i in range(len(inputs)):
        _judge_input(trial, i, seen["inputs"][i], right, unweighted)
    _judge_products(trial, 0, Z81)
    for i in range(len(inputs)):
        _judge_weights(trial, i, seen["weights"][i], right, unweighted)
    _judge_products(trial, 1, Z82)
    return Passed(
        "For every micro-batch both halves give autograd's gradients, and each does its own matrix product alone.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _numbers() -> tuple[nn.Sequential, list[Tensor], list[Tensor]]:
    numbers = torch.Generator().manual_seed(4)
    stage = nn.Sequential(nn.Linear(*WIDTHS, dtype=torch.float64), nn.Tanh())
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=numbers) / 2)
    inputs, grads = (
        [torch.randn(rows, width, dtype=torch.float64, generator=numbers) for rows in ROWS] for width in WIDTHS
    )
    return stage, inputs, grads


def _gradients(stage: nn.Module, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> Gradients:
    leaves = [part.clone().requires_grad_() for part in inputs]
    return [
        torch.autograd.grad(stage(leaf), (leaf, *stage.parameters()), grad)
        for leaf, grad in zip(leaves, grads, strict=True)
    ]


def _judge_input(trial: Trial, i: int, got: Any, right: Gradients, unweighted: Gradients) -> None:
    if got is None:
        raise trial.wrong(f"`input_grad` returned nothing for micro-batch {i}.", RETURNED)
    if not isinstance(got, Tensor):
        raise trial.wrong(f"`input_grad` returned {got}; it must return one tensor.", RETURNED)
    if text := difference(got, right[i][0]):
        swapped = any(equal(got, one) for one in right[i][1:])
        mistake = Z83 if swapped else N12_HALF if equal(got, unweighted[i][0]) else WRONG_VALUES
        raise trial.wrong(f"what `input_grad` returned for micro-batch {i} {text}.", mistake)


def _judge_weights(trial: Trial, i: int, got: Any, right: Gradients, unweighted: Gradients) -> None:
    wanted = right[i][1:]
    if not isinstance(got, list):
        if isinstance(got, Tensor) and equal(got, right[i][0]):
            raise trial.wrong("`weight_grads` returned the gradient of the input.", Z83)
        text = "a Tensor" if isinstance(got, Tensor) else got or "nothing"
        raise trial.wrong(f"`weight_grads` returned {text}; it must return one gradient for each parameter.", RETURNED)
    if _same(got, wanted[::-1]) or any(isinstance(one, Tensor) and equal(one, right[i][0]) for one in got):
        raise trial.wrong("`weight_grads` returned the gradients of the parameters in other places.", Z83)
    if len(got) != len(wanted):
        raise trial.wrong(
            f"`weight_grads` returned {len(got)} gradient{'s' * (len(got) != 1)} for {len(wanted)} parameters.",
            RETURNED,
        )
    if _same(got, wanted):
        return
    added = [sum(parts[1:], parts[0]) for parts in zip(*(one[1:] for one in right[: i + 1]), strict=True)]
    mistake = Z84 if i and _same(got, added) else N12_HALF if _same(got, unweighted[i][1:]) else WRONG_VALUES
    text = next(text for one, grad in zip(got, wanted, strict=True) if (text := difference(one, grad)))
    raise trial.wrong(f"of what `weight_grads` returned for micro-batch {i}, one gradient {text}.", mistake)


def _same(got: Sequence[Any], wanted: Sequence[Tensor]) -> bool:
    return len(got) == len(wanted) and all(equal(one, grad) for one, grad in zip(got, wanted, strict=True))


def _judge_products(trial: Trial, half: int, mistake: Mistake) -> None:
    """Refuse a half that multiplies more matrices than its own."""
    most = max(trial.results[0]["products"][half])
    if most > 1:
        name = ("input_grad", "weight_grads")[half]
        raise trial.wrong(f"`{name}` computed {most} products of matrices; its own half takes one.", mistake)
