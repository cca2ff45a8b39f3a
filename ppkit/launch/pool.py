"""`Ranks`: processes that are kept from run to run."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from ppkit.emulate import Emulation
from ppkit.errors import LaunchError
from ppkit.launch.board import Board
from ppkit.launch.devices import check_n_ranks, place
from ppkit.launch.kept import KeptTeam, abandon
from ppkit.launch.prepare import (
    check_call,
    check_emulation,
    check_options,
    conduct,
    make_plan,
    name_of,
    one_at_a_time,
    pack_checked,
    write_run,
)
from ppkit.launch.run import Run
from ppkit.observe.fields import NEVER_WAITED


class Ranks:
    """Ranks that are kept: each run is told to processes that are there, which takes milliseconds.

    `launch` starts new processes for every run; on GPUs a CUDA context and NCCL then cost seconds, which `Ranks`
    pays once. Between two runs the ranks put themselves back: seeds, memory, environment, torch's defaults, hooks and
    modes, classes of cells, modules from your folders. The process group is kept where every message of the run has
    been received and every call waited for, and made anew otherwise. After a run that failed, hung or was
    interrupted, and wherever something cannot be put back (a thread that still runs, say), the next run gets new
    processes. What other libraries keep inside themselves is not reset.

        with ppkit.Ranks(4) as ranks:
            run = ranks.run(step, 0.1)

    Args:
        n_ranks: number of processes, 1 to 200.
        device: as in `ppkit.launch`.
        timeout: of every run, unless that has its own; seconds, or None.
        observe: record timelines; without it nothing of torch is wrapped, and deadlocks are not noticed.
        threads: torch's threads in each rank, as in `ppkit.launch`.
        seed: set anew for each run.
        show: print what the ranks printed.

    Raises:
        LaunchError: arguments that no ranks can be made of; nothing was started.
    """

    def __init__(
        self,
        n_ranks: int = 2,
        device: str = "auto",
        timeout: float | None = None,
        *,
        observe: bool = True,
        threads: int | None = None,
        seed: int = 0,
        show: bool = True,
    ) -> None:
        self._n_ranks = check_n_ranks(n_ranks)
        check_options(timeout, threads, seed)
        self._placement = place(device, self._n_ranks)
        self._timeout = timeout
        self._observe = observe
        self._threads = threads
        self._seed = seed
        self._show = show
        self._busy = threading.Lock()
        self._closed = self._entered = False
        self._owner = os.getpid()
        self._kept: list[KeptTeam] = []  # one, or none before the first run and after a failure
        self._finalizer = weakref.finalize(self, abandon, self._kept)

    @property
    def n_ranks(self) -> int:
        """How many ranks there are."""
        return self._n_ranks

    def run(
        self,
        fn: Callable[..., Any],
        *args: Any,
        emulate: Emulation | None = None,
        timeout: float | None = None,
        returns: bool = True,
    ) -> Run:
        """Call `fn(*args)` on every rank, as `ppkit.launch` does.

        Args:
            fn: called on every rank with `args`.
            *args: its arguments.
            emulate: durations of an emulated device.
            timeout: seconds after which the run is ended; None: the time given to all runs.
            returns: send the returned values back.

        Returns:
            A `Run` with `.results`, `.timeline` and `.output`.

        Raises:
            LaunchError: arguments that no run can be made of; ranks that are closed, or at work.
            RankError: a rank raised, exited or crashed, or the time was over; the next run has new ranks.
            DeadlockError: every rank waits for another.
        """
        check_call(fn, args)
        check_options(timeout, None)
        check_emulation(emulate, self._n_ranks)
        self._check_usable()
        if not self._busy.acquire(blocking=False):
            raise LaunchError(
                "these ranks are at work for another run; a thread or a callback that runs at the same time needs "
                "`Ranks` of its own, or `ppkit.launch`"
            )
        try:
            call, sources = pack_checked(fn, args, self._n_ranks)
            if self._placement.note and self._show:
                print(self._placement.note)
            with one_at_a_time:
                return self._run(name_of(fn), call, sources, emulate, timeout or self._timeout, returns)
        finally:
            self._busy.release()

    def _run(
        self,
        name: str,
        call: bytes,
        sources: dict[str, list[str]],
        emulate: Emulation | None,
        timeout: float | None,
        returns: bool,
    ) -> Run:
        begun = time.perf_counter()
        try:
            kept = self._ready()
            run_dir = kept.run_dir
            plan = make_plan(
                self._placement, self._n_ranks, sources, kept.store,
                emulate=emulate, observe=self._observe, threads=self._threads, seed=self._seed, returns=returns,
                kept=True,
            )  # fmt: skip
            write_run(run_dir, plan, call)
            team = kept.begin()
            board = Board(run_dir / "board", self._n_ranks)  # while the ranks begin
            run = conduct(
                team, board, plan, self._placement, run_dir,
                name=name, begun=begun, timeout=timeout, show=self._show,
            )  # fmt: skip
            settled = self._observe and _is_settled(run)
            kept.renew(keep_group=settled)  # last: from here on the ranks want the cores
        except BaseException:
            self._end(at_once=True)
            raise
        return run

    def _ready(self) -> KeptTeam:
        """Return a team that is as new."""
        if self._kept and not self._kept[0].is_ready():
            self._end()
        if not self._kept:
            self._kept.append(KeptTeam(self._n_ranks))
        return self._kept[0]

    def _end(self, *, at_once: bool = False) -> None:
        while self._kept:
            self._kept.pop().end(at_once=at_once)

    def _check_usable(self) -> None:
        if self._closed:
            raise LaunchError("these ranks are closed; make new ones with ppkit.Ranks")
        if self._owner != os.getpid():
            raise LaunchError("these ranks belong to the process that made them, and this is a fork of it")

    def close(self) -> None:
        """End the ranks. Ranks that are closed can be closed again.

        Raises:
            LaunchError: if they are at work.
        """
        if not self._busy.acquire(blocking=False):
            raise LaunchError("these ranks are at work and cannot be closed; interrupt their run first")
        try:
            self._closed = True
            if self._owner == os.getpid():
                with one_at_a_time:
                    self._end()
        finally:
            self._busy.release()

    def __enter__(self) -> Ranks:
        self._check_usable()
        if self._entered:
            raise LaunchError("these ranks are in a `with` block already; use them there, or make others")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("ranks cannot travel to ranks")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "at work" if self._busy.locked() else "ready"
        return f"<{self._n_ranks} Ranks on {self._placement.device} over {self._placement.backend}, {state}>"


def _is_settled(run: Run) -> bool:
    """Tell whether every message of a run was received and every call waited for: none is left for the next run."""
    return not any(
        event.note == NEVER_WAITED or (event.kind == "SEND" and event.message is None) for event in run.timeline
    )
