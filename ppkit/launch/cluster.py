"""Ranks on the engines of an ipyparallel cluster: started through it, and watched as local ones are."""

from __future__ import annotations

import concurrent.futures
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ppkit
from ppkit.emulate import Emulation
from ppkit.errors import LaunchError
from ppkit.launch.board import Board
from ppkit.launch.devices import DEVICES, Placement
from ppkit.launch.rank import Plan, read_run
from ppkit.launch.remote import EngineTeam, Remote
from ppkit.launch.seat import look
from ppkit.launch.starter import remove_folder
from ppkit.values import whole

_SEAT = "__import__('ppkit.launch.seat', fromlist=['seat'])"
_ANSWER = 20.0  # seconds in which an engine that is free answers
_FAREWELL = 5.0  # seconds in which engines remove what a run has left


class Engines:
    """Starts ranks on engines, as `Starter` describes; one engine is one rank.

    Each engine starts its rank as a process of its own, so that a rank which crashes, hangs or is interrupted can be
    ended and leaves the engine as it was.

    Args:
        cluster: an `ipyparallel.Client`, or a `DirectView` of some of its engines.
        n_ranks: of the run; the first engines are taken.
        device: "auto" or "cpu".
        emulate: durations of an emulated device.
        threads: torch's threads in each rank; None: the engine's cores divided by the ranks of its machine.

    Raises:
        LaunchError: engines that are too few, busy, gone, or without what a rank needs.
    """

    def __init__(self, cluster: Any, n_ranks: int, device: str, emulate: Emulation | None, threads: int | None) -> None:
        client, targets = _engines_of(cluster)
        if whole(n_ranks) not in range(1, len(targets) + 1):
            raise LaunchError(
                f"n_ranks={n_ranks!r}, and the cluster has {len(targets)} engine{'s' * (len(targets) != 1)}: each is "
                "one rank at most. Take fewer ranks, or start more engines.",
                values={"n_ranks": n_ranks, "engines": targets},
            )
        if device not in DEVICES or device == "cuda":
            raise LaunchError(
                f"device={device!r}: on a cluster ranks compute on the CPU, over gloo; use 'cpu' or 'auto'",
                values={"device": device},
            )
        self.placement = Placement("cpu", "gloo")
        self._client = client
        self._targets = targets[:n_ranks]
        self._threads = threads
        self._run = secrets.token_hex(8)
        self._called: list[Any] = []
        asked = time.perf_counter()
        self._found = self._each("look", [()] * n_ranks)
        asked = (asked + time.perf_counter()) / 2
        self._ahead = [found["clock"] - asked for found in self._found]
        for target, found in zip(self._targets, self._found, strict=True):
            _check(f"engine {target} on {found['name']}", found)
        self._here = all(found["host"] == look()["host"] for found in self._found)
        if emulate is not None and not self._here:
            raise LaunchError(
                "emulate= needs all engines on the notebook's machine: an emulated message arrives by the clock of "
                f"both its ends. These are on {', '.join(sorted({found['name'] for found in self._found}))}."
            )

    def is_usable(self) -> bool:
        """Tell whether it can start ranks: for one run."""
        return True

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Make a folder for the run, and remove it with what the engines hold of the run."""
        path = Path(tempfile.mkdtemp(prefix="ppkit-"))
        try:
            yield path
        finally:
            leaving = []
            for rank in range(len(self._targets)):
                with suppress(Exception):  # an engine that is gone has nothing left
                    leaving.append(self.call(rank, "leave", self._run))
            concurrent.futures.wait(leaving, _FAREWELL)
            self._forget(self._called)
            remove_folder(path)

    def start(self, run_dir: Path, n_ranks: int) -> EngineTeam:
        """Start all ranks of the run."""
        plan, call = read_run(run_dir)
        shared = replace(plan, board=str(run_dir / "board"))
        told = [(shared, "")] * n_ranks if self._here else self._tell_of_machines(plan)
        self._each("begin", [(self._run, rank, *one, call) for rank, one in enumerate(told)], patience=None)
        ahead = [0.0] * n_ranks if self._here else self._ahead
        remotes = [
            Remote(partial(self.call, rank, "ask", self._run), self.answer, (ahead[rank], ahead[0]))
            for rank in range(n_ranks)
        ]
        return EngineTeam(remotes, run_dir, None if self._here else Board(run_dir / "board", n_ranks))

    def _tell_of_machines(self, plan: Plan) -> list[tuple[Plan, str]]:
        """Return for each rank on one of several machines where all meet, and by which interface it goes there."""
        n_ranks = plan.n_ranks
        ((addresses, port),) = self._each("open_store", [(self._run, n_ranks)], patience=None)
        routes = self._each("routes", [(addresses, port)] * n_ranks)
        address = next((one for one in addresses if all(one in found for found in routes)), None)
        if address is None:
            lost = [t for t, found in zip(self._targets, routes, strict=True) if not found] or self._targets
            raise LaunchError(
                f"engine{'s' * (len(lost) > 1)} {', '.join(map(str, lost))} cannot reach engine {self._targets[0]} on "
                f"{self._found[0]['name']} at {' or '.join(addresses) or 'any address'}, port {port}; ranks need "
                "connections to each other on any port"
            )
        hosts = [found["host"] for found in self._found]
        return [
            (
                replace(
                    plan,
                    store=f"tcp://{address}:{port}",
                    threads=self._threads or max(1, self._found[rank]["cores"] // hosts.count(host)),
                    local=(hosts[:rank].count(host), hosts.count(host)),
                ),
                routes[rank][address],
            )
            for rank, host in enumerate(hosts)
        ]

    # Calls of engines

    def call(self, rank: int, function: str, *args: Any) -> Any:
        """Call a function of `ppkit.launch.seat` on a rank's engine, by name: no code travels to another Python."""
        view = self._client[self._targets[rank]]
        reply = view.apply_async(eval, f"{_SEAT}.{function}(*args)", {"args": args})
        self._called.append(reply)
        return reply

    def answer(self, reply: Any) -> Any:
        """Return what an engine has answered, and let the client forget it."""
        self._called.remove(reply)
        try:
            return reply.get(0)
        finally:
            self._forget([reply])

    def _forget(self, replies: Sequence[Any]) -> None:
        with suppress(Exception):  # one that never came is no loss
            self._client.purge_local_results([reply for reply in replies if reply.done()])

    def _each(self, function: str, args: Sequence[tuple[Any, ...]], patience: float | None = _ANSWER) -> list[Any]:
        """Call a function on the engine of each rank, with its arguments; return the answers."""
        try:
            replies = [self.call(rank, function, *own) for rank, own in enumerate(args)]
        except Exception as error:
            raise LaunchError(f"the cluster's engines {self._targets} cannot be asked: {error}") from None
        concurrent.futures.wait(replies, patience, concurrent.futures.FIRST_EXCEPTION)
        answers = []
        for target, reply in zip(self._targets, replies, strict=False):
            failed = reply.done() and reply.exception() is not None
            if not reply.done() and any(one.done() and one.exception() is not None for one in replies):
                continue  # another one tells more
            if not reply.done():
                raise LaunchError(
                    f"engine {target} has not answered for {patience:g} s: it is at work on something else, or gone; "
                    "the client's queue_status() tells"
                )
            if failed:
                raise LaunchError(_refusal(target, reply.exception())) from None
            answers.append(self.answer(reply))
        return answers


def _engines_of(cluster: Any) -> tuple[Any, list[int]]:
    """Return the client, and the numbers of the engines."""
    try:
        from ipyparallel import Client, DirectView
    except ImportError:
        raise LaunchError('cluster= needs ipyparallel: pip install "ppkit[cluster]"') from None
    if isinstance(cluster, Client):
        return cluster, sorted(cluster.ids)
    if isinstance(cluster, DirectView):
        targets = cluster.client.ids if cluster.targets == "all" else cluster.targets
        return cluster.client, [targets] if isinstance(targets, int) else list(targets)
    raise LaunchError(
        f"cluster={cluster!r}: an ipyparallel.Client, such as Cluster(n=4).start_and_connect_sync() returns, or a view "
        "of some of its engines",
        values={"cluster": cluster},
    )


def _check(engine: str, found: dict[str, Any]) -> None:
    """Refuse an engine that cannot do what this notebook's functions need."""
    ours = look()
    if found["python"].split(".")[:2] != ours["python"].split(".")[:2]:
        raise LaunchError(
            f"{engine} runs Python {found['python']}, and this notebook {ours['python']}: a function that is defined "
            "in a cell can only travel to the same Python, 3.x for 3.x",
            values={"engine": found["python"], "notebook": ours["python"]},
        )
    if found["ppkit"] != ours["ppkit"]:
        raise LaunchError(f"{engine} has ppkit {found['ppkit']}, and this notebook {ours['ppkit']}; install the same")
    if not found["torch"]:
        raise LaunchError(f"{engine} has no torch; install it in the environment that the engines run in")


def _refusal(target: int, error: Any) -> str:
    """Say why an engine could not do what it was asked."""
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    if name == "EngineError":
        return f"engine {target} has died: {text}"
    if name in ("ImportError", "ModuleNotFoundError", "SyntaxError"):
        return (
            f"engine {target} cannot import ppkit ({name}: {text}); install ppkit {ppkit.__version__} in the "
            "environment that the engines run in"
        )
    return f"engine {target}: {text}" if name == "LaunchError" else f"engine {target} raised {name}: {text}"
