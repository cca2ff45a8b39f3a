"""Sums a pipeline stage's gradients over its replicas, in buckets that travel under its own last backward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ppkit.buckets import Bucket, make_buckets
from ppkit.stage import PipelineError

__all__ = ["StageReducer"]


class StageReducer:
    """The buckets of one stage on one rank, and where in a step each of them is.

    ::

        last micro-batch    layer 3 | layer 2 | layer 1 | layer 0 |
        buckets                       bucket 0 (layers 3, 2)        bucket 1 (layers 1, 0), at REDUCE
                                      all-reduced under layers 1, 0  all-reduced under other stages' work

    Gradients of earlier micro-batches only add up. Before the backward that completes them, `open` puts a hook on
    each parameter, which runs once the gradient has grown for the last time; a full bucket starts at once, though
    none before the one ahead of it, so that all replicas take them in one order. `reduce` starts what is left, such
    as buckets with parameters that this micro-batch did not use, and `wait` puts the sums in the gradients' place.

    Args:
        stage: its number, for the buckets' labels.
        named_parameters: that are complete with this stage's last backward.
        group: the ranks that hold the stage's replicas.
        bucket_bytes: a bucket is full when its gradients have so many bytes.
    """

    def __init__(
        self, stage: int, named_parameters: Iterable[tuple[str, nn.Parameter]], group: Any, bucket_bytes: float
    ) -> None:
        self._stage = stage
        self._named = list(named_parameters)
        self._group = group
        self._bucket_bytes = bucket_bytes
        self._hooks: list[RemovableHandle] = []
        self._next = 0  # the bucket that is to start next
        self._kinds: list[object] = []
        self.buckets: tuple[Bucket, ...] = ()
        self.begin()

    def begin(self) -> None:
        """Start a step: nothing is reduced yet. Buckets are made anew where parameters were frozen, thawed or moved."""
        kinds: list[object] = [(p.requires_grad, p.dtype, p.device) for _, p in self._named]
        if kinds != self._kinds:
            self._kinds = kinds
            self.buckets = make_buckets(self._named, self._bucket_bytes, f"stage {self._stage}", counts=True)
        self._close()
        self._next = 0

    def open(self) -> None:
        """Let the backward that comes now start each bucket that it completes."""
        for bucket in self.buckets:
            bucket.missing = set(bucket.parameters)
            self._hooks += [p.register_post_accumulate_grad_hook(self._hook(bucket)) for p in bucket.parameters]

    def reduce(self) -> StageReducer:
        """Start what has not started; gives what is to be waited for."""
        self._close()
        self._start_until(len(self.buckets))
        return self

    def wait(self) -> None:
        """Put the sums in place of the gradients; one that no replica has stays away."""
        for bucket in self.buckets:
            bucket.work.wait()
            bucket.unpack(bucket.unused())

    def _hook(self, bucket: Bucket) -> Any:
        def ready(parameter: Tensor) -> None:
            if bucket.index < self._next:
                raise PipelineError(
                    f"stage {self._stage}: a parameter of {bucket.label} got a gradient twice in one backward, the "
                    "second time when its bucket was under way. Reentrant checkpoints around layers that share a "
                    "parameter do this: use torch.utils.checkpoint with use_reentrant=False, or checkpoint=True",
                    stage=self._stage,
                )
            bucket.missing.discard(parameter)
            full = self._next
            while full < len(self.buckets) and not self.buckets[full].missing:
                full += 1
            self._start_until(full)

        return ready

    def _start_until(self, end: int) -> None:
        for bucket in self.buckets[self._next : end]:
            self._next += 1
            bucket.work = dist.all_reduce(bucket.pack(1.0), group=self._group, async_op=True)

    def _close(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
