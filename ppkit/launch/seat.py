"""A rank's seat on an engine of an ipyparallel cluster: what the notebook calls there."""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ppkit
from ppkit.launch.board import Board, RankState
from ppkit.launch.devices import usable_cores
from ppkit.launch.prepare import write_run
from ppkit.launch.rank import Plan
from ppkit.launch.starter import starter

_LOOK = 0.2  # seconds for which an engine waits for news of its rank before it answers that there are none
_PATIENCE = 30.0  # seconds without a question after which an engine ends its rank: the notebook is gone
_REACH = 2.0  # seconds in which a connection to another machine is there


def look() -> dict[str, Any]:
    """Return what a launch must know of this engine; plain values, which another version of ppkit can read."""
    import importlib.util

    return {
        "python": platform.python_version(),
        "ppkit": ppkit.__version__,
        "torch": importlib.util.find_spec("torch") is not None,
        "host": host(),
        "name": platform.node(),
        "cores": usable_cores(),
        "clock": time.perf_counter(),
    }


def host() -> tuple[str, ...]:
    """Return what is the same for processes of one machine that see the same files, addresses and clock."""
    with suppress(OSError):  # Linux, where containers divide a machine
        kinds = ("mnt", "net", "time")
        spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds if os.path.exists(f"/proc/self/ns/{kind}")]
        return (platform.node(), Path("/proc/sys/kernel/random/boot_id").read_text().strip(), *spaces)
    return (platform.node(), f"{uuid.getnode():x}")


class News(NamedTuple):
    """What is new of a rank.

    Attributes:
        said: ("control", message), ("closed",) and ("exited", code, when), from the first that was not yet heard.
        output: what it has printed since.
        fault, remarks: what it wrote of a crash and of its calls, as far as it has.
        state, steps: what its board says.
    """

    said: list[tuple[Any, ...]]
    output: bytes
    fault: str
    remarks: str
    state: RankState
    steps: int


class _Seat:
    """A rank on this engine: its process, its folder, and what it has said."""

    def __init__(self, rank: int, plan: Plan, call: bytes) -> None:
        self._rank = rank
        self._starter = starter()
        self._context = self._starter.folder()
        self._folder = self._context.__enter__()
        write_run(self._folder, plan, call)
        self._board = Board(Path(plan.board or self._folder / "board"), plan.n_ranks)
        self._team = self._starter.start(self._folder, 1, first=rank)
        self._open = list(self._team.controls)
        self._said: list[tuple[Any, ...]] = []
        self._heard = 0
        self.asked = time.monotonic()

    def news(self, orders: Sequence[Any], n_heard: int, n_output: int) -> News:
        """Pass orders on, and return what is new; wait for it a little. What was not heard is told again."""
        del self._said[: n_heard - self._heard]
        self._heard = n_heard
        for order in orders:
            if order == "kill":
                self._team.kill()
                continue
            for control in self._open:
                with suppress(OSError):
                    control.send(order)
        if not self._said:
            self._listen()
        self.asked = time.monotonic()
        output = self._read("output", n_output)
        fault = self._read("fault").decode(errors="replace").partition("\n\n")[2]
        state, steps = self._board.state(self._rank), self._board.steps()[self._rank]
        return News(list(self._said), output, fault, self._read("remarks").decode(), state, steps)

    def _listen(self) -> None:
        for ready in self._team.wait(self._open, _LOOK):
            if ready in self._open:
                try:
                    self._said.append(("control", ready.recv()))
                except (EOFError, OSError):
                    self._open.remove(ready)
                    self._said.append(("closed",))
        self._said += [("exited", exit.code, exit.when) for exit in self._team.exits()]

    def _read(self, name: str, start: int = 0) -> bytes:
        with suppress(FileNotFoundError), (self._folder / f"{name}.{self._rank}").open("rb") as file:
            file.seek(start)
            return file.read()
        return b""

    def leave(self) -> None:
        """End the process, and remove its folder."""
        self._team.kill()
        for control in self._team.controls:
            control.close()
        self._context.__exit__(None, None, None)
        self._board.close()


class _Engine:
    """What an engine holds of the runs that it takes part in, by their keys."""

    seats: ClassVar[dict[str, _Seat]] = {}
    stores: ClassVar[dict[str, Any]] = {}
    lock = threading.RLock()


def begin(run: str, rank: int, plan: Plan, interface: str, call: bytes) -> None:
    """Start a rank, which reaches those on other machines by an interface."""
    if plan.local is not None:  # the notebook's machine is another one
        there = (entry for entry in plan.path if entry not in sys.path and os.path.isdir(entry))
        plan = replace(
            plan,
            environment={"GLOO_SOCKET_IFNAME": interface} | dict(os.environ),
            directory=plan.directory if os.path.isdir(plan.directory) else os.getcwd(),
            path=(*sys.path, *there),
        )
    with _Engine.lock:
        _Engine.seats[run] = _Seat(rank, plan, call)
    threading.Thread(target=_leave_when_forgotten, args=(run,), daemon=True).start()


def _leave_when_forgotten(run: str) -> None:
    while (seat := _Engine.seats.get(run)) is not None:
        if time.monotonic() - seat.asked > _PATIENCE:
            leave(run)
        time.sleep(1.0)


def ask(run: str, *question: Any) -> News:
    """Return what is new of a run's rank: see `_Seat.news`."""
    with _Engine.lock:
        if run not in _Engine.seats:
            raise LookupError(f"it heard nothing from the notebook for {_PATIENCE:g} s, and has ended its rank")
        return _Engine.seats[run].news(*question)


def leave(run: str) -> None:
    """End a run's rank, and forget it."""
    with _Engine.lock:
        _Engine.stores.pop(run, None)
        if (seat := _Engine.seats.pop(run, None)) is not None:
            seat.leave()


# Where the ranks of several machines meet


def open_store(run: str, n_ranks: int) -> tuple[list[str], int]:
    """Open the store by which the ranks of a run find each other; return this machine's addresses, and its port.

    It listens to whoever reaches the port while the run lasts, as torchrun's does: use clusters in networks you trust.
    """
    from torch._C import _distributed_c10d as c10d

    store = c10d.TCPStore("localhost", 0, n_ranks, is_master=True, wait_for_workers=False)
    _Engine.stores[run] = store
    return [address for address, _ in _interfaces()], store.port


def routes(addresses: Sequence[str], port: int) -> dict[str, str]:
    """Return the addresses that this engine reaches, each with the interface by which it does."""
    found = {}
    for address in addresses:
        with suppress(OSError), socket.create_connection((address, port), _REACH) as connection:
            ours = connection.getsockname()[0]
            found[address] = next(name for there, name in _interfaces() if there == ours)
    return found


def _interfaces() -> list[tuple[str, str]]:
    """Return this machine's addresses that others may reach, each with its interface."""
    import psutil  # as ipyparallel does

    every = [(one.address, name) for name, found in psutil.net_if_addrs().items() for one in found
             if one.family == socket.AF_INET]  # fmt: skip
    return [(address, name) for address, name in every if not address.startswith("127.")]
