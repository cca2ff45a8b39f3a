"""What one process computes where replicas share a batch, and what known mistakes of data parallelism would give."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppkit.checks.oracle import Batch, update
from ppkit.checks.oracle_gpipe import Cut
from ppkit.data import digits

__all__ = ["Branches", "Net", "Trained", "combine", "descend", "digit_shards", "shard_gradients", "state", "train"]

Gradients = dict[str, Tensor]
WIDTH = 8


class Net(nn.Module):
    """A classifier of digits, float64, in which two layers share a weight, and with a buffer.

    Args:
        seed: of the weights and of the buffer; the caller's random numbers stay.
    """

    mean: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(64, WIDTH, dtype=torch.float64)
            self.second = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
            self.third = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
            self.last = nn.Linear(WIDTH, 10, dtype=torch.float64)
        self.third.weight = self.second.weight
        self.register_buffer("mean", torch.full((64,), 0.1 * seed + 0.2, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[N, 64]`` to scores ``[N, 10]``."""
        hidden = torch.tanh(self.first(images - self.mean))
        hidden = torch.tanh(self.third(torch.tanh(self.second(hidden))))
        return self.last(hidden)  # type: ignore[no-any-return]


class Branches(nn.Module):
    """A classifier of digits with two branches, float64; a backward goes through them in the opposite order."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(64, WIDTH, dtype=torch.float64)
            self.left = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
            self.right = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
            self.last = nn.Linear(WIDTH, 10, dtype=torch.float64)

    def forward(self, images: Tensor, branches: Sequence[str] = ("left", "right")) -> Tensor:
        """Images ``[N, 64]`` to scores ``[N, 10]``, through some branches in some order."""
        hidden = torch.tanh(self.first(images))
        total = torch.zeros_like(hidden)
        for name in branches:
            total = total + torch.tanh(getattr(self, name)(hidden))
        return self.last(total)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Trained:
    """Some training steps.

    Attributes:
        losses: of the whole batch, before each step.
        gradients: with which each step is taken, by name.
        weights: after each step, by name.
    """

    losses: tuple[float, ...]
    gradients: tuple[Gradients, ...]
    weights: tuple[Gradients, ...]


def digit_shards(sizes: Sequence[Sequence[int]]) -> list[Cut]:
    """Batches of digits in shards.

    Args:
        sizes: rows of each shard of each batch.
    """
    images, labels = digits(dtype=torch.float64, n_images=sum(map(sum, sizes)))
    rows = [sum(one) for one in sizes]
    parts = zip(images.split(rows), labels.split(rows), sizes, strict=True)
    return [Cut(*(tuple(t.clone() for t in whole.split(list(one))) for whole in (x, y))) for x, y, one in parts]


def state(model: nn.Module) -> Gradients:
    """Copies of a model's parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def shard_gradients(model: nn.Module, shard: Batch, *how: Sequence[str]) -> Gradients:
    """The gradients of the mean loss of a shard; zero for a parameter that takes no part.

    Args:
        model: its `.grad` are left alone.
        shard: inputs and classes.
        *how: other arguments of the model.
    """
    loss = cross_entropy(model(shard[0], *how), shard[1])
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(p) if grad is None else grad
        for name, p, grad in zip(names, parameters, found, strict=True)
    }


def combine(gradients: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Gradients:
    """The weighted sum of several shards' gradients."""
    return {name: sum(w * g[name] for w, g in zip(weights, gradients, strict=True)) for name in gradients[0]}  # type: ignore[misc]


@torch.no_grad()
def descend(model: nn.Module, gradients: Mapping[str, Tensor], rate: float) -> None:
    """One step of plain SGD."""
    for name, parameter in model.named_parameters():
        parameter.sub_(rate * gradients[name])


def train(model: nn.Module, batches: Sequence[Cut], mistake: str = "") -> Trained:
    """Train a copy of a model with SGD, a step a batch.

    Args:
        model: at the start.
        batches: in shards, whose losses are means over their own rows.
        mistake: "D44": the shards' gradients are summed; "twice": their mean is divided by their number once more.
    """
    model = copy.deepcopy(model)
    velocities: dict[nn.Parameter, Tensor] = {}
    losses, gradients, weights = [], [], []
    for batch in batches:
        shards = list(zip(batch.inputs, batch.targets, strict=True))
        losses.append(cross_entropy(model(torch.cat(batch.inputs)), torch.cat(batch.targets)).item())
        shares = [1.0 if mistake == "D44" else len(y) / batch.n_rows for _, y in shards]
        shares = [share / len(shards) for share in shares] if mistake == "twice" else shares
        found = combine([shard_gradients(model, shard) for shard in shards], shares)
        for name, parameter in model.named_parameters():
            parameter.grad = found[name]
            update(parameter, velocities)
        gradients.append(found)
        weights.append(state(model))
    return Trained(tuple(losses), tuple(gradients), tuple(weights))
