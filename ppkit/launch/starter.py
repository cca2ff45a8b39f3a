"""Starts and ends ranks: by the fork server, or by new interpreters where a system has no fork."""

from __future__ import annotations

import atexit
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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


class Starter(Protocol):
    """How ranks come to be and end."""

    def start(self, run_dir: Path, n_ranks: int) -> list[Connection]:
        """Start all ranks of a run; return the control channel of each."""

    def watched(self) -> Sequence[Any]:
        """Return what to wait on besides the control channels."""

    def exits(self) -> list[Exit]:
        """Return the ends of ranks since the last call, without waiting."""

    def kill(self) -> None:
        """End every rank, and all that it started, at once."""


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


class ForkStarter:
    """Asks this process's fork server, which it starts at the first use and keeps."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the server
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from ppkit.launch.server import main; main({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # the stop button's signal is not for the ranks
                env=os.environ | _HUGE_PAGES,
            )
        self._sock = ours
        self._owner = os.getpid()
        self._inbox: deque[Any] = deque()  # received, and not lost to an interrupt
        self._run = ""  # the one that is on; an interrupted start leaves messages of another behind
        atexit.register(self.close)
        # A process forked from this one must not hold the socket: the server ends when its last holder does.
        os.register_at_fork(after_in_child=ours.close)

    def is_usable(self) -> bool:
        """Tell whether the server is alive and belongs to this process, not to one that forked it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def start(self, run_dir: Path, n_ranks: int) -> list[Connection]:
        """Start all ranks of a run; return the control channel of each."""
        pairs = [socket.socketpair() for _ in range(n_ranks)]
        self._run = str(run_dir)
        try:
            with _uninterrupted():
                send_with_fds(self._sock, ("fork", self._run), [theirs.fileno() for _, theirs in pairs])
            while self._receive()[:2] != ("forked", self._run):
                pass  # what an earlier run has left
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        return [Connection(ours.detach()) for ours, _ in pairs]

    def _receive(self) -> Any:
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
        return message

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="backslashreplace").strip() or "(nothing)"

    def watched(self) -> Sequence[Any]:
        """Return what to wait on besides the control channels."""
        return [self._sock]

    def exits(self) -> list[Exit]:
        """Return the ends of ranks since the last call."""
        found = []
        while self._inbox or select.select([self._sock], [], [], 0)[0]:
            kind, run, *end = self._receive()
            if (kind, run) == ("exited", self._run):
                found.append(Exit(*end))
        return found

    def kill(self) -> None:
        """End every rank at once."""
        with suppress(OSError), _uninterrupted():
            send_with_fds(self._sock, ("kill",), [])

    def close(self) -> None:
        """End the server and with it every rank."""
        if self._owner != os.getpid():
            return
        atexit.unregister(self.close)
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._process.kill()
        self._process.wait()
        self._log.close()


class SpawnStarter:
    """Starts an interpreter for each rank; for Windows. Each imports torch anew, which takes seconds."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._reported: set[int] = set()

    def is_usable(self) -> bool:
        """Tell whether it can start ranks: always."""
        return True

    def start(self, run_dir: Path, n_ranks: int) -> list[Connection]:
        """Start all ranks of a run; return the control channel of each."""
        key = secrets.token_bytes(32)
        self._reported.clear()
        code = f"import sys; sys.path[:] = {sys.path!r}; from ppkit.launch.starter import spawned; spawned()"
        with Listener(authkey=key) as listener:  # a named pipe on Windows, a socket file elsewhere
            self._processes = []
            for rank in range(n_ranks):
                process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
                hello = f"{rank}\n{run_dir}\n{listener.address}\n{key.hex()}\n"
                assert process.stdin is not None  # PIPE above; for the type checker
                with process.stdin:
                    process.stdin.write(hello.encode())
                self._processes.append(process)
            connections: dict[int, Connection] = {}
            for _ in range(n_ranks):
                connection = listener.accept()
                connections[connection.recv()] = connection
        return [connections[rank] for rank in range(n_ranks)]

    def watched(self) -> Sequence[Any]:
        """Return what to wait on besides the control channels."""
        return []

    def exits(self) -> list[Exit]:
        """Return the ends of ranks since the last call."""
        ended = [r for r, p in enumerate(self._processes) if p.poll() is not None and r not in self._reported]
        self._reported.update(ended)
        return [Exit(rank, self._processes[rank].returncode, time.perf_counter()) for rank in ended]

    def kill(self) -> None:
        """End every rank at once."""
        for process in self._processes:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End every rank."""
        self.kill()


def spawned() -> None:
    """Be a rank in an interpreter of its own; what to be comes on standard input."""
    from ppkit.launch.rank import preload, run_rank

    rank, run_dir, address, key = sys.stdin.read().splitlines()
    control = Client(address, authkey=bytes.fromhex(key))
    control.send(int(rank))
    preload()
    run_rank(int(rank), Path(run_dir), control)


_starter: ForkStarter | SpawnStarter | None = None
_lock = threading.Lock()


def starter() -> ForkStarter | SpawnStarter:
    """Return this process's starter, which begins to preload behind its back when it is new."""
    global _starter
    with _lock:
        if _starter is None or not _starter.is_usable():
            _starter = ForkStarter() if hasattr(os, "fork") else SpawnStarter()
        return _starter
