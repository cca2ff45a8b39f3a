"""One action of a schedule: an operation on one stage and one micro-batch, and its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from ppkit.errors import ScheduleError
from ppkit.values import whole

__all__ = ["Action", "Op"]


class Op(Enum):
    """What an action does with one stage and one micro-batch; the text is torch's."""

    F = "F"  # forward
    B = "B"  # full backward: I and W in one
    I = "I"  # gradient of the stage's input  # noqa: E741  # the field's own letter
    W = "W"  # gradient of the stage's weights
    SEND_F = "SEND_F"  # send this stage's output to the next stage
    RECV_F = "RECV_F"  # receive this stage's input
    SEND_B = "SEND_B"  # send the gradient of this stage's input to the stage before
    RECV_B = "RECV_B"  # receive the gradient of this stage's output
    REDUCE = "REDUCE"  # all-reduce the stage's gradients over its data-parallel replicas

    # Members are unique, so their identity will do; Enum's own hash runs Python code at every look-up.
    __hash__ = object.__hash__

    @property
    def is_compute(self) -> bool:
        """Whether it computes: F, B, I or W."""
        return self in (Op.F, Op.B, Op.I, Op.W)

    @property
    def is_comm(self) -> bool:
        """Whether it communicates: a send, a receive or the gradient all-reduce."""
        return not self.is_compute

    @property
    def is_send(self) -> bool:
        """Whether it sends to another rank."""
        return self in (Op.SEND_F, Op.SEND_B)

    @property
    def is_recv(self) -> bool:
        """Whether it receives from another rank."""
        return self in (Op.RECV_F, Op.RECV_B)

    @property
    def is_forward(self) -> bool:
        """Whether it belongs to the forward pass: F and the messages that carry activations."""
        return self in (Op.F, Op.SEND_F, Op.RECV_F)

    @property
    def is_backward(self) -> bool:
        """Whether it belongs to the backward pass: B, I, W and the messages that carry gradients."""
        return self in (Op.B, Op.I, Op.W, Op.SEND_B, Op.RECV_B)


_OPS = {op.value: op for op in Op} | {"REDUCE_GRAD": Op.REDUCE}  # torch's name for it
_TEXT = re.compile(r"(\d{1,18})([A-Za-z_]+?)(\d{0,18})", re.ASCII)
_ALLOWED = f"stage, operation, micro-batch, such as 2F0; the operations are {', '.join(op.value for op in Op)}"


@dataclass(frozen=True, slots=True)
class Action:
    """One operation on one stage and one micro-batch; its text is ``"2F0"``: stage 2, forward, micro-batch 0.

    Args:
        stage: index of the slice of the model, from 0.
        op: what to do.
        microbatch: index of the micro-batch, from 0; None for ``REDUCE`` only, which concerns them all.
    """

    stage: int
    op: Op
    microbatch: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.op, Op):
            raise ScheduleError(f"{self.op!r} is no Op; an action is {_ALLOWED}", values={"op": self.op})
        stage, microbatch = self.stage, self.microbatch
        if type(stage) is int and stage >= 0 and type(microbatch) is int and microbatch >= 0:
            if self.op is not Op.REDUCE:
                return
            raise ScheduleError(
                f"REDUCE concerns all micro-batches: leave out micro-batch {microbatch}",
                values={"microbatch": microbatch},
            )
        for name, given in (("stage", stage), ("microbatch", microbatch)):
            if type(given) is not int and (number := whole(given)) is not None:  # NumPy's
                object.__setattr__(self, name, number)
                self.__post_init__()
                return
        if self.op is not Op.REDUCE or type(stage) is not int or stage < 0 or microbatch is not None:
            raise ScheduleError(
                f"stage {stage!r} and micro-batch {microbatch!r} of {self.op.value} must be whole numbers from 0 up",
                values={"stage": stage, "microbatch": microbatch},
            )

    def __str__(self) -> str:
        return f"{self.stage}{self.op.value}{'' if self.microbatch is None else self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action that ``text`` names.

        Args:
            text: such as ``"2F0"``, ``"3SEND_F1"`` or ``"1REDUCE"``; torch's ``"1REDUCE_GRAD"`` too.

        Raises:
            ScheduleError: the text names no action; the message says what is allowed.
        """
        match = _matched(text) if isinstance(text, str) else None
        if match is None:
            small = isinstance(text, str) and _matched(text.upper())
            hint = ", in capital letters" if small else ""
            raise ScheduleError(f"{text!r} is no action: write {_ALLOWED}{hint}", action=str(text))
        stage, op, microbatch = match.groups()
        return cls(int(stage), _OPS[op], int(microbatch) if microbatch else None)


def _matched(text: str) -> re.Match[str] | None:
    match = _TEXT.fullmatch(text.strip())
    if match is None or match[2] not in _OPS or (match[3] == "") != (_OPS[match[2]] is Op.REDUCE):
        return None
    return match
