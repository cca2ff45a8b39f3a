"""Gradients packed in buckets: one message for many parameters, in the order in which a backward completes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

from ppkit.simulate_ddp import bucket_label, fill_buckets

__all__ = ["BUCKET_BYTES", "Bucket", "make_buckets"]

BUCKET_BYTES = 25 * 2**20  # torch's DistributedDataParallel has the same default


@dataclass
class Bucket:
    """Some parameters whose gradients travel together, in one flat tensor.

    Args:
        index: its place in the order of reduction.
        parameters: all of one type, on one device.
        names: theirs.
        missing: those whose gradient the running backward has still to complete.
        work: the running all-reduce.
        flat: all gradients, one behind the other.
    """

    index: int
    parameters: tuple[nn.Parameter, ...]
    names: tuple[str, ...]
    missing: set[nn.Parameter] = field(default_factory=set)
    work: Any = None
    flat: torch.Tensor | None = None

    @property
    def named(self) -> Iterator[tuple[nn.Parameter, str]]:
        """Its parameters with their names."""
        return zip(self.parameters, self.names, strict=True)

    @property
    def nbytes(self) -> int:
        """Bytes of its gradients."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters)

    @property
    def label(self) -> str:
        """Its name on a timeline: "bucket 0 (1.2 MB)"."""
        return bucket_label(self.index, self.nbytes)

    def pack(self, weight: float) -> torch.Tensor:
        """Return the gradients times `weight` as one flat tensor; a missing one is zero."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        if weight:
            self.flat *= weight
        else:
            self.flat.zero_()  # a shard without rows: 0 times its NaN would be NaN
        self.flat.label = self.label  # type: ignore[attr-defined]  # names the all-reduce on a timeline
        return self.flat

    def unpack(self, left_out: Collection[nn.Parameter] = ()) -> None:
        """Let each parameter's gradient be its part of the flat tensor, without a copy."""
        pieces = self.flat.split([p.numel() for p in self.parameters])  # type: ignore[union-attr]
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            if parameter not in left_out:
                parameter.grad = piece.view_as(parameter)
        self.flat = self.work = None


def make_buckets(named_parameters: Iterable[tuple[str, nn.Parameter]], bucket_bytes: int) -> tuple[Bucket, ...]:
    """Fill buckets with the parameters that are trained, the last one first.

    A backward completes the gradients of the last layers first: so the first bucket is full early. A bucket holds
    one type on one device, and takes parameters until it has `bucket_bytes` or more.

    Args:
        named_parameters: in the order of the model, each once.
        bucket_bytes: 0 gives every parameter its own bucket.

    Raises:
        CostsError: `bucket_bytes` is no number of bytes.
    """
    named = [(name, p) for name, p in named_parameters if p.requires_grad][::-1]
    groups: list[list[tuple[str, nn.Parameter]]] = []
    for _, same in groupby(named, key=lambda entry: (entry[1].dtype, entry[1].device)):
        run = list(same)
        sizes = [p.numel() * p.element_size() for _, p in run]
        groups += [[run[i] for i in group] for group in fill_buckets(sizes, bucket_bytes)]
    return tuple(
        Bucket(index, tuple(p for _, p in group), tuple(name for name, _ in group))
        for index, group in enumerate(groups)
    )
