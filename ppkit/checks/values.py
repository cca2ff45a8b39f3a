"""Compares tensors, and says in words how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["all_equal", "difference", "equal", "first_difference"]

_RTOL, _ATOL = 1e-7, 1e-9  # in float64 a right answer differs by some 1e-16


def equal(got: Any, expected: Tensor) -> bool:
    """Whether `got` is a tensor of the same shape, dtype and values."""
    return (
        isinstance(got, Tensor)
        and got.shape == expected.shape
        and got.dtype == expected.dtype
        and torch.allclose(got, expected, rtol=_RTOL, atol=_ATOL)
    )


def all_equal(got: Mapping[str, Any], expected: Mapping[str, Tensor]) -> bool:
    """Whether each of several named tensors is as expected."""
    return all(equal(got.get(name), value) for name, value in expected.items())


def difference(got: Any, expected: Tensor) -> str:
    """How `got` differs from `expected`, as the end of a sentence that begins with its name; empty if it doesn't.

    Args:
        got: a tensor, None for one that is missing, or words for something else.
        expected: what one process computes.
    """
    if equal(got, expected):
        return ""
    if not isinstance(got, Tensor):
        return "is missing" if got is None else f"is {got}"
    if got.shape != expected.shape:
        return f"has shape {list(got.shape)} instead of {list(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"is {_name(got)} instead of {_name(expected)}"
    if not torch.isfinite(got).all():
        return "holds infinite numbers or NaN"
    if not got.any():
        return "is zero everywhere"
    ratio = _ratio(got, expected)
    if ratio is not None:
        return f"is exactly {ratio:.4g} times{_fraction(ratio)} what one process computes"
    far = int((got - expected).abs().argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(far), got.shape)]
    values = f"{got.flatten()[far]:.4g} instead of {expected.flatten()[far]:.4g}"
    return f"differs from what one process computes, most at {index}: {values}"


def first_difference(got: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str:
    """How the first of several named tensors differs, its name included; empty if none does."""
    for name, value in expected.items():
        if text := difference(got.get(name), value):
            return f"{name} {text}"
    return ""


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _fraction(ratio: float) -> str:
    """A ratio such as 1/35 once more, where its decimals don't show what it is; with a space before it."""
    inverse = 1 / ratio
    return f" (1/{inverse:.0f})" if 10 < inverse < 1e6 and abs(inverse - round(inverse)) < 1e-6 * inverse else ""


def _ratio(got: Tensor, expected: Tensor) -> float | None:
    """The one number by which all of `expected` is multiplied in `got`, if there is one."""
    length = float((expected * expected).sum())
    ratio = float((got * expected).sum()) / length if length else 0.0
    return ratio if ratio and got.numel() > 1 and equal(got, expected * ratio) else None
