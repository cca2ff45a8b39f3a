"""Starts and ends ranks by the fork server; the notebook's end of it."""

from __future__ import annotations

import atexit
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from ppkit.errors import LaunchError
from ppkit.launch.server import receive_with_fds, send_with_fds

# A fork copies the table of all pages, and its end drops it: with huge pages (Linux 5.8 with glibc 2.35, elsewhere
# without effect) these take 1 and 2 ms instead of 4 and 8. Python's own allocator takes pages that are too small.
_HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Exit(NamedTuple):
    """The end of a rank's process: exit code as `subprocess` gives it (a signal's is negative), and when."""

    rank: int
    code: int
    when: float


class Team(Protocol):
    """The processes of a run, as whoever watches them needs them."""

    controls: list[Any]

    def wait(self, controls: list[Any], seconds: float) -> list[Any]:
        """Return which of `controls` have something, and of `watched()`; wait for the first, `seconds` at most."""

    def watched(self) -> Sequence[Any]:
        """Return what to wait on besides the control channels."""

    def exits(self) -> list[Exit]:
        """Return the ends of ranks since the last call, without waiting."""

    def kill(self) -> None:
        """End every rank, and all that it started, at once."""


class Starter(Protocol):
    """How ranks come to be."""

    def is_usable(self) -> bool:
        """Tell whether it can start ranks."""

    def folder(self) -> AbstractContextManager[Path]:
        """Make a folder for a run, and remove it."""

    def start(self, run_dir: Path, n_ranks: int, first: int = 0) -> Team:
        """Start all ranks of a run, or those from number `first` on."""


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off an interrupt to the end of the block: half a message would garble all that follow it."""
    if threading.current_thread() is not threading.main_thread():  # Python interrupts the main thread alone
        yield
        return
    interrupts: list[object] = []
    handler = signal.signal(signal.SIGINT, lambda *frame: interrupts.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        if interrupts:
            signal.raise_signal(signal.SIGINT)


class ForkTeam:
    """Ranks that the fork server has forked.

    Args:
        starter: the server's notebook end.
        run: what the server knows them by.
        controls: control channel of each rank.
    """

    def __init__(self, starter: ForkStarter, run: str, controls: list[Connection]) -> None:
        self._starter = starter
        self._run = run
        self.controls = controls
        self.ended: list[Exit] = []

    def wait(self, controls: list[Any], seconds: float) -> list[Any]:
        """Return which of `controls` have something, and of `watched()`; wait for the first, `seconds` at most."""
        return wait([*controls, *self.watched()], seconds)

    def watched(self) -> Sequence[Any]:
        """Return what to wait on besides the control channels."""
        return self._starter.watched()

    def exits(self) -> list[Exit]:
        """Return the ends of ranks since the last call."""
        self._starter.listen()
        found, self.ended = self.ended, []
        return found

    def kill(self) -> None:
        """End every rank at once."""
        self._starter.kill(self._run)


class ForkStarter:
    """Asks this process's fork server, which it starts at the first use and keeps."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the server
        self._folders = str(Path(tempfile.gettempdir(), f"ppkit-{os.getpid()}-{secrets.token_hex(8)}-"))
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        call = f"main({theirs.fileno()}, {lifeline}, {self._folders!r})"
        code = f"import sys; sys.path[:] = {sys.path!r}; from ppkit.launch.server import main; {call}"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno(), lifeline],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # the stop button's signal is not for the ranks
                env=os.environ | _HUGE_PAGES,
            )
        os.close(lifeline)
        self._sock = ours
        self._owner = os.getpid()
        self._inbox: deque[Any] = deque()  # received, and not lost to an interrupt
        self._teams: WeakValueDictionary[str, ForkTeam] = WeakValueDictionary()  # by run, while somebody watches
        self._ready = False
        self._numbers = count()
        atexit.register(self.close)
        # A process forked from this one must not hold the socket: the server ends when its last holder does.
        os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        self._sock.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def is_usable(self) -> bool:
        """Tell whether the server is alive and belongs to this process, not to one that forked it."""
        return self._owner == os.getpid() and self._process.poll() is None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Make a folder for a run, and remove it; the server does where this process is killed."""
        while not self._ready:  # before that nobody would
            self._ready = self._receive()[0] == "ready"
        path = Path(f"{self._folders}{next(self._numbers)}")
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            remove_folder(path)

    def start(self, run_dir: Path, n_ranks: int, first: int = 0) -> ForkTeam:
        """Start all ranks of a run, or those from number `first` on."""
        run = str(run_dir)
        pairs = [socket.socketpair() for _ in range(n_ranks)]
        try:
            with _uninterrupted():
                send_with_fds(self._sock, ("fork", run, first), [theirs.fileno() for _, theirs in pairs])
            while self._receive()[:2] != ("forked", run):
                pass  # what an interrupted start has left
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            self.kill(run)
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        team = self._teams[run] = ForkTeam(self, run, [Connection(ours.detach()) for ours, _ in pairs])
        return team

    def _receive(self) -> Any:
        """Return the next message; the end of a rank is kept for whoever watches it, too."""
        try:
            if not self._inbox:
                select.select([self._sock], [], [])  # interruptible: preloading takes seconds
                with _uninterrupted():
                    self._inbox.append(receive_with_fds(self._sock)[0])
            message = self._inbox.popleft()
        except (EOFError, ConnectionError):
            message = ("failed", self._read_log())
        if message[0] == "failed":
            self.close()
            raise LaunchError(f"The process that starts ranks could not start or was ended. It said:\n{message[1]}")
        if message[0] == "exited" and (team := self._teams.get(message[1])) is not None:
            team.ended.append(Exit(*message[2:]))
        return message

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="backslashreplace").strip() or "(nothing)"

    def watched(self) -> Sequence[Any]:
        """Return what becomes readable when a rank ends."""
        return [self._sock]

    def listen(self) -> None:
        """Note which ranks have ended, without waiting."""
        while self._inbox or select.select([self._sock], [], [], 0)[0]:
            self._receive()

    def kill(self, run: str) -> None:
        """End every rank of a run at once."""
        with suppress(OSError), _uninterrupted():
            send_with_fds(self._sock, ("kill", run), [])

    def close(self) -> None:
        """End the server and with it every rank."""
        if self._owner != os.getpid():
            return
        atexit.unregister(self.close)
        self._let_go()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._process.kill()
        self._process.wait()
        self._log.close()


def remove_folder(path: Path) -> None:
    """Remove a folder, although a rank that is being ended may still write to it."""
    for _ in range(50):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.01)


_starter: Starter | None = None
_lock = threading.Lock()


def starter() -> Starter:
    """Return this process's starter, which begins to preload behind its back when it is new."""
    global _starter
    with _lock:
        if _starter is None or not _starter.is_usable():
            if hasattr(os, "fork"):
                _starter = ForkStarter()
            else:
                from ppkit.launch.spawner import SpawnStarter

                _starter = SpawnStarter()
        return _starter
