"""Tasks 3 and 4: a micro-batch's share of the loss, and the forwards of all micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ppkit.checks.drivers import lab02 as ranks
from ppkit.checks.judge import Passed, Wrong, graded, require_function
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.gpipe import G18, G19, G19_LOSS, G23, G24, G24_LIST, LOSS_USED_UP, LOSS_WITHOUT_GRAPH
from ppkit.checks.mistakes.naive import N01, N02, NO_GRAPH
from ppkit.checks.oracle import build_stages
from ppkit.checks.oracle_gpipe import Cut, cut, forward_backward
from ppkit.checks.steps import forward_expected, require_waits
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import difference, equal, first_difference

__all__ = ["check_forward_all", "check_microbatch_loss"]

LOSS_PARAMETERS = ("output", "targets", "n_rows")
FORWARD_PARAMETERS = ("stage", "microbatches", "shapes", "rank", "n_ranks")
CLASSES, WIDTHS = 4, (6, 5, 4, 5)
CUTS = ((4, 4, 4), (5, 5, 2), (7,))

# Task 3: the loss


@graded("Task 3, microbatch_loss", 15)
def check_microbatch_loss(microbatch_loss: Any) -> Passed:
    """Check a micro-batch's share of the loss: its gradient, for equal and for ragged micro-batches."""
    require_function(microbatch_loss, "microbatch_loss", LOSS_PARAMETERS)
    cuts = [_numbers(CLASSES, sizes) for sizes in CUTS]
    try:
        trial = on_ranks(ranks.losses, microbatch_loss, cuts, n_ranks=1, where="your function", expected=Expected(()))
    except Wrong as verdict:
        if verdict.mistake is G24:
            verdict.mistake = LOSS_USED_UP
        raise
    for data, sizes, seen in zip(cuts, CUTS, trial.results[0], strict=True):
        rows = f"micro-batches of {' and '.join(map(str, sizes))} rows"
        if all(value is None for value in seen["losses"]):
            raise trial.unfinished("it returned None.")
        for i, (loss, got) in enumerate(zip(seen["losses"], seen["grads"], strict=True)):
            if isinstance(loss, str) or loss is None:
                raise trial.wrong(f"it returned {loss or 'nothing'}; it must return a loss, a scalar.", RETURNED)
            if got is None:
                raise trial.wrong("a backward from what it returns gives the outputs no gradient.", LOSS_WITHOUT_GRAPH)
            right = _gradient(data, i)
            if text := difference(got, right):
                text = f"with {rows}, the gradient of micro-batch {i}'s output {text}."
                raise trial.wrong(text, _why_scaled(got, right, sizes, i))
    return Passed(
        "With equal and with ragged micro-batches, the gradients add up to those of the whole batch.",
        "The losses add up to the mean loss of the whole batch.",
    )


def _numbers(width: int, sizes: Sequence[int]) -> Cut:
    numbers = torch.Generator().manual_seed(sum(sizes))
    inputs = torch.randn(sum(sizes), width, dtype=torch.float64, generator=numbers)
    return cut((inputs, torch.randint(CLASSES, (sum(sizes),), generator=numbers)), sizes)


def _gradient(data: Cut, index: int) -> Tensor:
    output = data.inputs[index].clone().requires_grad_()
    loss = cross_entropy(output, data.targets[index], reduction="sum") / data.n_rows
    return torch.autograd.grad(loss, output)[0]


def _why_scaled(got: Tensor, right: Tensor, sizes: Sequence[int], index: int) -> Mistake:
    """Why the gradient of a micro-batch's output is wrong."""
    if equal(got, right * sum(sizes) / sizes[index]):
        return G18
    if equal(got, right / len(sizes)):
        return G19
    ratio = float(got.abs().sum() / right.abs().sum())
    return G19_LOSS if ratio < 0.99 and equal(got, right * ratio) else WRONG_VALUES


# Task 4: the forwards


@graded("Task 4, forward_all", 20)
def check_forward_all(forward_all: Any) -> Passed:
    """Check the forwards over 2, 3 and 4 ranks: messages, values, and whether every backward can follow."""
    require_function(forward_all, "forward_all", FORWARD_PARAMETERS)
    for n_ranks, sizes in ((2, (4, 4, 4)), (3, (5, 5, 2)), (4, (3, 2))):
        stages = build_stages((*WIDTHS[:n_ranks], CLASSES))
        data = _numbers(WIDTHS[0], sizes)
        _, stored = forward_backward(stages, data)
        trial = on_ranks(
            *(ranks.forward, forward_all, stages, data, stored),
            n_ranks=n_ranks,
            where=f"{n_ranks} ranks, micro-batches of {', '.join(map(str, sizes))} rows",
            expected=forward_expected(stages, stored),
        )
        _judge_returned(trial, len(sizes))
        trial.require_messages()
        for rank, seen in enumerate(trial.results):
            _judge_rank(trial, rank, seen, [parts[rank] for parts in stored])
        require_waits(trial)
    return Passed(
        "On 2, 3 and 4 ranks, with equal and with ragged micro-batches: every output is that of one process.",
        "Each rank but the last sent one message for each micro-batch, to the next.",
        "From every one of your outputs a backward can start, and what it leaves is right.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _judge_returned(trial: Trial, m: int) -> None:
    for rank, seen in enumerate(trial.results):
        if "outputs" not in seen:
            returned = seen["returned"]
            if returned is None and not any(trial.timeline.bytes_sent):
                raise trial.unfinished("your function returned None, and nothing was sent.", rank=rank)
            text = f"your function returned {returned or 'nothing'}; it must return a list of pairs of tensors, "
            raise trial.wrong(f"{text}(stage input, output).", RETURNED, rank=rank)
        if (n := len(seen["outputs"])) != m:
            raise trial.wrong(f"your list has {n} pair{'s' * (n != 1)} for {m} micro-batches.", G24_LIST, rank=rank)


def _judge_rank(trial: Trial, rank: int, seen: dict[str, Any], right: Sequence[Any]) -> None:
    if seen["buffers"] < len(right):
        raise trial.wrong("several of the stage inputs share one piece of memory.", G23, rank=rank)
    for i, part in enumerate(right):
        if text := difference(seen["outputs"][i], part.output):
            raise trial.wrong(f"the output of micro-batch {i} {text}.", WRONG_VALUES, rank=rank)
        if not seen["graphs"][i]:
            raise trial.wrong(f"from the output of micro-batch {i} no backward can start.", NO_GRAPH, rank=rank)
    for text, mistake in _gradients(rank, seen, right):
        raise trial.wrong(text, mistake, rank=rank)


def _gradients(rank: int, seen: dict[str, Any], right: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for i, part in enumerate(right):
        got = seen["input_grads"][i]
        if rank and got is None:
            text = f"after its backward, the stage input of micro-batch {i} has no gradient."
            yield text, N02 if any(seen["asks"]) else N01
        elif rank and (text := difference(got, part.input_grad)):
            yield f"after its backward, the gradient of micro-batch {i}'s stage input {text}.", WRONG_VALUES
    total = {name: sum(part.grads[name] for part in right) for name in right[0].grads}
    if text := first_difference(seen["grads"], total):
        yield f"after all backwards, the gradient of {text}.", WRONG_VALUES
