"""What one process computes with a skip or with dropout, and what known mistakes would give."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppkit.checks.drivers.lab07 import Join
from ppkit.checks.messages import Expected, Message
from ppkit.checks.mistakes.balance_skips import ELSEWHERE
from ppkit.checks.oracle import Training, build_stages, update
from ppkit.checks.oracle_gpipe import Cut

__all__ = ["build_skip_stages", "build_thick_stages", "messages", "train", "without_recomputation"]

WIDTHS = (64, 12, 10, 9)
HIDDEN, WIDTH = 48, 6


Results = dict[tuple[str, int], dict[str, Tensor]]  # of "F" or "B" of a micro-batch, by name


# A skip from the first stage to the last


def build_skip_stages(n_ranks: int) -> list[nn.Module]:
    """A classifier of digits in stages; the last one takes the first one's output too."""
    widths = WIDTHS[:n_ranks]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        last = Join(widths[-1], widths[1], 10)
    return [*build_stages((*widths, 1), seed=7)[:-1], last]


def messages(stages: Sequence[nn.Module], data: Sequence[Cut]) -> Expected:
    """One message each way for each micro-batch, between neighbours and over the skip."""
    last = len(stages) - 1
    widths = [stage[0].out_features for stage in stages[:-1]]  # type: ignore[index]  # they are nn.Sequential
    links = [*((rank, rank + 1, width) for rank, width in enumerate(widths)), (0, last, widths[0])]
    found = []
    for rows in (len(part) for cut in data for part in cut.targets):
        for source, target, width in links:
            found += [Message(source, target, rows * width * 8), Message(target, source, rows * width * 8)]
    sizes = tuple(frozenset(one.numel() * 8 for one in stage.parameters()) for stage in stages)
    return Expected(tuple(found), sizes, ELSEWHERE)


def train(stages: Sequence[nn.Module], batches: Sequence[Cut], mistake: str = "") -> Training:
    """Train copies of the stages with SGD, a step a batch.

    Args:
        stages: of the model.
        batches: in micro-batches.
        mistake: "chain" or "skip": the first stage learns by that part of its gradient alone; "mean": by half of
            both; "chain twice", "skip twice": by one part too much; "G25": by the skip's part of another micro-batch,
            in the opposite order; "running": by those of the micro-batches before, too; "swapped": the last stage's
            arguments in the opposite order; "G18": unscaled losses; "G19": scaled twice; "G20": the mean of means;
            "G22": the last micro-batch alone; "never": gradients are never cleared.
    """
    stages = [copy.deepcopy(stage) for stage in stages]
    velocities: dict[nn.Parameter, Tensor] = {}
    losses, weights = [], []
    for data in batches:
        losses.append(_batch_loss(stages, data))
        _backwards(stages, data, mistake)
        for stage in stages:
            for parameter in stage.parameters():
                update(parameter, velocities)
        weights.append(tuple({n: p.detach().clone() for n, p in stage.named_parameters()} for stage in stages))
    return Training(tuple(losses), tuple(weights))


def _forward(
    stages: Sequence[nn.Module], inputs: Tensor, swapped: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first stage's output, two leaves of its values for its two users, and the last stage's output."""
    output = stages[0](inputs)
    chain, skip = (output.detach().requires_grad_() for _ in range(2))
    x = chain
    for stage in stages[1:-1]:
        x = stage(x)
    return output, chain, skip, stages[-1](skip, x) if swapped else stages[-1](x, skip)


def _batch_loss(stages: Sequence[nn.Module], data: Cut) -> float:
    inputs, targets = data.batch
    return cross_entropy(_forward(stages, inputs)[-1], targets).item()


_PARTS = {"chain": (1, 0), "skip": (0, 1), "mean": (0.5, 0.5), "chain twice": (2, 1), "skip twice": (1, 2)}


def _backwards(stages: Sequence[nn.Module], data: Cut, mistake: str) -> None:
    along, over = _PARTS.get(mistake, (1, 1))
    m = len(data)
    parts = []  # of each micro-batch: the first stage's output, and what came along the stages and over the skip
    if mistake != "never":
        _clear(stages)
    for inputs, targets in zip(data.inputs, data.targets, strict=True):
        if mistake == "G22":
            _clear(stages)
        share = len(targets) / data.n_rows
        factor = {"G18": 1.0, "G19": share / m, "G20": 1 / m}.get(mistake, share)
        output, chain, skip, scores = _forward(stages, inputs, mistake == "swapped")
        torch.autograd.backward(cross_entropy(scores, targets) * factor)
        assert chain.grad is not None  # both were used
        assert skip.grad is not None
        parts.append((output, chain.grad, skip.grad))
    if mistake == "G22":
        _clear(stages[:1])
        parts = parts[-1:]
    others = parts[::-1] if mistake == "G25" else parts
    before: Tensor | float = 0.0
    for (output, chain_grad, _), (_, _, skip_grad) in zip(parts, others, strict=True):
        grad = along * chain_grad + over * skip_grad + before
        torch.autograd.backward(output, grad)
        if mistake == "running":
            before = grad


def _clear(stages: Sequence[nn.Module]) -> None:
    for stage in stages:
        stage.zero_grad()


# Dropout


def build_thick_stages(n_stages: int, dropout: float) -> list[nn.Module]:
    """Stages that are narrow at their ends and wide inside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        return [
            nn.Sequential(
                nn.Linear(WIDTH, HIDDEN, dtype=torch.float64),
                nn.Tanh(),
                nn.Dropout(dropout),
                nn.Linear(HIDDEN, WIDTH, dtype=torch.float64),
                nn.Tanh(),
            )
            for _ in range(n_stages)
        ]


def without_recomputation(stages: Sequence[nn.Module], batch: Cut, seed: int) -> list[Results]:
    """What each stage's forwards and backwards give; a parameter's gradient is what has been added up so far.

    Args:
        stages: of the model.
        batch: in micro-batches.
        seed: of the random numbers of stage 0; that of stage r is r more.
    """
    stages = [copy.deepcopy(stage) for stage in stages]
    inputs, outputs = [], [list(batch.inputs)]
    with torch.random.fork_rng(devices=[]):
        for number, stage in enumerate(stages):
            torch.manual_seed(seed + number)
            inputs.append([value.detach().clone().requires_grad_() for value in outputs[-1]])
            outputs.append([stage(leaf) for leaf in inputs[-1]])
    found: list[Results] = [{} for _ in stages]
    for i, targets in enumerate(batch.targets):
        grad = None
        for number in reversed(range(len(stages))):
            output, leaf = outputs[number + 1][i], inputs[number][i]
            found[number]["F", i] = {"output": output.detach()}
            last = number == len(stages) - 1
            root = cross_entropy(output, targets, reduction="sum") / batch.n_rows if last else output
            torch.autograd.backward(root, grad)
            grad = leaf.grad
            assert grad is not None  # the stage has used it
            own = {name: p.grad.clone() for name, p in stages[number].named_parameters() if p.grad is not None}
            found[number]["B", i] = {**own, "the stage's input": grad}
    return found
