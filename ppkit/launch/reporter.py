"""A rank's voice: its result, its error, and what it is doing, on the control channel."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ppkit.launch.frames import is_internal, learner_frames

if TYPE_CHECKING:
    from ppkit.launch.clocks import Reading


class Reporter:
    """A rank's voice on the control channel; answers the notebook while the learner's code runs.

    Args:
        rank: this rank.
        control: the channel; end-of-file on it means that the notebook is gone.
    """

    def __init__(self, rank: int, control: Connection) -> None:
        self._rank = rank
        self._control = control
        self._lock = threading.Lock()
        self.recorder: Any = None
        self._orders: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def answer(self) -> None:
        """Answer, and pass orders on; end the process at once when nobody is left to answer."""
        while True:
            try:
                message = self._control.recv()
            except (EOFError, OSError):
                os._exit(1)
            if message != ("report",):
                self._orders.put(message)
                if message == ("finish",):
                    return
                continue
            main = sys._current_frames().get(threading.main_thread().ident or 0)
            self._send(("report", self._pending(), learner_frames(main), self._events()))

    def order(self) -> tuple[Any, ...]:
        """Return what to do next: ("finish",), ("renew", ...) or ("run",), once the notebook says so."""
        return self._orders.get()

    def renewed(self, problem: str) -> None:
        """Say that the next run may come, or why not."""
        self._send(("renewed", problem))

    def tell_clock(self, reading: Reading) -> None:
        """Say how far this rank's clock is from rank 0's."""
        self._send(("clock", reading))

    def succeed(self, data: bytes) -> None:
        """Send the packed result and the events."""
        if self.recorder is not None:
            self.recorder.returned()
        self._send(("result", data, self._events()))

    def fail(self, error: BaseException) -> None:
        """Send what the learner needs to know of an exception."""
        self._send(("error", describe_error(error), self._events()))

    def _send(self, message: object) -> None:
        with self._lock, suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(message)

    def _pending(self) -> dict[str, Any] | None:
        return None if self.recorder is None else self.recorder.pending()

    def _events(self) -> list[Any]:
        return [] if self.recorder is None else self.recorder.rows()


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return an exception's type, message, frames outside of ppkit and torch, and full traceback, all as text."""
    frames = [
        (frame.filename, frame.lineno, frame.name)
        for frame in traceback.extract_tb(error.__traceback__)
        if not is_internal(frame.filename)
    ]
    return {
        "time": time.perf_counter(),
        "type": type(error).__name__,
        "exit": isinstance(error, SystemExit),
        "message": str(error),
        "frames": frames,
        "calls": getattr(error, "pending", ()),  # of a `MismatchError`
        "collective": getattr(error, "collective", None),
        "traceback": "".join(traceback.format_exception(type(error), error, _below_ppkit(error.__traceback__))),
    }


def _below_ppkit(frames: TracebackType | None) -> TracebackType | None:
    """Skip the frames by which ppkit called the learner's function."""
    own = str(Path(__file__).with_name("rank.py"))
    while frames is not None and frames.tb_frame.f_code.co_filename == own:
        frames = frames.tb_next
    return frames
