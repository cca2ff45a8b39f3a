"""GPipe on real ranks, in plain PyTorch (arXiv 1811.06965): all forwards, then all backwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppkit.checks.reference.naive import backward_stage, forward_stage

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
    inputs: Sequence[Tensor | None] = [None] * len(shapes) if microbatches is None else microbatches
    return [forward_stage(stage, batch, shape, rank, n_ranks) for batch, shape in zip(inputs, shapes, strict=True)]


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
        loss = microbatch_loss(output, classes, n_rows) if rank == n_ranks - 1 else None
        total += 0.0 if loss is None else loss.item()
        backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.step()
    return total if rank == n_ranks - 1 else None
