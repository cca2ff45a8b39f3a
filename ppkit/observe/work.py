"""Stands for the works that asynchronous calls of `torch.distributed` return, and sees them waited for."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
import torch.distributed as dist

from ppkit.emulate import sleep_until
from ppkit.launch.frames import Frame
from ppkit.observe.buffers import Loan
from ppkit.observe.fields import Message, Row
from ppkit.observe.pace import Ride
from ppkit.observe.recorder import Recorder


class ObservedWork:
    """Stands for a `torch.distributed.Work`: waits as it does, and records the wait.

    Args:
        recorder: of this rank.
        work: the real one.
        row: the event that the call has begun; until it is waited for, its note says so.
        tensor: the buffer.
        line: of the learner's call, if it is his.
        loan: of the buffer, if that is watched.
    """

    def __init__(
        self, recorder: Recorder, work: Any, row: Row, tensor: Any, line: Frame | None, loan: Loan | None = None
    ) -> None:
        recorder.begun(row, line)
        self._recorder = recorder
        self._work = work
        self._row = row
        self._tensor = tensor
        self._loan = loan
        self._waited = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` asks: fully_shard waits for nothing that is no `Work`."""
        return dist.Work

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Block until the operation is done, as `Work.wait` does, and until its emulated link has delivered it."""
        row = self._row
        start = self._recorder.wait_begins(f"wait for {row.name}", row.peer, row.tag, self._tensor)
        try:
            result = self._work.wait(*args, **kwargs)
        finally:
            self._recorder.wait_ends()
        end = self._delivered(start)
        self._buffer_is_back()
        if not self._waited:
            self._waited = True
            row.note = ""
            self._record(start, end)
        return result

    def is_completed(self) -> bool:
        """Tell whether the operation is done, its emulated delay included."""
        done = bool(self._work.is_completed()) and time.perf_counter() >= self._arrives()
        if done:
            self._row.note = ""
            self._buffer_is_back()
        return done

    def get_future(self) -> Any:
        """Return the future of the real one: whoever has it waits for it."""
        self._row.note = ""
        self._buffer_is_back()
        return self._work.get_future()

    def _buffer_is_back(self) -> None:
        if self._loan is not None:
            self._loan.end()
            self._loan = None

    def _arrives(self) -> float:
        """Return when the emulated link delivers; only asked when gloo has."""
        return 0.0

    def _delivered(self, start: float) -> float:
        """Wait until the emulated link has delivered too; return when the wait that began at `start` was over."""
        return self._recorder.now()

    def _record(self, start: float, end: float) -> None:
        """Record the first wait."""
        row = self._row
        self._recorder.communicate(Row("WAIT", start, end, f"wait for {row.name}", peer=row.peer, tag=row.tag))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


class ObservedSend(ObservedWork):
    """An `isend`; its event and the wait for it are two."""


class ObservedReceive(ObservedWork):
    """An `irecv`: its event is the wait for it, as with a `recv`.

    Args:
        recorder: of this rank.
        work: the real one.
        row: the receive's event.
        tensor: the buffer.
        line: of the learner's call, if it is his.
        message: what it expects, if the sender is known.
        loan: of the buffer, if that is watched.
    """

    def __init__(
        self,
        recorder: Recorder,
        work: Any,
        row: Row,
        tensor: Any,
        line: Frame | None,
        message: Message | None,
        loan: Loan | None = None,
    ) -> None:
        super().__init__(recorder, work, row, tensor, line, loan)
        self._message = message
        self._arrival: float | None = None

    def _arrives(self) -> float:
        if self._arrival is None:
            message = self._message
            self._arrival = 0.0 if message is None else self._recorder.arrives(message, self._row.nbytes)
        return self._arrival

    def _delivered(self, start: float) -> float:
        message = self._message
        return self._recorder.now() if message is None else self._recorder.arrived(message, self._row.nbytes, start)

    def _record(self, start: float, end: float) -> None:
        self._row.start, self._row.end = start, end
        self._row.message = self._message


class ObservedCollective(ObservedWork):
    """An asynchronous collective: its event ends when the result is there, whenever somebody waits for it.

    Args:
        recorder: of this rank.
        work: the real one.
        row: the collective's event.
        tensor: its tensor.
        line: of the learner's call, if it is his.
        ride: on the emulated ring, if there is one.
    """

    def __init__(
        self, recorder: Recorder, work: Any, row: Row, tensor: Any, line: Frame | None, ride: Ride | None
    ) -> None:
        super().__init__(recorder, work, row, tensor, line)
        self._ride = ride
        work.get_future().add_done_callback(self._done)

    def _done(self, _future: Any) -> None:
        self._row.end = now = time.perf_counter()
        if self._ride is not None:
            self._ride.join(now)

    def get_future(self) -> Any:
        """Return a future that is done when the emulated links are, for hooks that go on from there."""
        real = self._work.get_future()
        self._row.note = ""  # whoever has the future waits for it
        if self._ride is None:
            return real
        late: Any = torch.futures.Future()
        threading.Thread(target=self._pass_on, args=(real, late), daemon=True).start()
        return late

    def _pass_on(self, real: Any, late: Any) -> None:
        try:
            value = real.wait()
        except Exception as error:
            late.set_exception(error)
        else:
            sleep_until(self._arrives())
            late.set_result(value)

    def _delivered(self, start: float) -> float:
        if self._ride is None:
            return self._recorder.now()
        return self._recorder.is_at(max(start, self._arrives()))

    def _arrives(self) -> float:
        if self._ride is None:
            return 0.0
        free_at, over = self._ride.times()
        self._row.start, self._row.end = max(self._row.start, free_at), over
        return over
