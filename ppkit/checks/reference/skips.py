"""A GPipe step with a skip from the first stage straight to the last, on real ranks, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppkit.checks.reference.gpipe import microbatch_loss

__all__ = ["skip_step"]


def skip_step(
    stage: nn.Module,
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[Tensor] | None,
    targets: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
    skip_shapes: Sequence[tuple[int, ...]],
    rank: int,
    n_ranks: int,
) -> float | None:
    """Take one training step with the other ranks.

    Args:
        stage: this rank's slice of the model; the last one is called with its input and the skip.
        optimizer: of this stage's parameters.
        microbatches: on rank 0 the inputs, ``[n, D]`` each; None elsewhere.
        targets: classes ``[n]`` of each micro-batch, on every rank.
        shapes: of this stage's input, one for each micro-batch.
        skip_shapes: of the first stage's output.
        rank: this rank.
        n_ranks: how many there are, 3 or more.

    Returns:
        on the last rank the mean loss of the batch before the step; None elsewhere.
    """
    last = n_ranks - 1
    sources = [] if rank == 0 else [rank - 1, 0] if rank == last else [rank - 1]
    users = [] if rank == last else [1, last] if rank == 0 else [rank + 1]
    sends: list[tuple[Any, Tensor]] = []
    n_rows = sum(len(one) for one in targets)
    total = 0.0

    optimizer.zero_grad()
    stored = []
    for i in range(len(targets)):
        if microbatches is not None and rank == 0:
            inputs = [microbatches[i]]
        else:
            inputs = [
                _received(shape[i], source) for shape, source in zip((shapes, skip_shapes), sources, strict=False)
            ]
            for tensor in inputs:
                tensor.requires_grad_()
        output = stage(*inputs)
        sends += [_sent(output.detach(), user) for user in users]
        stored.append((inputs, output))
    for (inputs, output), classes in zip(stored, targets, strict=True):
        if rank == last:
            loss = microbatch_loss(output, classes, n_rows)
            total += loss.item()
            loss.backward()
        else:
            parts = [_received(tuple(output.shape), user) for user in users]
            output.backward(torch.stack(parts).sum(0))
        sends += [
            _sent(tensor.grad, source)
            for tensor, source in zip(inputs, sources, strict=False)
            if tensor.grad is not None
        ]
    for work, _ in sends:
        work.wait()
    optimizer.step()
    return total if rank == last else None


def _received(shape: tuple[int, ...], source: int) -> Tensor:
    tensor = torch.empty(shape, dtype=torch.float64)
    dist.recv(tensor, source)
    return tensor


def _sent(tensor: Tensor, user: int) -> tuple[Any, Tensor]:
    return dist.isend(tensor, user), tensor  # whoever waits for it keeps the tensor
