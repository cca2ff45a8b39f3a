"""The fork server: a process that has imported torch once and forks ranks whenever the notebook asks."""

from __future__ import annotations

import gc
import os
import pickle
import select
import shutil
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# The whole exchange. Notebook -> server: ("fork", run_dir) with one descriptor a rank, or ("kill",).
# Server -> notebook: ("forked", run_dir), ("exited", run_dir, rank, status, when) and ("failed", traceback).
HEADER = struct.Struct("<I")
MAX_RANKS = 200  # Linux passes at most 253 descriptors in one message


def send_with_fds(sock: socket.socket, message: object, fds: list[int]) -> None:
    """Send `message` as one pickle, the descriptors `fds` with it."""
    body = pickle.dumps(message)
    header = HEADER.pack(len(body))
    if fds:
        socket.send_fds(sock, [header], fds)
    else:
        sock.sendall(header)
    sock.sendall(body)


def receive_with_fds(sock: socket.socket) -> tuple[Any, list[int]]:
    """Return the next message and the descriptors that came with it; `EOFError` when the other end is closed."""
    header, fds, _flags, _address = socket.recv_fds(sock, HEADER.size, MAX_RANKS)
    if len(header) < HEADER.size:
        raise EOFError
    (size,) = HEADER.unpack(header)
    body = b""
    while len(body) < size:
        chunk = sock.recv(size - len(body))
        if not chunk:
            raise EOFError
        body += chunk
    return pickle.loads(body), list(fds)


class ForkServer:
    """Forks ranks, waits for their ends, and ends them all when the notebook is gone.

    Args:
        sock: this end of the socket pair that only the notebook's process holds the other end of.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ranks: dict[int, tuple[str, int]] = {}  # process id -> run and rank
        self._run_dir: Path | None = None  # of the last run
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self, run_rank: Callable[[int, Path, Connection], None]) -> None:
        """Answer the notebook until it closes its end; `run_rank(rank, run_dir, control)` is a rank's life."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # needs a handler for the wake-up byte to be written
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            while True:
                sources: list[Any] = [self._sock, self._wake_read]
                readable, _, _ = select.select(sources, [], [])
                if self._wake_read in readable:
                    self._reap()
                if self._sock in readable:
                    message, fds = receive_with_fds(self._sock)
                    if message[0] == "fork":
                        self._fork(Path(message[1]), fds, run_rank)
                    else:
                        self._kill()
        except (EOFError, ConnectionError):
            self._kill()  # the notebook has ended, however it ended
            if self._run_dir is not None:
                shutil.rmtree(self._run_dir, ignore_errors=True)

    def _fork(self, run_dir: Path, fds: list[int], run_rank: Callable[[int, Path, Connection], None]) -> None:
        self._run_dir = run_dir
        for rank, fd in enumerate(fds):
            pid = os.fork()
            if pid == 0:
                try:
                    self._become_rank(rank, fd, fds)
                    run_rank(rank, run_dir, Connection(fd))
                except BaseException:
                    traceback.print_exc()  # into the rank's output, which its error quotes
                os._exit(1)  # never back into the server's loop
            self._ranks[pid] = (str(run_dir), rank)
        for fd in fds:
            os.close(fd)
        self._tell(("forked", str(run_dir)))

    def _become_rank(self, rank: int, own_fd: int, fds: list[int]) -> None:
        """Let go of all that belongs to the server; a descriptor kept here would hide another rank's end."""
        os.setsid()  # a group of its own: whatever the rank starts ends with it
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in [self._sock.detach(), self._wake_read, self._wake_write, *fds]:
            if fd != own_fd:
                os.close(fd)

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        while self._ranks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            run_dir, rank = self._ranks.pop(pid)
            _kill_group(pid)  # what the rank started and left behind
            self._tell(("exited", run_dir, rank, os.waitstatus_to_exitcode(status), time.perf_counter()))

    def _kill(self) -> None:
        for pid in self._ranks:
            _kill_group(pid)

    def _tell(self, message: object) -> None:
        with suppress(BrokenPipeError):
            send_with_fds(self._sock, message, [])


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def main(fd: int) -> None:
    """Serve the notebook at the other end of descriptor `fd`; the process ends with it."""
    sock = socket.socket(fileno=fd)
    try:
        from ppkit.launch.rank import preload, run_rank

        preload()
    except BaseException:
        send_with_fds(sock, ("failed", traceback.format_exc()), [])
        sys.exit(1)
    gc.collect()
    gc.freeze()  # a collection in a rank would otherwise copy every page that the fork shares
    ForkServer(sock).serve(run_rank)
