"""A batch, cut in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppkit.stage import PipelineError
from ppkit.units import kind_of

__all__ = ["cut", "n_samples", "shares", "signature"]


def _tensors(what: str, batch: Any) -> tuple[Tensor, ...]:
    tensors = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    for tensor in tensors or (batch,):
        if not isinstance(tensor, Tensor) or not tensor.dim():
            got = "a tensor without dimensions" if isinstance(tensor, Tensor) else kind_of(tensor)
            raise PipelineError(f"{what} must be a tensor [N, ...], or a tuple of them; got {got}")
    return tensors


def n_samples(what: str, batch: Any, expected: int | None = None) -> int:
    """How many samples a batch has.

    Args:
        what: "inputs" or "targets".
        batch: a tensor ``[N, ...]`` or a tuple of them.
        expected: N of the inputs.

    Raises:
        PipelineError: it is no such thing, or has not `expected` samples.
    """
    sizes = [len(tensor) for tensor in _tensors(what, batch)]
    wanted = sizes[0] if expected is None else expected
    if any(size != wanted for size in sizes):
        than = "" if expected is None else f" for inputs of {expected}"
        raise PipelineError(
            f"{what} have {' and '.join(map(str, sizes))} samples{than}; the first dimension must be the same",
            values={"sizes": sizes, "expected": expected},
        )
    return wanted


def cut(batch: Any, n_parts: int, device: torch.device) -> list[tuple[Tensor, ...]]:
    """The micro-batches of a batch, as tuples; if N is no multiple of `n_parts`, the first have one sample more."""
    parts = [torch.tensor_split(tensor.to(device), n_parts) for tensor in _tensors("a batch", batch)]
    return list(zip(*parts, strict=True))


def shares(targets: Sequence[Any], weigh: Callable[[Any], float] | None) -> list[float]:
    """What part of the batch's loss each micro-batch's mean is.

    Args:
        targets: of each micro-batch.
        weigh: its weight; None: the number of samples.

    Raises:
        PipelineError: weights that are negative, or zero altogether.
    """
    weights = [
        float(weigh(target) if weigh else len(target if isinstance(target, Tensor) else target[0]))
        for target in targets
    ]
    total = sum(weights)
    if not (min(weights) >= 0 and 0 < total < float("inf")):
        raise PipelineError(
            f"weigh gave {weights}; weights must be 0 or more, and not all 0", values={"weights": weights}
        )
    return [weight / total for weight in weights]


def signature(batch: Any) -> tuple[object, ...]:
    """What the shapes in a pipeline follow from."""
    return tuple((tuple(t.shape), t.dtype, t.requires_grad) for t in _tensors("inputs", batch))
