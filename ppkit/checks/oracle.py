"""What one process computes with a model in stages: the right numbers, and those of known mistakes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["Batch", "Pass", "Training", "build_stages", "parameters", "run", "train", "update"]

Batch = tuple[Tensor, Tensor]  # inputs [N, D], classes [N]
LEARNING_RATE, MOMENTUM = 0.1, 0.9


@dataclass(frozen=True)
class Pass:
    """One stage's part of one forward and backward.

    Attributes:
        input, output: of the stage.
        output_grad: gradient of the loss by its output, which comes from the next stage.
        input_grad: gradient by its input, which goes to the stage before.
        grads: gradients of its parameters by name.
    """

    input: Tensor
    output: Tensor
    output_grad: Tensor
    input_grad: Tensor
    grads: dict[str, Tensor]


@dataclass(frozen=True)
class Training:
    """Some training steps.

    Attributes:
        losses: before each step.
        weights: after each step, for each stage, by name.
    """

    losses: tuple[float, ...]
    weights: tuple[tuple[dict[str, Tensor], ...], ...]


def build_stages(widths: Sequence[int], seed: int = 0) -> list[nn.Sequential]:
    """Stages in float64, each a linear layer, all but the last with a tanh; the caller's random numbers stay.

    Args:
        widths: numbers in the input of each stage, and in the last one's output.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(widths)]
    return [nn.Sequential(layer, nn.Tanh()) for layer in layers[:-1]] + [nn.Sequential(layers[-1])]


def parameters(stage: nn.Module) -> dict[str, Tensor]:
    """A stage's parameters by name."""
    return {name: parameter.detach() for name, parameter in stage.named_parameters()}


def run(stages: Sequence[nn.Module], batch: Batch, mistake: str = "") -> tuple[float, list[Pass]]:
    """Run one forward and backward, stage by stage.

    Args:
        stages: of the model; their `.grad` are left alone.
        batch: inputs and classes.
        mistake: "N12": stages in front ignore the gradient from the next; "N13": they take their own loss;
            "activation": they are sent their own output in place of its gradient; "sum": the loss is summed over the
            rows.

    Returns:
        the loss, and each stage's part.
    """
    inputs, targets = batch
    values: list[tuple[Tensor, Tensor]] = []
    for stage in stages:
        inputs = inputs.detach().requires_grad_()
        values.append((inputs, stage(inputs)))
        inputs = values[-1][1]
    loss = cross_entropy(inputs, targets)
    passes: list[Pass] = []
    output_grad = _loss_grad(inputs, targets) * (len(targets) if mistake == "sum" else 1)
    for index in reversed(range(len(stages))):
        stage_input, output = values[index]
        if mistake == "N12" and index < len(stages) - 1:
            output_grad = torch.ones_like(output)
        elif mistake == "activation" and index < len(stages) - 1:
            output_grad = output.detach()
        elif mistake == "N13":
            output_grad = _loss_grad(output, targets)
        names, parameters = zip(*stages[index].named_parameters(), strict=True)
        input_grad, *grads = torch.autograd.grad(output, [stage_input, *parameters], output_grad)
        own = dict(zip(names, grads, strict=True))
        passes.insert(0, Pass(stage_input.detach(), output.detach(), output_grad, input_grad, own))
        output_grad = input_grad
    return loss.item(), passes


def _loss_grad(output: Tensor, targets: Tensor) -> Tensor:
    output = output.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(output, targets), output)[0]


def train(stages: Sequence[nn.Module], batches: Sequence[Batch], mistake: str = "") -> Training:
    """Train copies of the stages with SGD.

    Args:
        stages: of the model.
        batches: one a step.
        mistake: as of `run`, or "G22": gradients are never cleared.
    """
    stages = [copy.deepcopy(stage) for stage in stages]
    losses, weights = [], []
    velocities: dict[nn.Parameter, Tensor] = {}
    for batch in batches:
        loss, passes = run(stages, batch, mistake)
        for stage, part in zip(stages, passes, strict=True):
            for name, parameter in stage.named_parameters():
                kept = parameter.grad if mistake == "G22" else None
                parameter.grad = part.grads[name] if kept is None else kept + part.grads[name]
                update(parameter, velocities)
        losses.append(loss)
        weights.append(tuple({n: p.detach().clone() for n, p in stage.named_parameters()} for stage in stages))
    return Training(tuple(losses), tuple(weights))


@torch.no_grad()
def update(parameter: nn.Parameter, velocities: dict[nn.Parameter, Tensor]) -> None:
    """One step of SGD with momentum; `torch.optim` would import 800 modules into the notebook's process."""
    assert parameter.grad is not None  # set by the caller
    velocity = velocities.get(parameter, torch.zeros_like(parameter))
    velocities[parameter] = MOMENTUM * velocity + parameter.grad
    parameter.sub_(LEARNING_RATE * velocities[parameter])
