"""A slice of the model on its rank: forward, and backward in one piece or two halves, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppkit.backward import Branch, input_gradients, weight_gradients
from ppkit.errors import PpkitError
from ppkit.skips import carrying, skips_of
from ppkit.units import kind_of

__all__ = ["PipelineError", "Stage"]

Tensors = tuple[Tensor, ...]
Gradients = Sequence["Tensor | None"]


class PipelineError(PpkitError, ValueError):
    """A pipeline was given what it cannot run, or a stage failed in it."""


@dataclass(slots=True)
class _Kept:
    """What a stage keeps of a micro-batch from its forward to its backward.

    Attributes:
        inputs: what the forward took.
        target: of the loss, on the last stage.
        results: what the forward made, with its graph; None where it is computed again.
        state: of the random numbers, at the start of a forward that is computed again.
    """

    inputs: Tensors
    target: Any
    results: Tensors | None
    state: list[Tensor] | None


@dataclass(slots=True)
class _Rest:
    """What `weight_grad` has to do after `input_grad`: the branches, or a full backward from the roots."""

    branches: list[Branch]
    roots: tuple[list[Tensor], list[Tensor]] | None = None


class Stage:
    """A slice of the model.

    What goes in is the tuple of the tensors from the stage before, then those of the skips that end here; what comes
    out are the tensors for the next stage, or the loss, then those of the skips that begin here.

    Args:
        index: its position in the model.
        module: called with the tensors from the stage before; returns a tensor or a tuple of tensors.
        loss_fn: on the last stage: of its output and the target.
        checkpoint: keep a micro-batch's input alone, and compute its forward again when its backward comes.
        skips_in: names of the skips that come from earlier stages.
        skips_out: names of the skips that go to later stages.
        device: where it computes.
    """

    def __init__(
        self,
        index: int,
        module: nn.Module,
        loss_fn: Callable[..., Tensor] | None = None,
        *,
        checkpoint: bool = False,
        skips_in: Sequence[str] = (),
        skips_out: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> None:
        self.index = index
        self.module = module
        self.loss_fn = loss_fn
        self.checkpoint = checkpoint
        self._skips_in = tuple(skips_in)
        self._skips_out = tuple(skips_out)
        self._has_skips = bool(skips_of(module))
        self._gpus = [device] if device is not None and device.type == "cuda" else []
        self._kept: dict[int, _Kept] = {}
        self._rest: dict[int, _Rest] = {}

    def forward(self, microbatch: int, inputs: Tensors, target: Any = None) -> Tensors:
        """Compute, and keep what the backward needs.

        Where gradients are off, nothing is kept.

        Returns:
            leaves without history that need a gradient where a later stage must send one back.
        """
        state = None
        if not torch.is_grad_enabled():
            return self._call(inputs, target)
        if self.checkpoint:
            state = self._random_state()
            with torch.no_grad():
                results = self._call(inputs, target)
            trains = any(t.requires_grad for t in (*inputs, *self.module.parameters()))
            needs = [trains and (r.is_floating_point() or r.is_complex()) for r in results]
        else:
            results = self._call(inputs, target)
            needs = [result.requires_grad for result in results]
        self._kept[microbatch] = _Kept(inputs, target, None if self.checkpoint else results, state)
        return tuple(r.detach().requires_grad_(need) for r, need in zip(results, needs, strict=True))

    def backward(self, microbatch: int, gradients: Gradients) -> Gradients:
        """Full backward: add to the `.grad` of the weights.

        Args:
            microbatch: whose forward has been computed.
            gradients: of the loss by each result of the forward; None where there is none.

        Returns:
            the gradient of each input; None for one that needs none.
        """
        kept = self._recall(microbatch)
        roots, into = _roots(kept, gradients)
        if roots:
            torch.autograd.backward(roots, into)
        return self._back(kept, [x.grad for x in self._leaves(kept)])

    def input_grad(self, microbatch: int, gradients: Gradients) -> Gradients:
        """Half a backward: as `backward`, without the gradients of the weights.

        The first stage has no input that needs a gradient: nothing is computed, and `weight_grad` does it all.
        """
        kept = self._recall(microbatch)
        roots, into = _roots(kept, gradients)
        leaves = self._leaves(kept)
        if not (roots and leaves):
            self._rest[microbatch] = _Rest([], (roots, into))
            return self._back(kept, [None] * len(leaves))
        found, branches = input_gradients(roots, into, leaves)
        self._rest[microbatch] = _Rest(branches)
        return self._back(kept, found)

    def weight_grad(self, microbatch: int) -> None:
        """The other half: add to the `.grad` of the weights, after `input_grad`."""
        rest = self._rest.pop(microbatch)
        if rest.roots is None:
            weight_gradients(rest.branches)
        elif rest.roots[0]:
            torch.autograd.backward(*rest.roots)

    def _call(self, inputs: Tensors, target: Any) -> Tensors:
        n_inputs = len(inputs) - len(self._skips_in)
        skips = dict(zip(self._skips_in, inputs[n_inputs:], strict=True))
        with carrying(skips) if self._has_skips else nullcontext():
            output = self.module(*inputs[:n_inputs])
        results = (self._loss(output, target),) if self.loss_fn is not None else _as_tuple(output)
        if self._has_skips:
            if missing := [name for name in self._skips_out if name not in skips]:
                raise PipelineError(f"skip {missing[0]!r} was not stashed in the forward", stage=self.index)
            results += tuple(skips[name] for name in self._skips_out)
        return results

    def _loss(self, output: Any, target: Any) -> Tensor:
        assert self.loss_fn is not None  # asked for by the caller
        _as_tuple(output)
        loss = self.loss_fn(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.dim():
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else kind_of(loss)
            raise PipelineError(
                f"loss_fn must return a scalar tensor, the mean over the micro-batch; it returned {got}"
            )
        return loss

    def _recall(self, microbatch: int) -> _Kept:
        """What was kept, with its graph, which is computed again from its checkpoint if need be."""
        kept = self._kept.pop(microbatch)
        if kept.results is None:
            with self._random_numbers_of(kept.state):
                kept.results = self._call(kept.inputs, kept.target)
        return kept

    def _leaves(self, kept: _Kept) -> list[Tensor]:
        """The inputs whose gradients go back; what the first stage takes comes from no stage."""
        return [x for x in kept.inputs if x.requires_grad] if self.index else []

    def _back(self, kept: _Kept, gradients: Gradients) -> Gradients:
        """The gradients, in the inputs' places; zeros where the outputs don't depend on an input that needs one."""
        if not self.index:
            return [None] * len(kept.inputs)
        found = iter(gradients)
        return [
            None if not x.requires_grad else torch.zeros_like(x) if (g := next(found)) is None else g
            for x in kept.inputs
        ]

    def _random_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus)]

    @contextmanager
    def _random_numbers_of(self, state: list[Tensor] | None) -> Iterator[None]:
        """Draw the numbers that followed `state`, such as dropout's; afterwards go on as if nothing had been drawn."""
        now = self._random_state()
        try:
            self._set_random_state(state or now)
            yield
        finally:
            self._set_random_state(now)

    def _set_random_state(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for gpu, numbers in zip(self._gpus, state[1:], strict=True):
            torch.cuda.set_rng_state(numbers, gpu)


def _as_tuple(output: Any) -> Tensors:
    tensors = tuple(output) if isinstance(output, (tuple, list)) else (output,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            what = kind_of(output) if tensor is output else f"{kind_of(output)} with {kind_of(tensor)}"
            raise PipelineError(f"a stage must return a tensor or a tuple of tensors; it returned {what}")
    return tensors


def _roots(kept: _Kept, gradients: Gradients) -> tuple[list[Tensor], list[Tensor]]:
    """The results that a backward starts from, and their gradients."""
    pairs = zip(kept.results or (), gradients, strict=True)
    used = [(result, g) for result, g in pairs if g is not None and result.requires_grad]
    return [result for result, _ in used], [g for _, g in used]
