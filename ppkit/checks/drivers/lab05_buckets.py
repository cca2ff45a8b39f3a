"""Lab 05's last task on a rank: the learner's buckets in a training step, and what they did in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from ppkit.checks.drivers.lab01 import gradients, shown
from ppkit.checks.drivers.lab05 import collectives, tensor_bytes
from ppkit.checks.oracle import LEARNING_RATE
from ppkit.checks.oracle_gpipe import Cut
from ppkit.observe.fields import NEVER_WAITED

__all__ = ["Setting", "train"]


@dataclass(frozen=True)
class Setting:
    """What the learner's buckets are tried with.

    Attributes:
        name: in words.
        model: alike on every rank.
        bucket_bytes: of a full bucket.
        batches: for each step, each rank's micro-batches.
        how: for each rank, further arguments of the model.
        in_turn: rank 1 begins a step's last backward only when rank 0's is over, which must not wait for it.
    """

    name: str
    model: nn.Module
    bucket_bytes: int
    batches: Sequence[Sequence[Cut]]
    how: Sequence[tuple[Any, ...]]
    in_turn: bool = False

    @property
    def n_ranks(self) -> int:
        """How many ranks it takes."""
        return len(self.how)

    @property
    def n_microbatches(self) -> int:
        """Of each rank, in each step."""
        return len(self.batches[0][0])


def train(reducer_class: Callable[..., Any], setting: Setting) -> dict[str, Any]:
    """Train with the learner's reducer: its gradients in every step, and its all-reduces."""
    model = setting.model
    reducer = reducer_class(model, setting.bucket_bytes)
    if not callable(getattr(reducer, "finish", None)):
        return {"returned": shown(reducer) or "nothing"}
    begun = [0]
    next(model.parameters()).register_hook(lambda _: begun.append(len(collectives())))
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    steps = []
    for shards in setting.batches:
        before = len(collectives())
        optimizer.zero_grad()
        early = _backwards(reducer, setting, shards) - before
        reducer.finish()
        rows = collectives()[before:]
        step = {
            "gradients": gradients(model),
            "early": early,
            "overlapped": begun[-1] - before,
            "sizes": [tensor_bytes(row) for row in rows],
            "unwaited": sum(row.note == NEVER_WAITED for row in rows),
        }
        steps.append(step)
        optimizer.step()
    return {"steps": steps}


def _backwards(reducer: Any, setting: Setting, shards: Sequence[Cut]) -> int:
    """Run the micro-batches of this rank's shard; return how many collectives there were before the last one."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    share = n_ranks / sum(shard.n_rows for shard in shards)
    before = 0
    for i, (inputs, targets) in enumerate(zip(shards[rank].inputs, shards[rank].targets, strict=True)):
        before = len(collectives())
        reducer.sync = last = i == len(shards[rank]) - 1
        loss = cross_entropy(setting.model(inputs, *setting.how[rank]), targets, reduction="sum") * share
        if setting.in_turn and last and rank == 1:
            dist.recv(torch.zeros(1), src=0)
        loss.backward()
        if setting.in_turn and last and rank == 0:
            dist.send(torch.zeros(1), dst=1)
    return before
