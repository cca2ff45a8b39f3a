"""Stands for the works that asynchronous calls of `torch.distributed` return, and sees them waited for."""

from __future__ import annotations

import time
from typing import Any

from ppkit.emulate import sleep_until
from ppkit.observe.fields import Row
from ppkit.observe.recorder import Recorder


class ObservedWork:
    """Stands for a `torch.distributed.Work`: waits as it does, and records the wait.

    Args:
        recorder: of this rank.
        work: the real one.
        name: what a deadlock report calls the wait.
        row: the event that the wait completes; a receive's is recorded here, since only now it has begun to wait.
        tensor: the buffer.
        message: the message that a receive expects, to be delivered by the emulated link.
    """

    def __init__(
        self,
        recorder: Recorder,
        work: Any,
        name: str,
        row: Row,
        tensor: Any,
        message: tuple[int, int, int, int] | None,
    ) -> None:
        self._recorder = recorder
        self._work = work
        self._name = name
        self._row = row
        self._tensor = tensor
        self._message = message
        self._arrival: float | None = None
        self._waited = False

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Block until the operation is done, as `Work.wait` does."""
        recorder, row = self._recorder, self._row
        start = recorder.wait_begins(self._name, row[6], row[7], self._tensor)
        try:
            result = self._work.wait(*args, **kwargs)
        finally:
            end = recorder.wait_ends()
        if row[0] == "RECV":
            sleep_until(self._arrives())
            end = time.perf_counter()
        if self._waited:
            return result
        self._waited = True
        if row[0] == "RECV":
            recorder.communicate(
                "RECV", start, end, "irecv", peer=row[6], tag=row[7], nbytes=row[8], message=self._message
            )
        else:
            recorder.communicate("WAIT", start, end, self._name, peer=row[6], tag=row[7])
        return result

    def is_completed(self) -> bool:
        """Tell whether the operation is done, its emulated delay included."""
        return bool(self._work.is_completed()) and time.perf_counter() >= self._arrives()

    def _arrives(self) -> float:
        if self._arrival is None:
            known = self._message is not None and self._row[0] == "RECV"
            self._arrival = self._recorder.arrives(self._message, self._row[8]) if known else 0.0  # type: ignore[arg-type]
        return self._arrival

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


class ObservedCollective(ObservedWork):
    """An asynchronous collective: its event ends when the result is there, whenever somebody waits for it."""

    def __init__(self, recorder: Recorder, work: Any, name: str, row: Row, tensor: Any, seconds: float) -> None:
        super().__init__(recorder, work, f"wait for {name}", row, tensor, None)
        self._seconds = seconds
        work.get_future().add_done_callback(self._done)

    def _done(self, _future: Any) -> None:
        self._arrival = time.perf_counter() + self._seconds
        self._row[2] = self._arrival

    def _arrives(self) -> float:
        return self._arrival or 0.0

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Block until the result is there."""
        recorder = self._recorder
        start = recorder.wait_begins(self._name, None, None, self._tensor)
        try:
            result = self._work.wait(*args, **kwargs)
        finally:
            recorder.wait_ends()
        sleep_until(self._arrives())
        recorder.communicate("WAIT", start, time.perf_counter(), self._name)
        return result
