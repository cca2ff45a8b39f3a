"""A tensor-parallel MLP: every rank holds a piece of each matrix, and one all-reduce each way joins them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ppkit.errors import PpkitError

__all__ = ["ParallelMLP", "TensorParallelError"]


class TensorParallelError(PpkitError, ValueError):
    """A layer cannot be divided among the ranks."""


class ParallelMLP(nn.Module):
    """This rank's share of ``Linear → GELU → Linear``, cut inside the matrices (Megatron-LM, arXiv 1909.08053).

    ::

        x ──copy──► rank 0: x·A₀ᵀ ─GELU─► ·B₀ᵀ ─┐
           └──────► rank 1: x·A₁ᵀ ─GELU─► ·B₁ᵀ ─┴─ all-reduce ─► + bias ─► y      forward
        ∂L/∂x ◄─ all-reduce ◄─ a part from each rank                              backward

    The first matrix is cut by columns, that is, by outputs, so that GELU acts on complete sums, not on parts of
    them; the second by rows, its inputs, so that each rank uses just what it has computed. Every rank gets the same
    x and y.

    Args:
        first: the layer that is cut by outputs: ``[hidden, width]``; whole, with a bias, the same on each rank.
        second: the layer that is cut by inputs: ``[width, hidden]``; likewise.
        group: the ranks among which to cut; None: all.

    Raises:
        TensorParallelError: the hidden size is not a multiple of the number of ranks, or differs in the two; a layer
            has no bias.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear, group: Any = None) -> None:
        super().__init__()
        rank, n_ranks = dist.get_rank(group), dist.get_world_size(group)
        hidden = first.out_features
        if second.in_features != hidden or hidden % n_ranks:
            raise TensorParallelError(
                f"the first layer gives {hidden} numbers and the second takes {second.in_features}; both must be the "
                f"same multiple of the {n_ranks} ranks",
                values={"first": hidden, "second": second.in_features, "n_ranks": n_ranks},
            )
        if first.bias is None or second.bias is None:
            raise TensorParallelError("ParallelMLP cuts layers with a bias: build both with bias=True")
        self.group = group
        mine = slice(rank * hidden // n_ranks, (rank + 1) * hidden // n_ranks)
        self.rows = nn.Parameter(first.weight.detach()[mine].clone())
        self.rows_bias = nn.Parameter(first.bias.detach()[mine].clone())
        self.columns = nn.Parameter(second.weight.detach()[:, mine].clone())
        self.bias = nn.Parameter(second.bias.detach().clone())  # whole, the same on each rank

    def forward(self, x: Tensor) -> Tensor:
        """The same ``[..., width]`` on every rank to the same ``[..., width]`` on every rank."""
        copied: Tensor = _Copy.apply(x, self.group)  # type: ignore[no-untyped-call]
        hidden = F.gelu(F.linear(copied, self.rows, self.rows_bias))
        part = F.linear(hidden, self.columns)
        total: Tensor = _Sum.apply(part, self.group)  # type: ignore[no-untyped-call]
        return total + self.bias  # after the sum, or it would be added once for each rank


class _Copy(torch.autograd.Function):
    """Forward: nothing. Backward: the gradients of all ranks' uses of the same input, summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Sum(torch.autograd.Function):
    """Forward: the parts of all ranks, summed. Backward: nothing, for each rank's part enters the sum as it is."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
