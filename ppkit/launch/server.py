"""The fork server: a process that has imported torch once and forks ranks whenever the notebook asks."""

from __future__ import annotations

import gc
import glob
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

# The whole exchange. Notebook -> server: ("fork", run_dir, first) with one descriptor for each rank from number `first`
# on, or ("kill", run_dir).
# Server -> notebook: ("ready",) once, then ("forked", run_dir), ("exited", run_dir, rank, status, when) and
# ("failed", traceback). Server -> spare: (rank, run_dir) with one descriptor.
HEADER = struct.Struct("<I")
MAX_RANKS = 200  # Linux passes at most 253 descriptors in one message
MAX_SPARES = 8
_SPARE_PATIENCE = 0.01  # seconds before a spare rehearses: a notebook may launch again at once
_SPARE_SECONDS = 600.0  # after which spares that nobody needed give their memory back
SERVER_NAME, SPARE_NAME, RANK_NAME = "ppkit server", "ppkit spare", "ppkit rank"  # as `ps` shows them


class Life(NamedTuple):
    """What a forked process does.

    Attributes:
        rehearse: does in a spare, before there is a run, what every rank does first; it may be left after each step.
        run_rank: is a rank; takes its number, the folder of the run, and its control channel.
    """

    rehearse: Callable[[], Iterator[None]]
    run_rank: Callable[[int, Path, Connection], None]


class Spare(NamedTuple):
    """A process that waits to become a rank of the next run.

    Attributes:
        pid: its process.
        sock: the server's end of the socket pair by which it is told; its end-of-file ends the spare.
    """

    pid: int
    sock: socket.socket


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

    While no rank is alive it keeps spares, as many as the last run had ranks: forked, and rehearsed, so that the
    next run finds the pages that a rank writes to already its own. A spare serves one run, as every rank does.

    Args:
        sock: this end of the socket pair that only the notebook's process holds the other end of.
        folders: how the paths of all folders of runs begin.
        life: what a forked process does.
    """

    def __init__(self, sock: socket.socket, folders: str, life: Life) -> None:
        self._sock = sock
        self._folders = folders
        self._life = life
        self._ranks: dict[int, tuple[str, int]] = {}  # process id -> run and rank
        self._spares: list[Spare] = []
        self._missing = 0  # spares to fork when there is nothing else to do
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> None:
        """Answer the notebook until it closes its end."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # needs a handler for the wake-up byte to be written
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            self._tell(("ready",))
            while True:
                self._serve_once()
        except (EOFError, ConnectionError):
            self._end()  # the notebook has ended, however it ended

    def _serve_once(self) -> None:
        renew = self._missing > 0 and not self._ranks
        sources: list[Any] = [self._sock, self._wake_read]
        readable, _, _ = select.select(sources, [], [], 0 if renew else _SPARE_SECONDS)
        if self._wake_read in readable:
            self._reap()
        if self._sock in readable:
            message, fds = receive_with_fds(self._sock)
            if message[0] == "fork":
                self._start(message[1], message[2], fds)
            else:
                self._kill(message[1])
        elif not readable and renew:
            self._missing -= 1
            self._fork_spare()
        elif not readable:
            while self._spares:
                self._dismiss(self._spares[0])

    # Starting

    def _start(self, run_dir: str, first: int, fds: list[int]) -> None:
        for rank, fd in enumerate(fds, first):
            pid = self._assign(rank, run_dir, fd) or self._fork_rank(rank, run_dir, fd, fds)
            self._ranks[pid] = (run_dir, rank)
        for fd in fds:
            os.close(fd)
        self._missing = min(len(fds), MAX_SPARES) - len(self._spares)
        self._tell(("forked", run_dir))

    def _assign(self, rank: int, run_dir: str, fd: int) -> int | None:
        """Make a spare the rank; return its process, or None if there is none."""
        while self._spares:
            pid, sock = self._spares.pop(0)
            with sock:
                try:
                    send_with_fds(sock, (rank, run_dir), [fd])
                except OSError:
                    continue  # it has been ended, and will be reaped
            return pid
        return None

    def _fork_rank(self, rank: int, run_dir: str, control: int, fds: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                self._let_go([fd for fd in fds if fd != control])
                name_process(f"{RANK_NAME} {rank}")
                self._life.run_rank(rank, Path(run_dir), Connection(control))
            except BaseException:
                traceback.print_exc()  # into the rank's output, which its error quotes
            os._exit(1)  # never back into the server's loop
        return pid

    def _fork_spare(self) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                self._let_go([ours.detach()])
                name_process(SPARE_NAME)
                _rehearse_while_idle(self._life, theirs)
                (rank, run_dir), (fd,) = receive_with_fds(theirs)
                theirs.close()
                name_process(f"{RANK_NAME} {rank}")
                self._life.run_rank(rank, Path(run_dir), Connection(fd))
            except EOFError:
                os._exit(0)  # the server has ended, or needs it no more
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        theirs.close()
        self._spares.append(Spare(pid, ours))

    def _let_go(self, fds: list[int]) -> None:
        """Let go of all that belongs to the server; a descriptor kept here would hide another process's end."""
        os.setsid()  # a group of its own: whatever the rank starts ends with it
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sockets = [self._sock, *(spare.sock for spare in self._spares)]
        for fd in [*(sock.detach() for sock in sockets), self._wake_read, self._wake_write, *fds]:
            os.close(fd)

    # Ending

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        while self._ranks or self._spares:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._forget(pid, status)

    def _forget(self, pid: int, status: int) -> None:
        for spare in self._spares:
            if spare.pid == pid:
                spare.sock.close()
                self._spares.remove(spare)
                return
        if pid not in self._ranks:
            return  # a spare whose end was noticed when it was needed
        run_dir, rank = self._ranks.pop(pid)
        _kill_group(pid)  # what the rank started and left behind
        self._tell(("exited", run_dir, rank, os.waitstatus_to_exitcode(status), time.perf_counter()))

    def _dismiss(self, spare: Spare) -> None:
        spare.sock.close()
        os.kill(spare.pid, signal.SIGKILL)
        os.waitpid(spare.pid, 0)
        self._spares.remove(spare)

    def _kill(self, run_dir: str | None = None) -> None:
        """End the ranks of a run, or of all."""
        for pid, (run, _) in self._ranks.items():
            if run_dir in (run, None):
                _kill_group(pid)
                os.kill(pid, signal.SIGKILL)  # it may have no group yet; its number is its own until it is reaped

    def _end(self) -> None:
        """Leave nothing behind: neither processes nor files."""
        self._kill()
        while self._spares:
            self._dismiss(self._spares[0])
        with suppress(ChildProcessError):
            while self._ranks:  # one that still wrote to its folder would bring it back
                self._ranks.pop(os.waitpid(-1, 0)[0], None)
        remove_folders(self._folders)

    def _tell(self, message: object) -> None:
        with suppress(BrokenPipeError):
            send_with_fds(self._sock, message, [])


def _rehearse_while_idle(life: Life, sock: socket.socket) -> None:
    """Rehearse, but not while a run is asking for ranks: what it needs of it, it does itself."""
    patience = _SPARE_PATIENCE
    for _ in life.rehearse():
        if select.select([sock], [], [], patience)[0]:
            return
        patience = 0.0


def remove_folders(prefix: str) -> None:
    """Remove the folders whose paths begin with `prefix`."""
    for folder in glob.glob(glob.escape(prefix) + "*"):
        shutil.rmtree(folder, ignore_errors=True)


def name_process(name: str) -> None:
    """Tell `ps`, `top` and whoever reads /proc what this process is; at most 15 characters."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _kill_group(pid: int) -> None:
    """End what a forked process has started, and itself if it is still there."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def die_with(lifeline: int) -> None:
    """End this process at once when the other end of a pipe is closed, even in the middle of an import.

    No thread could: loading torch's libraries holds Python's lock for seconds. The signal's default is the end.
    """
    import fcntl  # not on Windows, which has no fork server either

    if hasattr(os, "O_ASYNC"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            if os.read(lifeline, 1) == b"":
                os._exit(1)  # it was closed before


def main(fd: int, lifeline: int, folders: str) -> None:
    """Serve the notebook at the other end of descriptor `fd`; the process ends with it."""
    name_process(SERVER_NAME)
    die_with(lifeline)
    sock = socket.socket(fileno=fd)
    gc.disable()  # imports make many objects and drop few: looking through them takes a tenth of the time
    try:
        from ppkit.launch.preload import preload, rehearse
        from ppkit.launch.rank import run_rank

        preload()
    except BaseException:
        send_with_fds(sock, ("failed", traceback.format_exc()), [])
        sys.exit(1)
    gc.enable()
    gc.collect()
    gc.freeze()  # a collection in a rank would otherwise copy every page that the fork shares
    os.close(lifeline)  # from here on the socket's end is seen
    ForkServer(sock, folders, Life(rehearse, run_rank)).serve()
