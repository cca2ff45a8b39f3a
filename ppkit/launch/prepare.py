"""Looks at the arguments of a launch, and conducts the run that is made of them."""

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
from ppkit.launch.devices import Placement, usable_cores
from ppkit.launch.output import labelled
from ppkit.launch.packing import WARN_BYTES, pack_call
from ppkit.launch.rank import CALL_FILE, RANK_MARK, Plan
from ppkit.launch.run import Run, merge
from ppkit.launch.starter import Team
from ppkit.launch.watch import Watcher
from ppkit.timeline import Timeline
from ppkit.values import real, whole

one_at_a_time = threading.RLock()  # whoever holds it may talk to the starter
_MOST_THREADS = 1024


def make_plan(
    placement: Placement,
    n_ranks: int,
    sources: dict[str, list[str]],
    store: Path,
    *,
    emulate: Emulation | None,
    observe: bool,
    threads: int | None,
    seed: int,
    returns: bool,
    kept: bool = False,
) -> Plan:
    """Return what every rank is told; arguments as in `ppkit.launch`."""
    return Plan(
        n_ranks=n_ranks,
        backend=placement.backend,
        devices=placement.gpus,
        threads=int(threads) if threads else (1 if emulate else max(1, usable_cores() // n_ranks)),
        seed=int(seed),
        returns=returns,
        observe=observe,
        emulation=emulate,
        environment=dict(os.environ),
        directory=_directory(),
        path=tuple(sys.path),
        sources=sources,
        store=str(store),
        kept=kept,
    )


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise LaunchError(
            "the folder in which this notebook or program runs has been deleted; go to another one: os.chdir(folder)"
        ) from None


def write_run(run_dir: Path, plan: Plan, call: bytes) -> None:
    """Write down what the ranks will read."""
    with (run_dir / CALL_FILE).open("wb") as file:
        pickle.dump(plan, file)
        file.write(call)


def conduct(
    team: Team,
    board: Board,
    plan: Plan,
    placement: Placement,
    run_dir: Path,
    *,
    name: str,
    begun: float,
    timeout: float | None,
    show: bool,
) -> Run:
    """Watch a team that has been told of its run until that is over; unless it is to be kept, the team is gone then.

    Raises:
        RankError: as `ppkit.launch` does; the team is gone then.
    """
    watcher = Watcher(team, team.controls, run_dir, board, timeout)
    kept = False
    try:
        watcher.run()
        seconds = time.perf_counter() - begun
        kept = plan.kept
        if not kept:
            watcher.sign_off()
    except RankError as error:
        error.timeline = _timeline(watcher, plan, name)
        error.output = watcher.output()
        error.warnings = watcher.warnings()
        raise
    finally:
        if not kept:
            watcher.end()
        board.close()
        output, warned = watcher.output(), watcher.warnings()
        if show:
            print(labelled(watcher.shown()), end="", flush=True)
    results = tuple(pickle.loads(log.result) for log in watcher.logs if log.result is not None)
    timeline = _timeline(watcher, plan, name)
    return Run(results, output, timeline, seconds, plan.n_ranks, placement.device, placement.backend, warned)


def _timeline(watcher: Watcher, plan: Plan, name: str) -> Timeline:
    rows = {rank: log.rows for rank, log in enumerate(watcher.logs)}
    return merge(rows, plan.n_ranks, name, plan.emulation)


def name_of(fn: Callable[..., Any]) -> str:
    """Return what a run of `fn` is called."""
    return getattr(fn, "__name__", type(fn).__name__)


def pack_checked(fn: Callable[..., Any], args: tuple[Any, ...], n_ranks: int) -> tuple[bytes, dict[str, list[str]]]:
    """Pack a call for the ranks, with a warning where it is large."""
    call, sources = pack_call(fn, args)
    nbytes = len(call) * n_ranks
    if nbytes > WARN_BYTES:
        warnings.warn(
            f"the function and all it uses make {nbytes / 1e6:.0f} MB for {n_ranks} ranks; a large global variable "
            "travels to each of them: create it inside the function, or make it smaller",
            stacklevel=3,
        )
    return call, sources


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
        call = ", ".join([name, *signature.parameters, "n_ranks=4"])
        raise LaunchError(
            f"{name}{signature} cannot be called with the {len(args)} argument{'s' * (len(args) != 1)} given: {error}. "
            f"Arguments follow the function, as in launch({call}).",
            values={"args": args},
        ) from None


def check_call(fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Refuse what cannot be called, or not from here."""
    if RANK_MARK in os.environ:
        raise LaunchError("launch was called on a rank; ranks cannot start ranks. Call it in the notebook.")
    if not callable(fn):
        raise LaunchError(f"launch(fn, *args) takes a function to call on every rank; got {fn!r}", values={"fn": fn})
    _check_arguments(fn, args)


def check_options(timeout: object, threads: object, seed: object = 0) -> None:
    """Refuse a time limit, a number of threads or a seed that cannot be."""
    number = whole(seed)
    if number is None or not -(2**63) <= number < 2**63:
        raise LaunchError(f"seed={seed!r}: a whole number of at most 63 bits, such as 0", values={"seed": seed})
    if timeout is not None and not 0 < real(timeout) < math.inf:
        raise LaunchError(f"timeout={timeout!r}: a number of seconds above 0, or None", values={"timeout": timeout})
    if threads is not None and not 1 <= (whole(threads) or 0) <= _MOST_THREADS:
        most = f"a whole number from 1 to {_MOST_THREADS}"
        raise LaunchError(f"threads={threads!r}: {most}, or None", values={"threads": threads})


def check_emulation(emulate: object, n_ranks: int) -> None:
    """Refuse what is no emulation of so many ranks."""
    if emulate is not None:
        if not isinstance(emulate, Emulation):
            raise LaunchError(f"emulate={emulate!r}: a ppkit.Emulation, or None", values={"emulate": emulate})
        emulate.check_stages(n_ranks)
