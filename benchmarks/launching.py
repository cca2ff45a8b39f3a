"""Starting ranks: against `torch.multiprocessing.spawn`, and what a rank imports."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch.multiprocessing as mp

from benchmarks.result import Result
from benchmarks.steps import all_reduce, all_reduce_spawned, pipeline
from ppkit.builders import gpipe
from ppkit.launch import Ranks, launch

N_RANKS = 4
PAUSE = 0.2  # seconds between two launches, less than between two cells


def against_spawn() -> Iterator[Result]:
    """A warm launch of four ranks that all-reduce, against spawning the same, in turn."""
    launch(all_reduce, n_ranks=N_RANKS)
    paused, at_once, theirs = [], [], []
    for _ in range(3):
        theirs.append(_seconds_of_spawn())
        launch(all_reduce, n_ranks=N_RANKS)
        paused += [_seconds_of_launch(PAUSE) for _ in range(7)]
        at_once += [_seconds_of_launch(0.0) for _ in range(7)]
    spawn = median(theirs)
    for how, ours in (("", median(paused)), (", each right after the last", median(at_once))):
        what = f"warm 4-rank launch{how} ({ours:.3f} s) against torch.multiprocessing.spawn ({spawn:.2f} s)"
        yield Result(what, f"{spawn / ours:.0f} times faster", "50 times", spawn / ours >= 50)


def _seconds_of_launch(pause: float) -> float:
    time.sleep(pause)
    begun = time.perf_counter()
    launch(all_reduce, n_ranks=N_RANKS)
    return time.perf_counter() - begun


def round_trip() -> Iterator[Result]:
    """A run of the same on ranks that are kept, against a warm launch, in turn."""
    kept, launched = [], []
    with Ranks(N_RANKS) as ranks:
        ranks.run(all_reduce)
        launch(all_reduce, n_ranks=N_RANKS)
        for _ in range(20):
            time.sleep(PAUSE)
            begun = time.perf_counter()
            ranks.run(all_reduce)
            kept.append(time.perf_counter() - begun)
            launched.append(_seconds_of_launch(PAUSE))
    what = f"4-rank run on Ranks ({1e3 * median(kept):.1f} ms) against a warm launch ({1e3 * median(launched):.1f} ms)"
    ratio = median(launched) / median(kept)
    yield Result(what, f"{ratio:.1f} times faster", "faster", ratio > 1)


def _seconds_of_spawn() -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        mp.spawn(all_reduce_spawned, (N_RANKS, str(Path(folder, "store"))), nprocs=N_RANKS)
        return time.perf_counter() - begun


def imports() -> Iterator[Result]:
    """Modules that a rank imports in a pipelined training step."""

    def step() -> list[str]:
        before = set(sys.modules)
        pipeline(gpipe(2, 2), 1)
        return sorted(set(sys.modules) - before)

    names = sorted(set().union(*launch(step, n_ranks=2).results))
    yield Result("modules imported in a rank after the fork", str(len(names)), "0", not names, ", ".join(names))
