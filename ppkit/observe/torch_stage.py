"""A stage of `torch.distributed.pipelining` that says which operation it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.pipelining import PipelineStage

from ppkit.observe import operations
from ppkit.observe.operations import Operations

__all__ = ["ObservedStage"]


class ObservedStage(PipelineStage):
    """Records F, B, I and W with the numbers that torch's schedule gives them; computes as its parent does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._operations = Operations()

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Torch's, recorded as an F."""
        with self._operations.run("F", self.stage_index, fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Torch's, recorded as a B, or as an I where the gradients of the weights come later."""
        full = kwargs.get("full_backward", True)
        kind = "B" if full else "I"
        with self._operations.run(kind, self.stage_index, bwd_chunk_id, module=self.submod if full else None):
            return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Torch's, recorded as a W."""
        with self._operations.run("W", self.stage_index, bwd_chunk_id, module=self.submod):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    # Before the first step torch computes with made-up inputs, to learn the shapes of the messages.

    def _compute_outputs(self, *args: Any, **kwargs: Any) -> Any:
        with _inference(self.stage_index):
            return super()._compute_outputs(*args, **kwargs)

    def _compute_input_grads(self, *args: Any, **kwargs: Any) -> Any:
        with _inference(self.stage_index):
            return super()._compute_input_grads(*args, **kwargs)


@contextmanager
def _inference(stage: int) -> Iterator[None]:
    """Record what happens inside as neither F nor I, and without an emulated duration."""
    to = operations.recorder
    if to is None:
        yield
        return
    start = to.now()
    to.in_backward = True
    try:
        yield
    finally:
        to.in_backward = False
    to.compute("COMPUTE", start, stage, None, None, "shape inference")
