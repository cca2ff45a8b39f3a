"""Starting ranks: against what else starts them from a notebook, or in its place."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.launching import N_RANKS, PAUSE
from benchmarks.result import Result
from benchmarks.steps import all_reduce, all_reduce_spawned
from ppkit.launch import Ranks, launch

ROUNDS = 3
HANGS = 120  # seconds after which a peer is not waited for

# A notebook that has imported torch and computed nothing yet: where it has, notebook_launcher may hang.
NOTEBOOK = """
import json, sys, time
from accelerate import notebook_launcher
from benchmarks.steps import all_reduce_by_environment

seconds = []
for i in range(3):
    begun = time.perf_counter()
    notebook_launcher(all_reduce_by_environment, (), num_processes=int(sys.argv[1]), use_port=sys.argv[2 + i])
    seconds.append(time.perf_counter() - begun)
print(json.dumps(seconds[1:]))
"""
SCRIPT = """
from benchmarks.steps import all_reduce_by_environment

all_reduce_by_environment()
"""


def against_peers() -> Iterator[Result]:
    """A warm launch of four ranks that all-reduce, and a run on kept ones, against the same by others, in turn."""
    launch(all_reduce, n_ranks=N_RANKS)
    peers: dict[str, Callable[[], list[float]]] = {
        "accelerate's notebook_launcher": _notebook_launcher,
        "torchrun": _torchrun,
        "ipyparallel: a cluster's start, a run, its end": _new_cluster,
    }
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    lacking = {name: _lacking(name) for name in peers}
    for _ in range(ROUNDS):
        for name, measure in peers.items():
            if not lacking[name]:
                try:
                    theirs[name] += measure()
                except (subprocess.SubprocessError, OSError, TimeoutError) as error:
                    lacking[name] = f"it failed: {type(error).__name__}"
        launch(all_reduce, n_ranks=N_RANKS)
        ours += [_seconds(lambda: launch(all_reduce, n_ranks=N_RANKS)) for _ in range(7)]
    for name, seconds in theirs.items():
        yield _compared("warm 4-rank launch", ours, name, seconds, lacking[name])
    yield from _on_warm_engines()


def _compared(what: str, ours: list[float], name: str, theirs: list[float], lacking: str) -> Result:
    if lacking or not theirs:
        return Result(f"{what} against {name}", "not measured", "faster", None, lacking)
    ratio = median(theirs) / median(ours)
    text = f"{what} ({median(ours):.3f} s) against {name} ({median(theirs):.3f} s)"
    return Result(text, f"{ratio:.1f} times faster", "faster", ratio > 1)


def _lacking(name: str) -> str:
    """Say which package a peer needs and this Python has not, or ""."""
    package = {"accelerate's": "accelerate", "ipyparallel:": "ipyparallel"}.get(name.split()[0], "torch")
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"


def _seconds(call: Callable[[], object], pause: float = PAUSE) -> float:
    time.sleep(pause)
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _run(*command: str) -> str:
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=HANGS, check=True
    )
    return done.stdout


def _notebook_launcher() -> list[float]:
    ports = [str(29600 + (os.getpid() + int(time.monotonic() * 10) + i) % 1000) for i in range(3)]
    numbers: list[float] = json.loads(_run("-c", NOTEBOOK, str(N_RANKS), *ports).splitlines()[-1])
    return numbers


def _torchrun() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(SCRIPT)
        command = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={N_RANKS}", str(script))
        return [_seconds(lambda: _run(*command))]


def _new_cluster() -> list[float]:
    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder, _cluster(folder) as client:
            _all_reduce_on(client, folder, 0)

    return [_seconds(whole)]


def _cluster(folder: str) -> Any:
    from ipyparallel import Cluster

    return Cluster(n=N_RANKS, profile_dir=str(Path(folder, "profile")), log_level=40)


def _all_reduce_on(client: Any, folder: str, number: int) -> None:
    """All-reduce on engines, each of which enters and leaves a process group."""
    store = str(Path(folder, f"store.{number}"))
    replies = [client[rank].apply_async(all_reduce_spawned, rank, N_RANKS, store) for rank in range(N_RANKS)]
    for reply in replies:
        reply.get(HANGS)


def _on_warm_engines() -> Iterator[Result]:
    """Yield what engines that have imported torch do by ipyparallel alone, against `Ranks`, and `launch(cluster=)`."""
    kept, alone, launched = [], [], []
    lacking = _lacking("ipyparallel:")
    if not lacking:
        with tempfile.TemporaryDirectory() as folder, _cluster(folder) as client, Ranks(N_RANKS) as ranks:
            _all_reduce_on(client, folder, 0)
            launch(all_reduce, n_ranks=N_RANKS, cluster=client)
            ranks.run(all_reduce)
            for i in range(1, 11):
                alone.append(_seconds(lambda i=i: _all_reduce_on(client, folder, i)))  # type: ignore[misc]
                kept.append(_seconds(lambda: ranks.run(all_reduce)))
                launched.append(_seconds(lambda: launch(all_reduce, n_ranks=N_RANKS, cluster=client)))
    yield _compared("4-rank run on Ranks", kept, "ipyparallel's warm engines", alone, lacking)
    what = "launch(cluster=) on warm engines"
    if lacking:
        yield Result(what, "not measured", "below 0.5 s", None, lacking)
        return
    what += f" ({median(launched):.3f} s) against ipyparallel alone ({median(alone):.3f} s)"
    value = f"{median(launched) / median(alone):.1f} times its time"
    yield Result(what, value, "below 0.5 s", median(launched) < 0.5, "each rank a new process, watched and observed")
