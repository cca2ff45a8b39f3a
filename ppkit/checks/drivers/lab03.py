"""Lab 03 on a rank: calls the learner's functions, and notes what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ppkit.checks.drivers.lab01 import shown
from ppkit.checks.drivers.lab02 import inputs_of, run_steps, schedules, shapes_of
from ppkit.checks.oracle_gpipe import Cut
from ppkit.checks.reference import one_f_one_b as reference

__all__ = ["exchange", "first_rank", "schedules", "train"]

Function = Callable[..., Any]


def exchange(function: Function, rounds: int) -> list[Any]:
    """Let two ranks exchange tensors of their own, several times."""
    rank = dist.get_rank()
    seen = []
    for number in range(rounds):
        outgoing = torch.full((300, 100), 10.0 * number + rank, dtype=torch.float64)
        incoming = torch.full_like(outgoing, -1.0)
        returned = function(outgoing, incoming, 1 - rank)
        seen.append(returned.clone() if torch.is_tensor(returned) else shown(returned))
        outgoing.fill_(-2.0)  # the caller's again
    return seen


def first_rank(first_rank_step: Function, stages: Sequence[nn.Module], cuts: Sequence[Cut]) -> dict[str, Any]:
    """Run the learner's step on rank 0 of three, and ppkit's on the others."""
    rank = dist.get_rank()
    stage = stages[rank]

    def step(cut: Cut, optimizer: torch.optim.Optimizer) -> Any:
        if rank == 0:
            return first_rank_step(stage, optimizer, [part.clone() for part in cut.inputs], dist.get_world_size())
        return reference.one_f_one_b_step(
            stage, optimizer, None, cut.targets, shapes_of(cut, stage), rank, dist.get_world_size()
        )

    return run_steps(stage, cuts, step)


def train(one_f_one_b_step: Function, stages: Sequence[nn.Module], cuts: Sequence[Cut]) -> dict[str, Any]:
    """Run the learner's step on each batch."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    stage = stages[rank]

    def step(cut: Cut, optimizer: torch.optim.Optimizer) -> Any:
        targets = list(cut.targets)
        return one_f_one_b_step(stage, optimizer, inputs_of(cut, rank), targets, shapes_of(cut, stage), rank, n_ranks)

    return run_steps(stage, cuts, step, keep_inputs=False)
