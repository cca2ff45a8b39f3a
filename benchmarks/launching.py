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
from ppkit.launch import launch

N_RANKS = 4


def against_spawn() -> Iterator[Result]:
    """A warm launch of four ranks that all-reduce, against spawning the same, in turn."""
    launch(all_reduce, n_ranks=N_RANKS)
    ours, theirs = [], []
    for _ in range(3):
        theirs.append(_seconds_of_spawn())
        for _ in range(5):
            begun = time.perf_counter()
            launch(all_reduce, n_ranks=N_RANKS)
            ours.append(time.perf_counter() - begun)
    ratio = median(theirs) / median(ours)
    what = f"warm 4-rank launch ({median(ours):.3f} s) against torch.multiprocessing.spawn ({median(theirs):.2f} s)"
    yield Result(what, f"{ratio:.0f} times faster", "50 times", ratio >= 50)


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
