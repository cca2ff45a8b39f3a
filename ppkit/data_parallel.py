"""Distributed data parallelism to read: replicas that start alike, and whose gradients are averaged as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ppkit.buckets import BUCKET_BYTES, Bucket, make_buckets
from ppkit.errors import PpkitError
from ppkit.scatter_gather import DataParallel

__all__ = [
    "DataParallel",
    "DistributedDataParallel",
    "GradientReducer",
    "ReplicaError",
    "average_gradients",
    "broadcast_module",
    "check_same_model",
]


class ReplicaError(PpkitError, RuntimeError):
    """Replicas of one model that cannot be trained together."""


# --- Step by step -----------------------------------------------------------------------------------


def check_same_model(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Compare the names, shapes and types of the parameters and buffers of all replicas, and which are trained.

    Without it, a difference would end in an abort of the whole process, or in silently wrong numbers.

    Args:
        module: this rank's replica.
        group: the ranks that hold the replicas; None: all.

    Raises:
        ReplicaError: on every rank, and naming the first difference.
    """
    named = (*module.named_parameters(), *module.named_buffers())
    mine = [(name, tuple(t.shape), str(t.dtype), " frozen" * _is_frozen(t)) for name, t in named]
    theirs: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(theirs, mine, group=group)
    for rank, other in enumerate(theirs):
        for ours, its in zip_longest(theirs[0], other):
            if ours != its:
                raise ReplicaError(
                    f"the replicas are not the same model: replica 0 has {_described(ours)} where replica {rank} has "
                    f"{_described(its)}; build the model alike on every rank",
                    values={"replica 0": ours, f"replica {rank}": its},
                )


def _is_frozen(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _described(entry: tuple[str, tuple[int, ...], str, str] | None) -> str:
    if entry is None:
        return "nothing more"
    name, shape, dtype, frozen = entry
    return f"{name!r} of shape {list(shape)}, {dtype.removeprefix('torch.')}{frozen and ',' + frozen}"


def broadcast_module(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Give every replica the parameters and buffers of the group's first rank.

    Args:
        module: this rank's replica; changed in place.
        group: the ranks that hold the replicas; None: all.
    """
    _broadcast((*module.parameters(), *module.buffers()), group)


def _broadcast(tensors: Iterable[torch.Tensor], group: dist.ProcessGroup | None) -> None:
    for tensor in tensors:
        dist.broadcast(tensor.detach(), group=group, group_src=0)


def average_gradients(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Replace every gradient by its mean over the replicas: one all-reduce a parameter, after the backward.

    The mean of the replicas' gradients is the gradient of the whole batch if every replica's loss is the mean over
    a shard, and the shards are equal.

    Args:
        module: this rank's replica; parameters without a gradient are left out, so they must be the same ones on
            all ranks.
        group: the ranks that hold the replicas; None: all.
    """
    n_replicas = dist.get_world_size(group)
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= n_replicas


# --- Buckets, reduced while the backward still runs -------------------------------------------------


class GradientReducer:
    """Averages gradients over the replicas, bucket by bucket, while the backward still computes the others.

        backward    layer 3 | layer 2 | layer 1 | layer 0 |
        buckets               bucket 0 (layers 3, 2)        bucket 1 (layers 1, 0)
                              all-reduced under layers 1, 0  all-reduced, then waited for

    A hook on every parameter runs when its gradient is complete. When all those of a bucket are, the bucket is
    all-reduced without waiting; the buckets go in their order, the same on every rank. The end of the backward waits
    for all of them. From then on a gradient is a part of its bucket, which the next step writes anew: clone it to keep
    it. Li et al., "PyTorch Distributed", arXiv 2006.15704.

    Args:
        module: this rank's replica, or its stage of a pipeline.
        group: the ranks that hold the replicas; None: all.
        bucket_bytes: a bucket is full when its gradients have so many bytes.
        find_unused: a parameter that took no part in the backward counts as zero, and one that took none on
            any replica keeps its gradient; without it, it is an error.
        hooks: reduce during each backward; without them, `reduce` does it.

    Attributes:
        buckets: in the order in which they are reduced: the last parameters first.

    Raises:
        ReplicaError: the module has no parameter to train.
    """

    def __init__(
        self,
        module: nn.Module,
        group: dist.ProcessGroup | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        find_unused: bool = False,
        hooks: bool = True,
    ) -> None:
        self.buckets = make_buckets(module.named_parameters(), bucket_bytes)
        if not self.buckets:
            raise ReplicaError(f"{type(module).__name__} has no parameter that requires a gradient: nothing to reduce")
        self._group = group
        self._find_unused = find_unused
        self._equal = self._weight = 1 / dist.get_world_size(group)
        self._synchronise = True
        self._backward = -1  # autograd's number of the backward that is running
        self._next = 0  # the bucket that is to be reduced next
        self._bucket_of = {parameter: bucket for bucket in self.buckets for parameter in bucket.parameters}
        self._hooks = [p.register_post_accumulate_grad_hook(self._ready) for p in self._bucket_of] if hooks else []

    @property
    def synchronises(self) -> bool:
        """Whether the next backward reduces: not inside `no_sync`."""
        return self._synchronise

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let the gradients of the backwards inside only accumulate; the first one after it reduces the sum."""
        before, self._synchronise = self._synchronise, False
        try:
            yield
        finally:
            self._synchronise = before

    def weigh(self, n_rows: int) -> None:
        """Weight the next reduction by this replica's rows, as shards of unequal size need it.

        The gradient of a whole batch's mean loss is the mean of the shards' gradients, weighted by their rows.
        Every replica calls it, also one without any rows, whose gradients then count for nothing, NaN or not.

        Args:
            n_rows: rows of this replica's shard, over all micro-batches of the step.
        """
        parameter = self.buckets[0].parameters[0]
        known = isinstance(n_rows, int) and n_rows >= 0
        total = torch.tensor([float(n_rows) if known else 0.0], dtype=torch.float64, device=parameter.device)
        dist.all_reduce(total, group=self._group)
        if not known or not total.item():
            raise ReplicaError(
                f"weigh({n_rows!r}): how many rows this shard has, and those of all shards are not 0",
                values={"n_rows": n_rows},
            )
        self._weight = n_rows / total.item()

    def reduce(self) -> None:
        """Reduce the gradients as they are now; for a backward that runs no hooks."""
        self._begin()
        for bucket in self.buckets:
            bucket.missing -= {p for p in bucket.parameters if p.grad is not None}
        self._start_full_buckets()
        self._finish()

    def remove(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._hooks:
            handle.remove()

    def _begin(self) -> None:
        self._next = 0
        for bucket in self.buckets:
            bucket.missing = set(bucket.parameters)

    def _ready(self, parameter: torch.Tensor) -> None:
        """Take note of a gradient that this backward has completed: called by autograd, once a parameter."""
        if not self._synchronise:
            return
        backward = torch._C._current_graph_task_id()
        if self._backward != backward:  # the first gradient of a backward, of one before that failed if need be
            self._backward = backward
            self._begin()
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._bucket_of[parameter].missing.discard(parameter)  # type: ignore[index]
        self._start_full_buckets()

    def _start_full_buckets(self) -> None:
        """Reduce what is full, but no bucket before its predecessor: all ranks must take them in one order."""
        while self._next < len(self.buckets) and not self.buckets[self._next].missing:
            self._start(self.buckets[self._next])

    def _start(self, bucket: Bucket) -> None:
        flat = bucket.pack(self._weight)
        bucket.work = dist.all_reduce(flat, group=self._group, async_op=True)
        self._next += 1

    def _finish(self) -> None:
        """End the backward: reduce what is left, wait, and hand the means out."""
        if not self._find_unused:
            self._check_all_used()
        for bucket in self.buckets[self._next :]:
            self._start(bucket)
        unused = self._unused_everywhere() if self._find_unused else ()
        for bucket in self.buckets:
            bucket.work.wait()
            bucket.unpack(unused)
        self._weight = self._equal

    def _check_all_used(self) -> None:
        pairs = [(p in bucket.missing, name) for bucket in self.buckets for p, name in bucket.named]
        unused = [name for missing, name in reversed(pairs) if missing]
        if unused:
            raise ReplicaError(
                f"the backward gave no gradient to {', '.join(unused)}: the loss does not depend on "
                f"{'it' if len(unused) == 1 else 'them'} here, and other replicas would wait for ever. Use every "
                "parameter in every step, freeze those that you don't train, or let unused ones be found "
                "(find_unused_parameters=True). A checkpoint must have use_reentrant=False: another kind runs a "
                "backward inside the backward.",
                values={"unused": tuple(unused)},
            )

    def _unused_everywhere(self) -> set[nn.Parameter]:
        """Return the parameters that have a gradient on no replica."""
        parameters = list(self._bucket_of)
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(used, group=self._group)
        return {parameter for parameter, count in zip(parameters, used.tolist(), strict=True) if not count}


class DistributedDataParallel(nn.Module):
    """A replica whose `backward` leaves the mean of all replicas' gradients; to be called like the module itself.

    Args:
        module: this rank's replica. It gets the parameters and buffers of the group's first rank.
        group: the ranks that hold the replicas; None: all.
        bucket_bytes: as in `GradientReducer`.
        find_unused_parameters: likewise, `find_unused`.
        broadcast_buffers: before each forward in training, give all replicas the first one's buffers, such as
            the running means of a BatchNorm.

    Raises:
        ReplicaError: the replicas are not the same model.
    """

    def __init__(
        self,
        module: nn.Module,
        group: dist.ProcessGroup | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        find_unused_parameters: bool = False,
        broadcast_buffers: bool = True,
    ) -> None:
        super().__init__()
        check_same_model(module, group)
        broadcast_module(module, group)
        self.module = module
        self.reducer = GradientReducer(module, group, bucket_bytes, find_unused_parameters)
        self._group = group
        self._broadcast_buffers = broadcast_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        if self._broadcast_buffers and self.training and self.reducer.synchronises:
            _broadcast(self.module.buffers(), self._group)
        return self.module(*args, **kwargs)

    def no_sync(self) -> Any:
        """Return the context in which gradients only accumulate: `GradientReducer.no_sync`."""
        return self.reducer.no_sync()
