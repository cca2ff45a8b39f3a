"""Lets an executor say which operation of which stage and micro-batch it runs, where plain code must be guessed at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ppkit.observe.fields import Row
    from ppkit.observe.recorder import Recorder

recorder: Recorder | None = None  # of this process while it is observed; `observing` sets it

_NOTHING: AbstractContextManager[None] = nullcontext()
_NAMES = {"F": "forward", "B": "backward", "I": "input_grad", "W": "weight_grad"}


class Operations:
    """Records the operations of one executor, or nothing where nobody observes."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Row] = {}  # forwards whose activations are not freed yet

    def run(
        self,
        kind: str,
        stage: int,
        microbatch: int,
        *,
        module: nn.Module | None = None,
        again: bool = False,
        keeps: bool = True,
    ) -> AbstractContextManager[None]:
        """Record what happens inside as one F, B, I or W, and nothing else that happens in it.

        Args:
            kind: "F", "B", "I" or "W".
            stage: index of the stage.
            microbatch: index of the micro-batch.
            module: of a B or W: whose gradients come in it, layer by layer if so emulated.
            again: the forward is computed once more in it, from its checkpoint.
            keeps: of an F: it keeps activations for a backward.
        """
        if recorder is None:
            return _NOTHING
        return self._record(recorder, kind, stage, microbatch, module, again, keeps)

    @contextmanager
    def _record(
        self,
        to: Recorder,
        kind: str,
        stage: int,
        microbatch: int,
        module: nn.Module | None,
        again: bool,
        keeps: bool,
    ) -> Iterator[None]:
        from ppkit.observe.modules import settle  # which imports much

        start = to.now()
        stated = to.stated(kind, stage)
        before = (to.stated("F", stage) or 0.0) if again else 0.0
        to.in_backward = True  # what modules and autograd do in here is part of this operation
        if to.spreads and stated is not None and module is not None:
            to.pace.spread(module, start + before, stated)
        try:
            yield
            settle(to)
        finally:
            to.in_backward = False
            to.pace.end()
        if stated is not None:
            stated += before
        name = _NAMES[kind] + (", forward again" if again else "")
        row = to.compute(kind, start, stage, microbatch, stated, name)
        if not keeps:
            row.held_until = row.end
        elif kind == "F":
            self._held[stage, microbatch] = row
        elif kind != "W":
            self._held.pop((stage, microbatch)).held_until = row.end


def wait_unrecorded(work: Any, call: str, peer: int | None, tag: int | None, tensor: Any) -> None:
    """Wait for a work of which no event is recorded; the watcher knows all the same that this rank waits."""
    to = recorder
    if to is not None:
        to.wait_begins(call, peer, tag, tensor)
    try:
        work.wait()
    finally:
        if to is not None:
            to.wait_ends()
