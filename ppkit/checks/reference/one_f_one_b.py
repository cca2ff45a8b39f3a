"""1F1B on real ranks, in plain PyTorch (PipeDream-flush, arXiv 2006.09503): warm-up, steady state, cool-down."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppkit.checks.reference.gpipe import microbatch_loss

__all__ = ["exchange", "one_f_one_b_step"]


def exchange(outgoing: Tensor, incoming: Tensor, peer: int) -> Tensor:
    """Send a tensor to a rank and receive another from it, whatever it does first.

    Args:
        outgoing: what is sent.
        incoming: buffer of what comes.
        peer: the other rank, which does the same.

    Returns:
        `incoming`, filled.
    """
    sending = dist.isend(outgoing, peer)
    dist.recv(incoming, peer)
    assert sending is not None  # this rank is in the group
    sending.wait()
    return incoming


def one_f_one_b_step(
    stage: nn.Module,
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[Tensor] | None,
    targets: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
    rank: int,
    n_ranks: int,
) -> float | None:
    """Take one training step with the other ranks; arguments and result are those of `gpipe_step`."""
    m, last = len(targets), rank == n_ranks - 1
    n_rows = sum(len(one) for one in targets)
    warm_up = min(n_ranks - 1 - rank, m)
    stored: deque[tuple[Tensor, Tensor]] = deque()
    sends: list[tuple[dist.Work, Tensor]] = []  # a buffer lives until its message has left
    total = 0.0

    def send(tensor: Tensor, peer: int) -> None:
        work = dist.isend(tensor, peer)
        assert work is not None  # this rank is in the group
        sends.append((work, tensor))

    def forward(i: int) -> None:
        if rank == 0:
            assert microbatches is not None  # rank 0 is given them
            stage_input = microbatches[i]
        else:
            stage_input = torch.empty(shapes[i], dtype=next(stage.parameters()).dtype)
            dist.recv(stage_input, src=rank - 1)
            stage_input.requires_grad_()
        output = stage(stage_input)
        if not last:
            send(output.detach(), rank + 1)
        stored.append((stage_input, output))

    def backward(i: int) -> None:
        nonlocal total
        stage_input, output = stored.popleft()
        if last:
            loss = microbatch_loss(output, targets[i], n_rows)
            total += loss.item()
            loss.backward()
        else:
            output_grad = torch.empty_like(output)
            dist.recv(output_grad, src=rank + 1)
            output.backward(output_grad)
        if rank > 0:
            assert stage_input.grad is not None  # a leaf of the graph
            send(stage_input.grad, rank - 1)

    optimizer.zero_grad()
    for i in range(warm_up):
        forward(i)
    for i in range(m - warm_up):
        forward(warm_up + i)
        backward(i)
    for i in range(m - warm_up, m):
        backward(i)
    for work, _ in sends:
        work.wait()
    optimizer.step()
    return total if last else None
