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
        of: what it is a bucket of, if that must be said.
        counts: a number for each gradient travels along: on how many ranks there is one.
        missing: those whose gradient the running backward has still to complete.
        work: the running all-reduce.
        flat: all gradients, one behind the other; kept from step to step.
        parts: it, cut into the parameters' shapes.
    """

    index: int
    parameters: tuple[nn.Parameter, ...]
    names: tuple[str, ...]
    of: str = ""
    counts: bool = False
    missing: set[nn.Parameter] = field(default_factory=set)
    work: Any = None
    flat: torch.Tensor | None = None
    parts: tuple[torch.Tensor, ...] = ()

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
        return bucket_label(self.index, self.nbytes, self.of)

    def pack(self, weight: float) -> torch.Tensor:
        """Write the gradients times `weight` in the flat tensor, and return it; a missing one is zero."""
        flat = self._allocate() if self.flat is None else self.flat
        if self.counts:
            here = [parameter.grad is not None for parameter in self.parameters]
            flat[-len(here) :] = flat.new_tensor(here)
        for parameter, part in zip(self.parameters, self.parts, strict=True):
            if parameter.grad is None or not weight:
                part.zero_()  # of a shard without rows too: 0 times its NaN would be NaN
            else:
                grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad  # of an nn.Embedding
                torch.mul(grad, weight, out=part)  # the gradient may be this part, as the last step left it
        return flat

    def unpack(self, left_out: Collection[nn.Parameter] = ()) -> None:
        """Let each parameter's gradient be its part of the flat tensor, without a copy."""
        for parameter, part in zip(self.parameters, self.parts, strict=True):
            if parameter not in left_out:
                parameter.grad = part
        self.work = None

    def unused(self) -> set[nn.Parameter]:
        """The parameters that have a gradient on no rank; of a bucket that counts, after its all-reduce."""
        without = [(i, parameter) for i, parameter in enumerate(self.parameters) if parameter.grad is None]
        if not without or self.flat is None:  # mostly, and then nobody has to wait for a GPU to say so
            return set()
        counts = self.flat[-len(self.parameters) :].tolist()
        return {parameter for i, parameter in without if not counts[i]}

    def _allocate(self) -> torch.Tensor:
        sizes = [parameter.numel() for parameter in self.parameters]
        extra = len(sizes) if self.counts else 0
        self.flat = flat = self.parameters[0].new_empty(sum(sizes) + extra, requires_grad=False)
        flat.label = self.label  # type: ignore[attr-defined]  # names the all-reduce on a timeline
        pieces = flat[: sum(sizes)].split(sizes)
        self.parts = tuple(piece.view_as(p) for p, piece in zip(self.parameters, pieces, strict=True))
        return flat


def make_buckets(
    named_parameters: Iterable[tuple[str, nn.Parameter]], bucket_bytes: float, of: str = "", counts: bool = False
) -> tuple[Bucket, ...]:
    """Fill buckets with the parameters that are trained, the last one first.

    A backward completes the gradients of the last layers first: so the first bucket is full early. A bucket holds
    one type on one device, and takes parameters until it has `bucket_bytes` or more.

    Args:
        named_parameters: in the order of the model, each once.
        bucket_bytes: 0 gives every parameter its own bucket.
        of: as in `Bucket`.
        counts: likewise.

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
        Bucket(index, tuple(p for _, p in group), tuple(name for name, _ in group), of, counts)
        for index, group in enumerate(groups)
    )
