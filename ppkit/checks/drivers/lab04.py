"""Lab 04 on a rank: calls the learner's functions, and notes what came of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppkit.checks.drivers.lab01 import shown
from ppkit.checks.drivers.lab02 import schedules

__all__ = ["placements", "schedules", "split"]

Function = Callable[..., Any]
_PRODUCTS = {"addmm", "baddbmm", "bmm", "mm"}


def placements(stage_to_rank: Function, cases: Sequence[tuple[Any, ...]]) -> list[int | str | None]:
    """Ask the learner's function for the rank of every case; words for what is no rank."""
    return [_whole(stage_to_rank(*case)) for case in cases]


def _whole(value: Any) -> int | str | None:
    try:
        return operator.index(value)
    except TypeError:
        return shown(value)


def split(
    input_grad: Function, weight_grads: Function, stage: nn.Module, inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> dict[str, Any]:
    """Run the learner's two halves as a schedule does: first all input gradients, then all weight gradients."""
    leaves = [part.clone().requires_grad_() for part in inputs]
    outputs = [stage(leaf) for leaf in leaves]
    halves = list(zip(leaves, outputs, grads, strict=True))
    seen: dict[str, Any] = {"inputs": [], "weights": [], "products": ([], [])}
    for leaf, output, grad in halves:
        with _Products() as counted:
            returned = input_grad(leaf, output, grad.clone())
        seen["inputs"].append(_plain(returned))
        seen["products"][0].append(counted.count)
    for leaf, output, grad in halves:
        with _Products() as counted:
            returned = weight_grads(stage, leaf, output, grad.clone())
        several = isinstance(returned, (list, tuple))
        seen["weights"].append([_plain(one) for one in returned] if several else _plain(returned))
        seen["products"][1].append(counted.count)
    return seen


def _plain(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else shown(value)


class _Products(TorchDispatchMode):
    """Counts products of matrices: what a half of a backward costs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in _PRODUCTS
        return function(*args, **(kwargs or {}))
