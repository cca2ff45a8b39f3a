"""Profiles layers: how long each takes forward and backward, and what it keeps in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ppkit.layers import ModelError
from ppkit.skips import carrying

__all__ = ["Layer", "profile"]


@dataclass(frozen=True)
class Layer:
    """One layer, measured.

    Attributes:
        name: its class, with its place in the model.
        forward, backward: seconds for one micro-batch, the median of the repeats.
        activation_bytes: what its forward keeps for its backward, parameters not counted.
        output_bytes: what it hands to the next layer: the size of the message if the model is cut behind it.
        parameter_bytes: of its own parameters.
    """

    name: str
    forward: float
    backward: float
    activation_bytes: int
    output_bytes: int
    parameter_bytes: int

    @property
    def seconds(self) -> float:
        """Forward and backward together."""
        return self.forward + self.backward

    def memory(self, n_in_flight: int, copies: int) -> int:
        """Bytes that training holds: parameters, gradients and optimizer state, and activations in flight."""
        return copies * self.parameter_bytes + n_in_flight * self.activation_bytes


def profile(model: Iterable[nn.Module], sample: Tensor | tuple[Tensor, ...], *, repeats: int = 7) -> tuple[Layer, ...]:
    """Run each layer by itself, forward and backward, and note what it takes.

    Gradients, buffers and random numbers are afterwards what they were before.

    Args:
        model: layers in order.
        sample: one micro-batch for the first layer. What a `ppkit.skips.Stash` puts aside reaches its `Pop`.
        repeats: how often each is timed, after one run that does not count.

    Returns:
        one measurement a layer.

    Raises:
        ModelError: no layer, no repeat, or a layer that fails on what the one before it gives.
    """
    layers = layers_of(model)
    if not layers or not isinstance(repeats, int) or repeats < 1:
        raise ModelError(f"profile: got {len(layers)} layers and repeats={repeats!r}; both must be at least 1")
    values, found = sample, []
    skips: dict[str, Tensor] = {}
    for index, layer in enumerate(layers):
        name = f"{index} {type(layer).__name__}"
        try:
            measured, values, skips = _measure(layer, name, values, skips, repeats)
        except (AttributeError, RuntimeError, TypeError, IndexError, ValueError) as error:
            raise ModelError(
                f"profile: layer {name} failed on what it was given, {_shapes(values)}: {str(error).rstrip('.')}. "
                f"{_IN_PLACE if 'in-place' in str(error) else _CHAIN}"
            ) from error
        found.append(measured)
    return tuple(found)


_CHAIN = (
    "The sample must be one micro-batch for the first layer, tensors alone or in a tuple, and each layer must take "
    "what the one before it gives"
)
_IN_PLACE = "A stage may begin with any layer, and cannot change in place what it receives: use inplace=False"


def layers_of(model: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers of a model in a row.

    Raises:
        ModelError: it is no row of modules.
    """
    layers = list(model) if isinstance(model, Iterable) else [None]
    if not all(isinstance(layer, nn.Module) for layer in layers):
        raise ModelError(
            f"the model must be layers in order, modules such as those of an nn.Sequential; got {type(model).__name__}"
        )
    return layers


def _measure(
    layer: nn.Module, name: str, given: Any, stashed: Mapping[str, Tensor], repeats: int
) -> tuple[Layer, Any, dict[str, Tensor]]:
    forward, backward = [], []
    output: Any = None
    with _left_as_it_was(layer):
        for _ in range(repeats + 1):
            inputs = _fresh(given)
            with carrying({name: _fresh(value) for name, value in stashed.items()}) as skips:
                seconds, output = _timed(partial(_call, layer, inputs))
            forward.append(seconds)
            backward.append(_timed(partial(_backward, output))[0])
        with carrying({name: _fresh(value) for name, value in stashed.items()}):
            kept = _kept_bytes(layer, _fresh(given))
    parameters = sum(map(_nbytes, layer.parameters()))
    sent = sum(map(_nbytes, _tensors(output)))
    times = statistics.median(forward[1:]), statistics.median(backward[1:])  # the first one warms up
    measured = Layer(name, *times, kept, sent, parameters)
    return measured, _fresh(output), {name: _fresh(value) for name, value in skips.items()}


@contextmanager
def _left_as_it_was(layer: nn.Module) -> Iterator[None]:
    """Put back what a training step changes: gradients, buffers such as running averages, and random numbers."""
    grads = [(parameter, parameter.grad) for parameter in layer.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in layer.buffers()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for parameter, grad in grads:
            parameter.grad = grad
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _call(layer: nn.Module, inputs: Any) -> Any:
    return layer(*inputs) if isinstance(inputs, tuple) else layer(inputs)


def _backward(output: Any) -> None:
    outputs = [tensor for tensor in _tensors(output) if tensor.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])


def _fresh(values: Any) -> Any:
    """The same numbers as a rank receives them: leaves without a history, which ask for a gradient where they can."""
    if isinstance(values, tuple):
        return tuple(map(_fresh, values))
    return values.detach().requires_grad_(values.is_floating_point())


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    _settle()
    start = time.perf_counter()
    result = run()
    _settle()
    return time.perf_counter() - start, result


def _settle() -> None:
    """Wait for the GPU, which otherwise computes on while the clock is read."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _kept_bytes(layer: nn.Module, inputs: Any) -> int:
    """Bytes that one forward keeps for its backward: what lies in the same place once, and no parameter."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), *layer.buffers())}
    kept: dict[int, dict[int, int]] = {}  # of each storage, the bytes seen from each address in it
    limits: dict[int, int] = {}
    alive = []  # a storage that is freed could give its address to the next one

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            views = kept.setdefault(storage.data_ptr(), {})
            views[tensor.data_ptr()] = max(_nbytes(tensor), views.get(tensor.data_ptr(), 0))
            limits[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _call(layer, inputs)
    # A batch may be a small view of a large data set, which is not the layer's to keep.
    return sum(min(limits[storage], sum(views.values())) for storage, views in kept.items())


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _shapes(values: Any) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in _tensors(values)) or repr(values)
