"""What one process computes of a batch that replicas share, and what mistakes of weighting it would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppkit.checks.messages import Expected, Message, backward_messages, forward_messages
from ppkit.checks.oracle import Batch, build_stages, run
from ppkit.data import batches, digits
from ppkit.mesh import Mesh

__all__ = ["Setting", "expected_messages", "gradients", "mean_of_means", "parts", "ratio"]

Gradients = list[dict[str, Tensor]]  # of each stage's parameters, by name


@dataclass(frozen=True)
class Setting:
    """A training of digits on a mesh.

    Attributes:
        mesh: replicas and stages.
        widths: of the stages, as for `build_stages`.
        sizes: rows of each batch.
        n_microbatches: of each replica.
    """

    mesh: Mesh
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    n_microbatches: int

    @property
    def shape(self) -> tuple[int, int]:
        """Replicas and stages."""
        return self.mesh.n_replicas, self.mesh.n_stages

    @property
    def where(self) -> str:
        """In words."""
        return (
            f"{self.mesh.n_replicas} replicas × {self.mesh.n_stages} stages, a batch of {self.sizes[0]} rows, "
            f"{self.n_microbatches} micro-batches in each replica"
        )

    def stages(self) -> list[nn.Sequential]:
        """The stages of one replica."""
        return build_stages(self.widths)

    def batches(self) -> list[Batch]:
        """Images and labels of each batch."""
        images, labels = digits(dtype=torch.float64, n_images=sum(self.sizes))
        found = []
        for rows in zip(images.split(list(self.sizes)), labels.split(list(self.sizes)), strict=True):
            found += list(batches(*rows, len(rows[1])))
        return found


def parts(batch: Batch, n_parts: int) -> list[Batch]:
    """A batch in contiguous parts whose sizes differ by at most 1."""
    return list(zip(*(tensor.tensor_split(n_parts) for tensor in batch), strict=True))


def gradients(stages: Sequence[nn.Module], batch: Batch) -> Gradients:
    """The gradients of the mean loss over a batch."""
    return [part.grads for part in run(stages, batch)[1]]


def mean_of_means(stages: Sequence[nn.Module], some: Sequence[Batch]) -> Gradients:
    """The mean of several batches' gradients, however many rows each has."""
    each = [gradients(stages, batch) for batch in some]
    return [
        {name: torch.stack([one[stage][name] for one in each]).mean(0) for name in each[0][stage]}
        for stage in range(len(stages))
    ]


def ratio(got: Mapping[str, Any], right: Mapping[str, Tensor]) -> float | None:
    """The one number by which all right gradients are multiplied, if there is one."""
    if not all(isinstance(got.get(name), Tensor) and got[name].shape == one.shape for name, one in right.items()):
        return None
    mine, ours = (torch.cat([one[name].flatten() for name in right]) for one in (got, right))
    factor = float(mine @ ours / (ours @ ours))
    return factor if torch.allclose(mine, factor * ours, rtol=1e-7, atol=1e-9) else None


def expected_messages(setting: Setting, rows: Sequence[Sequence[Sequence[int]]] = ()) -> Expected:
    """The messages of every pipeline: each micro-batch there and back, with each batch.

    Args:
        setting: the training.
        rows: of each batch, for each replica, those of each micro-batch; as equal as can be unless it is given.
    """
    stages, n_replicas, found = setting.stages(), setting.mesh.n_replicas, []
    for step, batch in enumerate(setting.batches()):
        for replica, share in enumerate(parts(batch, n_replicas)):
            first = setting.mesh.rank_of(replica, 0)
            cut = rows[step][replica] if rows else [len(part[1]) for part in parts(share, setting.n_microbatches)]
            for n_rows in cut:
                passes = run(stages, (batch[0][:n_rows], batch[1][:n_rows]))[1]
                for expected in (forward_messages(stages, passes), backward_messages(stages, passes)):
                    found += [Message(first + m.sender, first + m.receiver, m.nbytes) for m in expected.messages]
    return Expected(tuple(found), expected.parameter_bytes * n_replicas)
