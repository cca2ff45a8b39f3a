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
    """

    name: str
    model: nn.Module
    bucket_bytes: int
    batches: Sequence[Sequence[Cut]]
    how: Sequence[tuple[Any, ...]]

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
    rank, model = dist.get_rank(), setting.model
    reducer = reducer_class(model, setting.bucket_bytes)
    if not callable(getattr(reducer, "finish", None)):
        return {"returned": shown(reducer) or "nothing"}
    begun: list[int] = []
    next(model.parameters()).register_hook(lambda _: begun.append(len(collectives())))
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    steps = []
    for shards in setting.batches:
        n_rows = sum(shard.n_rows for shard in shards)
        before = len(collectives())
        early = 0
        optimizer.zero_grad()
        for i, (inputs, targets) in enumerate(zip(shards[rank].inputs, shards[rank].targets, strict=True)):
            early = len(collectives()) - before
            reducer.sync = i == len(shards[rank]) - 1
            output = model(inputs, *setting.how[rank])
            share = dist.get_world_size() / n_rows
            (cross_entropy(output, targets, reduction="sum") * share).backward()
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
