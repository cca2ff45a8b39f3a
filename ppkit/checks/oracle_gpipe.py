"""What one process computes over micro-batches, and what known mistakes of GPipe would give."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppkit.checks.oracle import Batch, Pass, Training, run, update

__all__ = ["Cut", "Stored", "cut", "forward_backward", "gradients", "train"]

Stored = list[Pass]  # of one micro-batch: each stage's part


@dataclass(frozen=True)
class Cut:
    """A batch in micro-batches.

    Attributes:
        inputs: ``[n, D]`` each.
        targets: ``[n]`` each.
    """

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    @property
    def n_rows(self) -> int:
        """Of the whole batch."""
        return sum(len(part) for part in self.targets)

    @property
    def batch(self) -> Batch:
        """The whole batch."""
        return torch.cat(self.inputs), torch.cat(self.targets)

    def __len__(self) -> int:
        return len(self.inputs)


def cut(batch: Batch, sizes: Sequence[int]) -> Cut:
    """Cut a batch into micro-batches of these numbers of rows."""
    return Cut(*(tuple(part.clone() for part in tensor.split(list(sizes))) for tensor in batch))


def forward_backward(stages: Sequence[nn.Module], data: Cut, mistake: str = "") -> tuple[list[float], list[Stored]]:
    """Run every micro-batch; return the losses by which they count, and each stage's parts.

    Args:
        stages: of the model.
        data: the batch.
        mistake: "G18": a micro-batch's own mean; "G19": scaled by the number of micro-batches once more; "G20": the
            mean of the micro-batches' means; "G25": gradients come back in the opposite order.
    """
    losses, stored = [], []
    m = len(data)
    for inputs, targets in zip(data.inputs, data.targets, strict=True):
        share = len(targets) / data.n_rows
        factor = {"G18": 1.0, "G19": share / m, "G20": 1 / m}.get(mistake, share)
        loss, parts = run(stages, (inputs, targets))
        losses.append(loss * factor)
        stored.append([_scaled(part, factor) for part in parts])
    if mistake == "G25":
        stored = [_with_grads_of(stages, own, other) for own, other in zip(stored, reversed(stored), strict=True)]
    return losses, stored


def _scaled(part: Pass, factor: float) -> Pass:
    grads = {name: grad * factor for name, grad in part.grads.items()}
    return Pass(part.input, part.output, part.output_grad * factor, part.input_grad * factor, grads)


def _with_grads_of(stages: Sequence[nn.Module], own: Stored, other: Stored) -> Stored:
    """The parts of a micro-batch whose first stage gets another's gradient; both have the same number of rows."""
    stage_input = own[0].input.detach().requires_grad_()
    names, parameters = zip(*stages[0].named_parameters(), strict=True)
    found = torch.autograd.grad(stages[0](stage_input), [stage_input, *parameters], other[0].output_grad)
    grads = dict(zip(names, found[1:], strict=True))
    return [Pass(own[0].input, own[0].output, other[0].output_grad, found[0], grads), *own[1:]]


def gradients(stages: Sequence[nn.Module], data: Cut, mistake: str = "") -> tuple[dict[str, Tensor], ...]:
    """The gradients of every stage's parameters after a step's backwards, by name.

    Args:
        stages: of the model.
        data: the batch.
        mistake: as of `forward_backward`, or "G22": only the last micro-batch's are left.
    """
    _, stored = forward_backward(stages, data, mistake)
    if mistake == "G22":
        stored = stored[-1:]
    return tuple(
        {name: torch.stack([parts[index].grads[name] for parts in stored]).sum(0) for name in stored[0][index].grads}
        for index in range(len(stages))
    )


def train(stages: Sequence[nn.Module], batches: Sequence[Cut], mistake: str = "") -> Training:
    """Train copies of the stages with SGD, a step a batch.

    Args:
        stages: of the model.
        batches: in micro-batches.
        mistake: as of `gradients`, or "never": gradients are never cleared.
    """
    stages = [copy.deepcopy(stage) for stage in stages]
    velocities: dict[nn.Parameter, Tensor] = {}
    losses, weights = [], []
    for data in batches:
        losses.append(run(stages, data.batch)[0])
        found = gradients(stages, data, mistake)
        for stage, grads in zip(stages, found, strict=True):
            for name, parameter in stage.named_parameters():
                kept = parameter.grad if mistake == "never" else None
                parameter.grad = grads[name] if kept is None else kept + grads[name]
                update(parameter, velocities)
        weights.append(tuple({n: p.detach().clone() for n, p in stage.named_parameters()} for stage in stages))
    return Training(tuple(losses), tuple(weights))
