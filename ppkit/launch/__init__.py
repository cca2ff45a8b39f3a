"""Starts ranks from a notebook cell, watches them, and returns what they computed, printed and did."""

from __future__ import annotations

import inspect
import math
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppkit.emulate import Emulation
from ppkit.errors import LaunchError, RankError
from ppkit.launch.board import Board
from ppkit.launch.devices import Placement, check_n_ranks, place, usable_cores
from ppkit.launch.output import labelled
from ppkit.launch.packing import WARN_BYTES, pack_call
from ppkit.launch.rank import RANK_MARK, Plan
from ppkit.launch.run import Run, merge
from ppkit.launch.starter import Starter, starter
from ppkit.launch.watch import Watcher
from ppkit.timeline import Timeline

__all__ = ["Run", "launch"]

_one_at_a_time = threading.RLock()


def launch(
    fn: Callable[..., Any],
    *args: Any,
    n_ranks: int = 2,
    device: str = "auto",
    timeout: float | None = None,
    emulate: Emulation | None = None,
    observe: bool = True,
    threads: int | None = None,
    seed: int = 0,
    show: bool = True,
    returns: bool = True,
) -> Run:
    """Call `fn(*args)` on `n_ranks` new processes with `torch.distributed` up, and return what they did.

    `fn` is plain PyTorch: it asks `torch.distributed` for its rank, and runs unchanged under torchrun, whose
    variables RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE are set. It may come from a cell. Ranks are fresh for
    each run: nothing is left over from the last one, and what they change is gone with them. GPU tensors come back
    on the CPU.

    Args:
        fn: called on every rank with `args`.
        *args: its arguments; they travel to every rank.
        n_ranks: number of processes, 1 to 200.
        device: "auto": GPUs over NCCL when there is one for every rank, else the CPU over gloo; "cpu"; "cuda", which
            shares GPUs over gloo when they are fewer than the ranks, and says so.
        timeout: seconds after which the run is ended with a `RankError`. Without it too, a deadlock ends after two
            seconds in which no rank moves.
        emulate: durations of an emulated device.
        observe: record the timeline. Without it nothing of torch is wrapped, and deadlocks are not noticed.
        threads: torch's threads in each rank; by default the machine's cores divided by the ranks, and one where
            devices are emulated, since threads that wait for work would take the time of others.
        seed: of `torch` and `random`, the same on every rank.
        show: print what the ranks printed, each line under its rank's name.
        returns: send the returned values back; without it they may be anything, and `.results` holds None.

    Returns:
        A `Run` with `.results`, `.timeline` and `.output`.

    Raises:
        LaunchError: arguments that no run can be made of; nothing was started.
        RankError: a rank raised, exited or crashed, or the time was over.
        DeadlockError: every rank waits for another.
    """
    n_ranks = _check(fn, args, n_ranks, timeout, emulate, threads)
    placement = place(device, n_ranks)
    call, sources = pack_call(fn, args)
    _warn_of_size(len(call) * n_ranks, n_ranks)
    plan = Plan(
        n_ranks=n_ranks,
        backend=placement.backend,
        devices=placement.gpus,
        threads=threads or (1 if emulate else max(1, usable_cores() // n_ranks)),
        seed=seed,
        returns=returns,
        observe=observe,
        emulation=emulate,
        environment=dict(os.environ),
        directory=os.getcwd(),
        path=tuple(sys.path),
        sources=sources,
    )
    if placement.note and show:
        print(placement.note)
    name = getattr(fn, "__name__", type(fn).__name__)
    with _one_at_a_time:
        ranks = starter()
        with ranks.folder() as folder:
            return _run(ranks, plan, call, folder, placement, name, timeout, show)


def _run(
    ranks: Starter,
    plan: Plan,
    call: bytes,
    run_dir: Path,
    placement: Placement,
    name: str,
    timeout: float | None,
    show: bool,
) -> Run:
    begun = time.perf_counter()
    (run_dir / "plan").write_bytes(pickle.dumps(plan))
    (run_dir / "call").write_bytes(call)
    board = Board(run_dir / "board", plan.n_ranks)
    team = ranks.start(run_dir, plan.n_ranks)
    watcher = Watcher(team, team.controls, run_dir, board, timeout)
    try:
        watcher.run()
        seconds = time.perf_counter() - begun
        watcher.sign_off()
    except RankError as error:
        error.timeline = _timeline(watcher, plan, name)
        error.output = watcher.output()
        raise
    finally:
        watcher.end()
        board.close()
        output = watcher.output()
        if show:
            print(labelled(output), end="", flush=True)
    results = tuple(pickle.loads(log.result) for log in watcher.logs if log.result is not None)
    return Run(
        results,
        output,
        _timeline(watcher, plan, name),
        seconds,
        plan.n_ranks,
        placement.device,
        placement.backend,
    )


def _timeline(watcher: Watcher, plan: Plan, name: str) -> Timeline:
    rows = {rank: log.rows for rank, log in enumerate(watcher.logs)}
    return merge(rows, plan.n_ranks, name, plan.emulation)


def _warn_of_size(nbytes: int, n_ranks: int) -> None:
    if nbytes > WARN_BYTES:
        warnings.warn(
            f"the function and all it uses make {nbytes / 1e6:.0f} MB for {n_ranks} ranks; a large global variable "
            "travels to each of them: create it inside the function, or make it smaller",
            stacklevel=3,
        )


def _check_arguments(fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Refuse a call that would fail alike on every rank."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        name = getattr(fn, "__name__", repr(fn))
        raise LaunchError(
            f"{name}{signature} cannot be called with the {len(args)} arguments given: {error}. They follow the "
            f"function, as in launch({name}, {', '.join(signature.parameters)}, n_ranks=4).",
            values={"args": args},
        ) from None


def _check(
    fn: Callable[..., Any], args: tuple[Any, ...], n_ranks: object, timeout: object, emulate: object, threads: object
) -> int:
    """Refuse arguments that no run can be made of."""
    if RANK_MARK in os.environ:
        raise LaunchError("launch was called on a rank; ranks cannot start ranks. Call it in the notebook.")
    if not callable(fn):
        raise LaunchError(f"launch(fn, *args) takes a function to call on every rank; got {fn!r}", values={"fn": fn})
    _check_arguments(fn, args)
    count = check_n_ranks(n_ranks)
    if timeout is not None and not (isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout > 0):
        raise LaunchError(f"timeout={timeout!r}: a number of seconds above 0, or None", values={"timeout": timeout})
    if threads is not None and not (isinstance(threads, int) and threads > 0):
        raise LaunchError(f"threads={threads!r}: a whole number above 0, or None", values={"threads": threads})
    if emulate is not None:
        if not isinstance(emulate, Emulation):
            raise LaunchError(f"emulate={emulate!r}: a ppkit.Emulation, or None", values={"emulate": emulate})
        emulate.check_stages(count)
    return count
