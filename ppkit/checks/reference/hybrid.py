"""Parts of a hybrid step on real ranks, in plain PyTorch: neighbours by their global ranks, and a mesh's groups."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["backward_stage", "forward_stage", "make_groups", "neighbours"]


def forward_stage(stage: nn.Module, rows: Tensor, before: int | None, after: int | None) -> tuple[Tensor, Tensor]:
    """Run this rank's stage on one micro-batch, and hand the result on.

    Args:
        stage: this rank's slice of the model, an `nn.Sequential` that begins with a linear layer.
        rows: inputs of the model ``[n, D]``; behind the first stage only their number counts.
        before: global rank of the stage before; None on the first.
        after: global rank of the stage after; None on the last.

    Returns:
        the stage's input, which holds its gradient after a backward, and its output.
    """
    stage_input = rows
    if before is not None:
        weight = next(stage.parameters())
        stage_input = torch.empty(len(rows), weight.shape[1], dtype=weight.dtype)
        dist.recv(stage_input, src=before)
        stage_input.requires_grad_()
    output: Tensor = stage(stage_input)
    if after is not None:
        dist.send(output.detach(), dst=after)
    return stage_input, output


def backward_stage(
    stage_input: Tensor, output: Tensor, loss: Tensor | None, before: int | None, after: int | None
) -> None:
    """Run this rank's backward of one micro-batch, and hand the gradient of its input back.

    Args:
        stage_input: what the stage was called with.
        output: what it returned.
        loss: on the last stage the loss; None elsewhere.
        before: global rank of the stage before; None on the first.
        after: global rank of the stage after; None on the last.
    """
    if after is None:
        assert loss is not None  # the last stage has it
        loss.backward()
    else:
        output_grad = torch.empty_like(output)
        dist.recv(output_grad, src=after)
        output.backward(output_grad)
    if before is not None:
        assert stage_input.grad is not None  # a leaf of the graph, by forward_stage
        dist.send(stage_input.grad, dst=before)


def make_groups(n_replicas: int, n_stages: int) -> tuple[Any, Any]:
    """Make every group of the mesh, on every rank; return this rank's row and column.

    Args:
        n_replicas: rows of the mesh.
        n_stages: ranks of one pipeline.
    """
    mesh = torch.arange(n_replicas * n_stages).view(n_replicas, n_stages)
    replica, number = divmod(dist.get_rank(), n_stages)
    rows = [dist.new_group(ranks.tolist()) for ranks in mesh]
    columns = [dist.new_group(ranks.tolist()) for ranks in mesh.T]
    return rows[replica], columns[number]


def neighbours(n_stages: int) -> tuple[int | None, int | None]:
    """Return the global ranks of the stages before and after this rank's; None at an end.

    Args:
        n_stages: ranks of one pipeline.
    """
    rank = dist.get_rank()
    number = rank % n_stages
    return rank - 1 if number else None, rank + 1 if number < n_stages - 1 else None
