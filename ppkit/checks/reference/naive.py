"""Naive model parallelism on real ranks, in plain PyTorch: stage r of the model on rank r."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def forward_stage(
    stage: nn.Module, batch: Tensor | None, shape: tuple[int, ...], rank: int, n_ranks: int
) -> tuple[Tensor, Tensor]:
    """Run this rank's stage on one batch, and hand the result on.

    Args:
        stage: this rank's slice of the model.
        batch: on rank 0 the inputs ``[N, D]``; None elsewhere.
        shape: of this stage's input.
        rank: this rank.
        n_ranks: how many there are.

    Returns:
        the stage's input, which holds its gradient after a backward, and its output.
    """
    if rank == 0:
        assert batch is not None  # rank 0 is given one
        stage_input = batch
    else:
        stage_input = torch.empty(shape, dtype=next(stage.parameters()).dtype)
        dist.recv(stage_input, src=rank - 1)
        stage_input.requires_grad_()
    output: Tensor = stage(stage_input)
    if rank < n_ranks - 1:
        dist.send(output.detach(), dst=rank + 1)
    return stage_input, output


def backward_stage(stage_input: Tensor, output: Tensor, loss: Tensor | None, rank: int, n_ranks: int) -> None:
    """Run this rank's backward, and hand the gradient of its input back.

    Args:
        stage_input: what the stage was called with.
        output: what it returned.
        loss: on the last rank the loss; None elsewhere.
        rank: this rank.
        n_ranks: how many there are.
    """
    if rank == n_ranks - 1:
        assert loss is not None  # the last rank is given it
        loss.backward()
    else:
        output_grad = torch.empty_like(output)
        dist.recv(output_grad, src=rank + 1)
        output.backward(output_grad)
    if rank > 0:
        if not stage_input.is_leaf or stage_input.grad is None:
            raise ValueError("the stage input has no gradient after the backward: is it the first argument?")
        dist.send(stage_input.grad, dst=rank - 1)


def train_step(
    stage: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Tensor | None,
    targets: Tensor,
    shape: tuple[int, ...],
    rank: int,
    n_ranks: int,
) -> float | None:
    """Take one training step with the other ranks.

    Args:
        stage: this rank's slice of the model.
        optimizer: of this stage's parameters.
        batch: on rank 0 the inputs ``[N, D]``; None elsewhere.
        targets: classes ``[N]``, on every rank.
        shape: of this stage's input.
        rank: this rank.
        n_ranks: how many there are.

    Returns:
        on the last rank the loss before the step; None elsewhere.
    """
    optimizer.zero_grad()
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets) if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.step()
    return None if loss is None else loss.item()
