"""Training steps in plain PyTorch, as a learner writes them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ppkit.schedule import Schedule

BATCH, WIDTH = 4, 16


def all_reduce() -> float:
    """The smallest thing that needs all ranks."""
    x = torch.ones(10)
    dist.all_reduce(x)
    return x[0].item()


def all_reduce_spawned(rank: int, n_ranks: int, store: str) -> None:
    """The same for `torch.multiprocessing.spawn`, which leaves the process group to its user."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n_ranks)
    all_reduce()
    dist.destroy_process_group()


def all_reduce_by_environment() -> None:
    """The same where the environment says who is who, as torchrun's and accelerate's does."""
    dist.init_process_group("gloo")
    all_reduce()
    dist.destroy_process_group()


def pipeline(schedule: Schedule, n_steps: int) -> None:
    """Run a pipeline schedule with asynchronous messages, `n_steps` times."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    stage = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.01)
    for _ in range(n_steps):
        dist.barrier()
        held, sends = {}, []
        for action in schedule.actions[rank]:
            i = action.microbatch
            if action.op.value == "F":
                x = torch.ones(BATCH, WIDTH)
                if rank > 0:
                    dist.recv(x, rank - 1)
                    x.requires_grad_()
                y = stage(x)
                held[i] = x, y
                if rank < last:
                    sends.append(dist.isend(y.detach(), rank + 1))
            else:
                x, y = held.pop(i)
                gradient = torch.ones(BATCH, WIDTH)
                if rank < last:
                    dist.recv(gradient, rank + 1)
                y.backward(gradient)
                if rank > 0:
                    sends.append(dist.isend(x.grad, rank - 1))
        for work in sends:
            work.wait()
        optimizer.step()
        optimizer.zero_grad()
