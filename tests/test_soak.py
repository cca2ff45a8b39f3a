"""A crowded server and a long term: many runs, many notebooks at once, notebooks killed at any moment.

The long versions are marked `soak` and run by `make soak`; the short ones belong to `make test`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ppkit import Ranks
from ppkit.launch import launch
from ppkit.launch.starter import ForkStarter, starter

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc"),
]

ROOT = Path(__file__).parents[1]
KILOBYTES = 24  # that a run may add in the long term; less cannot be told from how memory comes and goes
GONE = 1.0  # seconds after which nothing may be left of a notebook that was killed


def _total(value: float) -> float:
    x = torch.full((4,), value * (dist.get_rank() + 1))
    dist.all_reduce(x)
    return x[0].item()


# One notebook, many runs


def _held(pid: int) -> tuple[float, int]:
    """Resident megabytes and open descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def _settled(pid: int) -> tuple[float, int]:
    """The same once the server has made its spares, each of which it holds by a descriptor."""
    held = _held(pid)
    for _ in range(50):
        time.sleep(0.05)
        before, held = held, _held(pid)
        if before[1] == held[1]:
            break
    return held


def _check_flat(n_runs: int, warm_up: int) -> None:
    for _ in range(warm_up):
        assert launch(_total, 1.0).results == (3.0, 3.0)
    ranks = starter()
    assert isinstance(ranks, ForkStarter)
    processes = {"notebook": os.getpid(), "server": ranks._process.pid}
    before = {name: _settled(pid) for name, pid in processes.items()}
    for i in range(n_runs):
        assert launch(_total, float(i)).results == (3.0 * i, 3.0 * i)
    after = {name: _settled(pid) for name, pid in processes.items()}
    print({name: (before[name], after[name]) for name in processes})
    for name in processes:
        assert after[name][0] - before[name][0] < max(8, n_runs * KILOBYTES / 1024), (name, before, after)
        assert after[name][1] == before[name][1], (name, before, after)
    assert not list(Path(tempfile.gettempdir()).glob(f"ppkit-{os.getpid()}-*"))


def test_thirty_launches_leave_memory_and_descriptors_as_they_were() -> None:
    _check_flat(30, 5)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_thousand_launches_leave_memory_and_descriptors_as_they_were() -> None:
    _check_flat(1000, 50)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_thousand_runs_of_kept_ranks_leave_memory_and_descriptors_as_they_were() -> None:
    with Ranks(2) as ranks:
        for _ in range(50):
            ranks.run(_total, 1.0)
        pids = (os.getpid(), *ranks.run(os.getpid).results)
        before = [_held(pid) for pid in pids]
        for i in range(1000):
            assert ranks.run(_total, float(i)).results == (3.0 * i, 3.0 * i)
        assert pids[1:] == ranks.run(os.getpid).results
        after = [_held(pid) for pid in pids]
    print(before, after)
    for (old_size, old_files), (new_size, new_files) in zip(before, after, strict=True):
        assert new_size - old_size < 1000 * KILOBYTES / 1024
        assert new_files == old_files


# Many notebooks

CROWD = """
import sys, time
from pathlib import Path
from ppkit.launch import launch

def total(value):
    import torch, torch.distributed as dist
    x = torch.full((4,), value * (dist.get_rank() + 1))
    for _ in range(3):
        dist.all_reduce(x)
    return x[0].item()

folder, own, n_runs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
launch(total, 0.0)
(folder / f"{own}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
for run in range(n_runs):
    value = own + run / 64
    assert launch(total, value).results == (12 * value,) * 2, value
"""


def _check_crowd(n_processes: int, n_runs: int, folder: Path) -> None:
    """Let notebooks launch at the same time, each with values of its own: whoever met another would get wrong ones."""
    script = folder / "crowd.py"
    script.write_text(CROWD)
    logs = [(folder / f"{i}.log").open("w+") for i in range(n_processes)]
    crowd = [
        subprocess.Popen([sys.executable, str(script), str(folder), str(i), str(n_runs)], cwd=ROOT, stderr=logs[i])
        for i in range(n_processes)
    ]
    try:
        while len(list(folder.glob("*.ready"))) < n_processes and all(p.poll() in (None, 0) for p in crowd):
            time.sleep(0.05)
        (folder / "go").touch()
        codes = [process.wait(600) for process in crowd]
    finally:
        for process in crowd:
            process.kill()
    for log in logs:
        log.seek(0)
    assert codes == [0] * n_processes, [log.read()[-800:] for log in logs]
    for log in logs:
        log.close()
    assert not [pid for process in crowd for pid in _started_by(process.pid)]


def test_six_notebooks_at_once_never_meet(tmp_path: Path) -> None:
    _check_crowd(6, 3, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_thirty_notebooks_at_once_never_meet(tmp_path: Path) -> None:
    _check_crowd(30, 3, tmp_path)


# Notebooks that are killed

KILLED = """
import sys, time
from pathlib import Path
import ppkit
from ppkit.launch.starter import starter

def total():
    import torch, torch.distributed as dist
    x = torch.ones(4)
    dist.all_reduce(x)
    return x[0].item()

starter()  # begins to import
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
while True:
    ppkit.launch(total)
    with ppkit.Ranks(2) as ranks:
        ranks.run(total)
        ranks.run(total)
"""


def _started_by(pid: int) -> list[int]:
    """Processes of a notebook's fork server, itself included; all of them have its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"ppkit-{pid}-".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


class Notebook:
    """One that launches in an endless loop, once it is told to; its imports are done before.

    Args:
        folder: for its files.
        number: among all of them.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._go = folder / f"go.{number}"
        script = folder / "killed.py"
        script.write_text(KILLED)
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(self._go)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def work(self) -> None:
        """Let it begin; return when it has."""
        self._go.touch()
        while not list(Path(tempfile.gettempdir()).glob(f"ppkit-{self._process.pid}-*")):
            assert self._process.poll() is None
            time.sleep(0.005)

    def started(self) -> list[int]:
        """Return its processes, once it has any."""
        while not (found := _started_by(self._process.pid)):
            assert self._process.poll() is None
            time.sleep(0.005)
        return found

    def kill(self) -> tuple[float, float]:
        """Kill it; return the seconds until nothing is left, and how many of them this process had no core either."""
        self._process.kill()
        begun, used, slept = time.perf_counter(), time.thread_time(), 0
        while (left := _left(self._process.pid)) and time.perf_counter() - begun < 30:
            time.sleep(0.01)
            slept += 1
        seconds = time.perf_counter() - begun
        assert not left
        self._process.wait()
        return seconds, seconds - 0.01 * slept - (time.thread_time() - used)


def _check_kills(n_kills: int, folder: Path, seed: int) -> None:
    moments = random.Random(seed)
    notebooks = [Notebook(folder, 0)]
    times, seen = [], 0
    try:
        for i in range(n_kills):
            if i + 1 < n_kills:
                notebooks.append(Notebook(folder, i + 1))  # imports while this one is killed
            if i % 4:  # else while it imports
                notebooks[i].work()
            notebooks[i].started()
            time.sleep(moments.uniform(0, 1.0))
            seen += len(notebooks[i].started())
            times.append(notebooks[i].kill())
    finally:
        for notebook in notebooks[len(times) :]:
            notebook.kill()
    print(f"{n_kills} kills, {seen} processes, all gone after {max(times)[0]:.2f} s at most")
    assert seen > n_kills
    # What this process lacked of a core's time while it looked, those that were to end lacked too.
    assert all(seconds < GONE + without_core for seconds, without_core in times), times


def _left(pid: int) -> list[object]:
    return [*_started_by(pid), *Path(tempfile.gettempdir()).glob(f"ppkit-{pid}-*")]


def test_three_killed_notebooks_leave_nothing(tmp_path: Path) -> None:
    _check_kills(3, tmp_path, seed=3)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twenty_killed_notebooks_leave_nothing(tmp_path: Path) -> None:
    _check_kills(20, tmp_path, seed=20)
