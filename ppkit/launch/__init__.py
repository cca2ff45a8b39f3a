"""Starts ranks from a notebook cell, watches them, and returns what they computed, printed and did."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ppkit.emulate import Emulation
from ppkit.launch.board import Board
from ppkit.launch.devices import check_n_ranks, place
from ppkit.launch.pool import Ranks
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
from ppkit.launch.starter import starter

__all__ = ["Ranks", "Run", "launch"]


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
    cluster: Any = None,
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
        timeout: seconds after which the run is ended with a `RankError`. Without it too, a deadlock ends after 1.5
            seconds in which no rank moves.
        emulate: durations of an emulated device.
        observe: record the timeline. Without it nothing of torch is wrapped, and deadlocks are not noticed.
        threads: torch's threads in each rank; by default the machine's cores divided by the ranks, and one where
            devices are emulated, since threads that wait for work would take the time of others.
        seed: of `torch` and `random`, the same on every rank.
        show: print what the ranks printed, each line under its rank's name.
        returns: send the returned values back; without it they may be anything, and `.results` holds None.
        cluster: an `ipyparallel.Client`, or a view of some of its engines: each of the first `n_ranks` engines starts
            one rank, as a new process beside it, over gloo on the CPU. Their Python, ppkit and torch must be there,
            and the ranks must reach each other on any port. On engines of other machines the function finds their
            environment and folders. Errors, a time limit, an interrupt and the deadlock doctor work as they do here,
            but a rank in C code that holds Python's lock is not looked into; and between machines calls that don't
            agree in shape or kind get gloo's words instead of an explanation, and `emulate` is refused. Times of
            several machines are put on one clock, right to some 0.1 ms in a local network.

    Returns:
        A `Run` with `.results`, `.timeline` and `.output`.

    Raises:
        LaunchError: arguments that no run can be made of; nothing was started.
        RankError: a rank raised, exited or crashed, or the time was over.
        DeadlockError: every rank waits for another.
    """
    check_call(fn, args)
    engines = None
    if cluster is None:
        n_ranks = check_n_ranks(n_ranks)
    else:
        from ppkit.launch.cluster import Engines

        engines = Engines(cluster, n_ranks, device, emulate, threads)
    check_options(timeout, threads, seed)
    check_emulation(emulate, n_ranks)
    placement = place(device, n_ranks) if engines is None else engines.placement
    call, sources = pack_checked(fn, args, n_ranks)
    if placement.note and show:
        print(placement.note)
    with one_at_a_time:
        ranks = engines or starter()
        with ranks.folder() as run_dir:
            begun = time.perf_counter()
            plan = make_plan(
                placement, n_ranks, sources, run_dir / "store",
                emulate=emulate, observe=observe, threads=threads, seed=seed, returns=returns,
            )  # fmt: skip
            write_run(run_dir, plan, call)
            board = Board(run_dir / "board", n_ranks)
            team = ranks.start(run_dir, n_ranks)
            return conduct(
                team, board, plan, placement, run_dir, name=name_of(fn), begun=begun, timeout=timeout, show=show
            )
