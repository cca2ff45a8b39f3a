"""Records what a rank does, without a word of ppkit in the learner's code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppkit.observe.recorder import Recorder


def observing(recorder: Recorder) -> None:
    """Let `recorder` see every forward, backward, optimizer step and message of this process from now on.

    `torch.nn.Module.__call__`, `torch.autograd.backward` and `grad`, and the functions of `torch.distributed` are
    wrapped; there is no way back, since a rank lives for one run.
    """
    from ppkit.observe.messages import observe_messages
    from ppkit.observe.modules import observe_modules

    observe_modules(recorder)
    observe_messages(recorder)
