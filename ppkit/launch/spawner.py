"""Starts an interpreter for each rank, where a system has no fork: on Windows. Each imports torch anew, for seconds."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

from ppkit.launch.starter import Exit, remove_folder


class SpawnTeam:
    """Ranks that are interpreters of their own.

    Args:
        processes: of each rank.
        first: number of the first of them.
        controls: control channel of each rank.
    """

    def __init__(self, processes: list[subprocess.Popen[bytes]], first: int, controls: list[Connection]) -> None:
        self._processes = dict(enumerate(processes, first))
        self._reported: set[int] = set()
        self.controls = controls

    def wait(self, controls: list[Any], seconds: float) -> list[Any]:
        """Return which of `controls` have something; wait for the first, so many seconds at most."""
        return wait(controls, seconds)

    def watched(self) -> Sequence[Any]:
        """Return what to wait on besides the control channels."""
        return []

    def exits(self) -> list[Exit]:
        """Return the ends of ranks since the last call."""
        ended = [r for r, p in self._processes.items() if p.poll() is not None and r not in self._reported]
        self._reported.update(ended)
        return [Exit(rank, self._processes[rank].returncode, time.perf_counter()) for rank in ended]

    def kill(self) -> None:
        """End every rank at once."""
        for process in self._processes.values():
            process.kill()
            process.wait()


class SpawnStarter:
    """Starts an interpreter for each rank."""

    def is_usable(self) -> bool:
        """Tell whether it can start ranks: always."""
        return True

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Make a folder for a run, and remove it."""
        path = Path(tempfile.mkdtemp(prefix=f"ppkit-{os.getpid()}-"))
        try:
            yield path
        finally:
            remove_folder(path)

    def start(self, run_dir: Path, n_ranks: int, first: int = 0) -> SpawnTeam:
        """Start all ranks of a run, or those from number `first` on."""
        key = secrets.token_bytes(32)
        code = f"import sys; sys.path[:] = {sys.path!r}; from ppkit.launch.spawner import spawned; spawned()"
        with Listener(authkey=key) as listener:  # a named pipe on Windows, a socket file elsewhere
            processes = []
            for rank in range(first, first + n_ranks):
                process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
                hello = f"{rank}\n{run_dir}\n{listener.address}\n{key.hex()}\n"
                assert process.stdin is not None  # PIPE above; for the type checker
                with process.stdin:
                    process.stdin.write(hello.encode())
                processes.append(process)
            connections: dict[int, Connection] = {}
            for _ in range(n_ranks):
                connection = listener.accept()
                connections[connection.recv()] = connection
        return SpawnTeam(processes, first, [connections[rank] for rank in sorted(connections)])


def spawned() -> None:
    """Be a rank in an interpreter of its own; what to be comes on standard input."""
    from ppkit.launch.preload import preload
    from ppkit.launch.rank import run_rank

    rank, run_dir, address, key = sys.stdin.read().splitlines()
    control = Client(address, authkey=bytes.fromhex(key))
    control.send(int(rank))
    preload()
    run_rank(int(rank), Path(run_dir), control)
