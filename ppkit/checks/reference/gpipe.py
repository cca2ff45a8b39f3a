"""GPipe on real ranks, in plain PyTorch (arXiv 1811.06965): all forwards, then all backwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

Stored = list[tuple[Tensor, Tensor]]  # of each micro-batch: the stage's input and output


def microbatch_loss(output: Tensor, targets: Tensor, n_rows: int) -> Tensor:
    """Return a micro-batch's part of the batch's mean loss; over the micro-batches, the parts add up to it.

    Args:
        output: of the last stage, ``[n, C]``.
        targets: classes ``[n]``.
        n_rows: rows of the whole batch.
    """
    return nn.functional.cross_entropy(output, targets, reduction="sum") / n_rows


def forward_all(
    stage: nn.Module, microbatches: Sequence[Tensor] | None, shapes: Sequence[tuple[int, ...]], rank: int, n_ranks: int
) -> Stored:
    """Run this rank's stage on every micro-batch, and hand each result on.

    Args:
        stage: this rank's slice of the model.
        microbatches: on rank 0 the inputs, ``[n, D]`` each; None elsewhere.
        shapes: of this stage's input, one for each micro-batch.
        rank: this rank.
        n_ranks: how many there are.

    Returns:
        for each micro-batch the stage's input, which holds its gradient after a backward, and its output.
    """
    stored = []
    for i, shape in enumerate(shapes):
        if rank == 0:
            assert microbatches is not None  # rank 0 is given them
            stage_input = microbatches[i]
        else:
            stage_input = torch.empty(shape, dtype=next(stage.parameters()).dtype)
            dist.recv(stage_input, src=rank - 1)
            stage_input.requires_grad_()
        output = stage(stage_input)
        if rank < n_ranks - 1:
            dist.send(output.detach(), dst=rank + 1)
        stored.append((stage_input, output))
    return stored


def gpipe_step(
    stage: nn.Module,
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[Tensor] | None,
    targets: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
    rank: int,
    n_ranks: int,
) -> float | None:
    """Take one training step with the other ranks.

    Args:
        stage: this rank's slice of the model.
        optimizer: of this stage's parameters.
        microbatches: on rank 0 the inputs, ``[n, D]`` each; None elsewhere.
        targets: classes ``[n]`` of each micro-batch, on every rank.
        shapes: of this stage's input, one for each micro-batch.
        rank: this rank.
        n_ranks: how many there are.

    Returns:
        on the last rank the mean loss of the batch before the step; None elsewhere.
    """
    optimizer.zero_grad()
    n_rows = sum(len(one) for one in targets)
    total = 0.0
    for (stage_input, output), classes in zip(
        forward_all(stage, microbatches, shapes, rank, n_ranks), targets, strict=True
    ):
        if rank == n_ranks - 1:
            loss = microbatch_loss(output, classes, n_rows)
            total += loss.item()
            loss.backward()
        else:
            output_grad = torch.empty_like(output)
            dist.recv(output_grad, src=rank + 1)
            output.backward(output_grad)
        if rank > 0:
            assert stage_input.grad is not None  # a leaf of the graph, by forward_all
            dist.send(stage_input.grad, dst=rank - 1)
    optimizer.step()
    return total if rank == n_ranks - 1 else None
