"""What the ranks of a pipeline tell each other beside its values: shapes, dtypes, and whether all agree."""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ppkit.observe.operations import wait_unrecorded
from ppkit.stage import PipelineError

__all__ = [
    "Header",
    "Spec",
    "empty_specs",
    "exchange",
    "global_rank",
    "pack_specs",
    "receive_quietly",
    "send_quietly",
    "unpack_specs",
]

# These messages are no part of the training step that a learner studies: the originals of the observed functions
# carry them, so that no event is recorded and no emulated link delays them; that a rank waits is still seen.

_SIZE = 512  # numbers in the message that describes a tuple of tensors
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class Spec(NamedTuple):
    """What the receiver of a tensor must know before it comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool  # whether a gradient is sent back

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """The spec of `tensor`."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.requires_grad)

    @property
    def nbytes(self) -> int:
        """The size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        text = f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"
        return text if self.requires_grad else f"{text} without gradient"


def pack_specs(specs: Sequence[Spec], device: torch.device) -> Tensor:
    """Write specs in a tensor of fixed size."""
    numbers = [len(specs)]
    for spec in specs:
        if spec.dtype not in _DTYPES:
            raise PipelineError(f"a stage hands on a tensor of {spec.dtype}, which cannot be sent")
        numbers += [_DTYPES.index(spec.dtype), spec.requires_grad, len(spec.shape), *spec.shape]
    if len(numbers) > _SIZE:
        raise PipelineError(f"a stage hands on {len(specs)} tensors; that is too many to send singly")
    return torch.tensor(numbers + [0] * (_SIZE - len(numbers)), device=device)


def unpack_specs(message: Tensor) -> tuple[Spec, ...]:
    """Read what `pack_specs` wrote."""
    numbers = iter(message.tolist())
    specs = []
    for _ in range(next(numbers)):
        dtype, requires_grad, n_dims = _DTYPES[next(numbers)], bool(next(numbers)), next(numbers)
        specs.append(Spec(tuple(next(numbers) for _ in range(n_dims)), dtype, requires_grad))
    return tuple(specs)


def empty_specs(device: torch.device) -> Tensor:
    """A buffer for a message of `pack_specs`."""
    return torch.empty(_SIZE, dtype=torch.int64, device=device)


def global_rank(group: Any, rank: int) -> int:
    """The number among all ranks of a rank in a group; None stands for the group of all."""
    return rank if group is None else dist.get_global_rank(group, rank)


def send_quietly(tensor: Tensor, group: Any, peer: int, tag: int) -> Any:
    """`isend`, unobserved; returns its work."""
    return inspect.unwrap(dist.isend)(tensor, group=group, group_dst=peer, tag=tag)


def receive_quietly(tensor: Tensor, group: Any, peer: int, tag: int) -> Tensor:
    """`recv`, unobserved; returns the buffer."""
    work = inspect.unwrap(dist.irecv)(tensor, group=group, group_src=peer, tag=tag)
    wait_unrecorded(work, "recv", global_rank(group, peer), tag, tensor)
    return tensor


def exchange(value: object, group: Any, n_ranks: int, device: torch.device) -> list[Any]:
    """What every rank of the group says, by rank; unobserved. Collective."""
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(device)
    sizes = _all_gather(torch.tensor([len(data)], device=device), group, n_ranks)
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    found = _all_gather(padded, group, n_ranks)
    return [pickle.loads(one[: int(size)].cpu().numpy().tobytes()) for one, size in zip(found, sizes, strict=True)]


def _all_gather(tensor: Tensor, group: Any, n_ranks: int) -> list[Tensor]:
    found = [torch.empty_like(tensor) for _ in range(n_ranks)]
    work = inspect.unwrap(dist.all_gather)(found, tensor, group=group, async_op=True)
    wait_unrecorded(work, "all_gather", None, None, tensor)
    return found


class Header:
    """Brings every rank word of the batch, which only the first stage's rank sees; goes along the stages.

    Args:
        group: of the pipeline.
        wire: where the backend takes tensors from.
        tag: of these messages.
        source: the rank that tells this one; None for the first stage's.
        targets: the ranks that this one tells.
    """

    def __init__(self, group: Any, wire: torch.device, tag: int, source: int | None, targets: Sequence[int]) -> None:
        self._group = group
        self._wire = wire
        self._tag = tag
        self._source = source
        self._targets = targets
        self._works: list[Any] = []

    def pass_on(self, changed: bool, n_samples: int) -> tuple[bool, int]:
        """Tell, or hear and tell on, whether shapes are new, and how many samples there are."""
        word = torch.tensor([changed, n_samples], dtype=torch.int64, device=self._wire)
        if self._source is not None:
            receive_quietly(word, self._group, self._source, self._tag)
        self.finish()
        self._works = [(send_quietly(word, self._group, peer, self._tag), word) for peer in self._targets]
        changed_there, n_there = word.tolist()
        return bool(changed_there), n_there

    def finish(self) -> None:
        """Wait until the last step's messages are there."""
        for work, _ in self._works:
            work.wait()
        self._works = []
