"""Records what a rank does, without a word of ppkit in the learner's code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppkit.observe.recorder import Recorder

Undo = list[Callable[[], object]]
"""Calls that put back what was replaced."""


def observing(recorder: Recorder) -> Undo:
    """Let `recorder` see every forward, backward, optimizer step and message of this process from now on.

    `torch.nn.Module.__call__`, `torch.autograd.backward` and `grad`, and the functions of `torch.distributed` are
    wrapped. Changing a class with hundreds of children takes milliseconds, so it is done before ranks are forked.

    Returns:
        What `leave_alone` needs to undo it.
    """
    from ppkit.observe import operations
    from ppkit.observe.messages import message_wrappers
    from ppkit.observe.modules import module_wrappers, observe_optimizers

    undo: Undo = []
    said = (operations, "recorder", recorder)
    for owner, name, wrapper in [*module_wrappers(recorder), *message_wrappers(recorder), said]:
        undo.append(partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, wrapper)
    undo += [handle.remove for handle in observe_optimizers(recorder)]
    return undo


def leave_alone(undo: Undo) -> None:
    """Put back what `observing` has wrapped."""
    for put_back in undo:
        put_back()
