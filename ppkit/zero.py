"""ZeRO stage 1 to read: the optimizer's state is cut over the replicas, each of which updates its part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ppkit.errors import LaunchError, PpkitError

__all__ = ["ShardedOptimizer", "state_bytes"]


class ShardedOptimizer(torch.optim.Optimizer):
    """An optimizer that keeps 1/n of the state on each of n replicas, and updates 1/n of the parameters there.

        gradients     averaged already, on every replica
        update        replica 0: first part | replica 1: second part | ...
        all-gather    every replica gets all parts

    All parameters lie in one flat tensor that is cut evenly, so that the state is 1/n exactly, but for the padding of
    at most n - 1 numbers. Rajbhandari et al., "ZeRO", arXiv 1910.02054, stage 1.

    Args:
        parameters: of one type, on one device; each replica has the same ones with the same gradients. All get the
            same settings: no groups.
        optimizer_class: one that treats each number by itself, such as `torch.optim.Adam` or SGD: it never sees a
            whole matrix.
        group: the ranks that hold the replicas; None: all.
        **settings: of the optimizer, such as `lr`.

    Raises:
        LaunchError: parameters that don't fit in one flat tensor, or none.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer_class: type[torch.optim.Optimizer],
        group: dist.ProcessGroup | None = None,
        **settings: Any,
    ) -> None:
        given = list(parameters)
        if not all(isinstance(parameter, torch.Tensor) for parameter in given):
            raise LaunchError("ShardedOptimizer takes parameters, not groups of them: all get the same settings")
        self._parameters = [parameter for parameter in given if parameter.requires_grad]
        kinds = {(parameter.dtype, parameter.device) for parameter in self._parameters}
        if len(kinds) != 1:
            listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
            raise LaunchError(f"ShardedOptimizer needs parameters of one type on one device; got {listed}")
        self._group = group
        self._n_replicas, self._replica = dist.get_world_size(group), dist.get_rank(group)
        self._shard = nn.Parameter(self._own_part(self._parameters))
        self._optimizer = optimizer_class([self._shard], **settings)
        super().__init__(self._parameters, {})
        self._share()

    def _share(self) -> None:
        """Show the settings and the state of the part as one's own, where schedulers look for them."""
        self.param_groups, self.state = self._optimizer.param_groups, self._optimizer.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update this replica's part, and get the others'.

        Args:
            closure: called before, such as a forward and backward of all replicas.

        Returns:
            what the closure gives.

        Raises:
            PpkitError: a parameter has no gradient.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if len(gradients) < len(self._parameters):
            raise PpkitError(
                f"{len(self._parameters) - len(gradients)} of {len(self._parameters)} parameters have no gradient; "
                "ShardedOptimizer updates all: run a backward first, and leave parameters out that it does not use"
            )
        self._shard.grad = self._own_part(gradients)
        self._optimizer.step()
        self._shard.grad = None
        flat = self._shard.new_empty(self._n_replicas * self._shard.numel(), requires_grad=False)
        dist.all_gather(list(flat.chunk(self._n_replicas)), self._shard.detach(), group=self._group)
        pieces = flat[: sum(p.numel() for p in self._parameters)].split([p.numel() for p in self._parameters])
        with torch.no_grad():
            for parameter, piece in zip(self._parameters, pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or make them zero."""
        for parameter in self._parameters:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and this replica's part of the state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` has returned on the same replica of as many."""
        self._optimizer.load_state_dict(state_dict)
        self._share()

    def state_bytes(self) -> int:
        """Bytes of the optimizer's state on this replica."""
        return state_bytes(self._optimizer)

    def _own_part(self, tensors: list[Any]) -> torch.Tensor:
        """Return this replica's part of all tensors in a row, padded with zeros at the very end."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        size = -(-flat.numel() // self._n_replicas)
        flat = nn.functional.pad(flat, (0, size * self._n_replicas - flat.numel()))
        return flat[self._replica * size : (self._replica + 1) * size].clone()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimizer's state: of Adam two numbers a parameter, and its count of steps.

    Args:
        optimizer: it has no state before its first step.
    """
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
