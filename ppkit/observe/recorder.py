"""Collects the events of one rank, in seconds of its host's monotonic clock."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from types import FrameType
from typing import Any

import torch

from ppkit.emulate import Emulation, sleep_until
from ppkit.launch.board import Board
from ppkit.launch.frames import Frame, learner_frames
from ppkit.observe.agreement import Agreement
from ppkit.observe.fields import NEVER_FINISHED, NEVER_WAITED, Message, Row
from ppkit.observe.pace import Pace, Wire
from ppkit.observe.remarks import Remarks

_LATE = 0.0005  # seconds by which an emulated operation may miss its end before it counts as overrun
MADE_UP = 0.005  # seconds that a rank may be behind its emulation and still make up for


class Token:
    """Lives exactly as long as the graph of one forward, to which it is tied; its end frees the activations.

    Args:
        row: the forward's event.
        stage: the outermost module that was called.
        parents: tokens of the forwards whose outputs went into this one without a detach.
    """

    __slots__ = ("parents", "row", "stage")

    def __init__(self, row: Row, stage: int, parents: tuple[Token, ...]) -> None:
        self.row = row
        self.stage = stage
        self.parents = parents

    def release(self, now: float) -> None:
        """Note that the activations are freed; the first time counts."""
        if self.row.held_until is None:
            self.row.held_until = now

    def __del__(self) -> None:
        self.release(time.perf_counter())


class Inside(threading.local):
    """Whether an outermost operation is running in this thread."""

    depth = 0


class Recorder:
    """What one rank did so far; made before the fork, and begun in the rank."""

    rank: int
    n_ranks: int
    board: Board
    emulation: Emulation | None
    agreement: Agreement
    remarks: Remarks

    def __init__(self) -> None:
        self.inside = Inside()
        self.running: list[object] = []  # outermost modules whose forward is running, in any thread

    def begin(
        self, rank: int, n_ranks: int, board: Board, emulation: Emulation | None, on_gpu: bool | None = None
    ) -> None:
        """Be the recorder of one rank in one run.

        Args:
            rank: this rank.
            n_ranks: how many ranks the run has.
            board: shared with the other ranks and the watcher.
            emulation: durations to keep to, or None.
            on_gpu: whether there are kernels to wait for; None: ask torch.
        """
        self.rank = rank
        self.n_ranks = n_ranks
        self.board = board
        self.emulation = emulation
        self.agreement = Agreement(rank, board)
        self.remarks = Remarks(rank, board)
        self._begun: list[tuple[Row, Frame]] = []  # asynchronous calls, and their lines
        self.on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
        self.in_backward = False
        self.pace = Pace(self.is_at)
        self.wire = Wire()
        self._rows: list[Row] = []
        self._stages: dict[int, int] = {}  # id of an outermost module -> its stage
        self._modules: list[object] = []  # keeps them, so that no id is used twice
        self._microbatches: dict[int, int] = defaultdict(int)  # by stage, since the last step
        self._pending: tuple[str, int | None, int | None, Any, float, FrameType | None] | None = None
        self.behind = 0.0  # seconds that gloo and the system have taken longer than what is emulated; see `now`

    def rows(self) -> list[Row]:
        """Return the events so far, a call that has not returned among them."""
        rows, pending = list(self._rows), self._pending
        if pending is not None:
            name, peer, tag, _tensor, since, _frame = pending
            now = time.perf_counter()
            rows.append(Row(_kind_of(name), since, now, name, peer=peer, tag=tag, note=NEVER_FINISHED))
        return rows

    # Computation

    def stage_of(self, module: torch.nn.Module) -> int | None:
        """Return the stage that an outermost module is: `rank`, and `rank + n_ranks` and so on for further ones.

        None for one without parameters: a loss function or an activation that is called by itself.
        """
        stage = self._stages.get(id(module))
        if stage is None and next(module.parameters(), None) is not None:
            stage = self.rank + len(self._modules) * self.n_ranks
            self._stages[id(module)] = stage
            self._modules.append(module)
        return stage

    def next_microbatch(self, stage: int) -> int:
        """Number the forwards of a stage from 0 since the last optimizer step."""
        number = self._microbatches[stage]
        self._microbatches[stage] = number + 1
        return number

    def step_taken(self) -> None:
        """Count the step, and start numbering micro-batches anew."""
        self._microbatches.clear()
        self.board.step_taken(self.rank)

    def now(self) -> float:
        """Return the time at which the emulated rank is; without emulation that is the time.

        A message that gloo delivers late, and a sleep that ends late, are no part of what is emulated. The rank is
        behind then, and makes up for it in the sleep of its next operation. What the learner's code takes counts.
        """
        return time.perf_counter() - self.behind

    def is_at(self, when: float) -> float:
        """Note that something emulated is over at `when`, which may be past; return that.

        Beyond a few milliseconds, as for a large message or on a machine with no time, the clock is right.
        """
        sleep_until(when)
        behind = time.perf_counter() - when
        self.behind = behind if behind < MADE_UP else 0.0
        return when if self.behind else when + behind

    def compute(
        self,
        kind: str,
        start: float,
        stage: int | None,
        microbatch: int | None,
        seconds: float | None,
        name: str,
    ) -> Row:
        """Record an operation that began at `start`, once its emulated `seconds`, if any, are over."""
        end = self.now()
        note = ""
        if seconds is not None and end > start + seconds + _LATE:
            note = f"overran {seconds * 1e3:g} ms by {(end - start - seconds) * 1e3:.1f} ms"
        elif seconds is not None and end < start + seconds:
            end = self.is_at(start + seconds)
        row = Row(kind, start, end, name, stage, microbatch, note=note)
        self._rows.append(row)
        return row

    def stated(self, kind: str, stage: int) -> float | None:
        """Return the emulated duration of an operation, or None."""
        return None if self.emulation is None else self.emulation.seconds(kind, stage)

    @property
    def spreads(self) -> bool:
        """Whether the stated duration of a backward is spread over its layers."""
        return self.emulation is not None and self.emulation.per_layer

    # Communication

    def communicate(self, row: Row) -> Row:
        """Record a call of `torch.distributed`."""
        self._rows.append(row)
        return row

    def begun(self, row: Row, line: Frame | None) -> None:
        """Note an asynchronous call on a line of the learner's, which somebody should wait for."""
        if line is not None and not self.on_gpu:
            self._begun.append((row, line))

    def returned(self) -> None:
        """Note that the learner's function has returned, and remark on what nobody has waited for."""
        for row, line in self._begun:
            if row.note == NEVER_WAITED:
                what = "collective" if row.kind == "COLLECTIVE" else row.name
                self.remarks.add(f"{what} never waited for", line)

    def wait_begins(self, name: str, peer: int | None, tag: int | None, tensor: Any) -> float:
        """Note a call that another rank must answer; return its start."""
        now = time.perf_counter()
        self._pending = (name, peer, tag, tensor, now, sys._getframe(1))
        self.board.wait_begins(self.rank, now)
        return now - self.behind

    def wait_ends(self) -> float:
        """Note that the call has returned; return the time."""
        self._pending = None
        self.board.wait_ends(self.rank)
        return self.now()

    def arrives(self, message: Message, nbytes: int) -> float:
        """Return when an emulated link delivers a message that gloo has delivered already; 0.0: at once."""
        if self.emulation is None:
            return 0.0
        sent = self.board.send(*message)
        return 0.0 if sent is None else sent[0] + self.emulation.link.seconds(nbytes)

    def arrived(self, message: Message, nbytes: int, start: float) -> float:
        """Return when a receive was over that began at `start`, and that gloo has ended."""
        due = self.arrives(message, nbytes)
        return self.is_at(max(start, due)) if due else self.now()

    def pending(self) -> dict[str, Any] | None:
        """Describe the call that this rank waits in: name, peer, tag, shape, dtype, since, frames; or None."""
        pending = self._pending
        if pending is None:
            return None
        name, peer, tag, tensor, since, frame = pending
        shape = None if tensor is None else tuple(tensor.shape)
        dtype = None if tensor is None else str(tensor.dtype).removeprefix("torch.")
        return {
            "rank": self.rank, "name": name, "peer": peer, "tag": tag, "shape": shape, "dtype": dtype,
            "since": since, "frames": learner_frames(frame),
        }  # fmt: skip


def _kind_of(call: str) -> str:
    """Return the kind of event that a call of `torch.distributed` is drawn as."""
    return {"send": "SEND", "recv": "RECV"}.get(call, "WAIT" if call.startswith("wait") else "COLLECTIVE")
