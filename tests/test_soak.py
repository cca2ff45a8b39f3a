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
    pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc"),
]

ROOT = Path(__file__).parents[1]
MEGABYTES = 24  # that a thousand runs may add


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
        assert after[name][0] - before[name][0] < MEGABYTES, (name, before, after)
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
        assert new_size - old_size < MEGABYTES
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
    _check_crowd(30, 5, tmp_path)


# Notebooks that are killed

KILLED = """
import ppkit

def total():
    import torch, torch.distributed as dist
    x = torch.ones(4)
    dist.all_reduce(x)
    return x[0].item()

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


def _check_kills(n_kills: int, folder: Path, seed: int) -> None:
    script = folder / "killed.py"
    script.write_text(KILLED)
    moments = random.Random(seed)
    cores = len(os.sched_getaffinity(0))
    times, seen = [], 0
    for i in range(n_kills):
        process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, stderr=subprocess.DEVNULL)
        while not _started_by(process.pid):  # the server
            time.sleep(0.005)
        if i % 4:  # else while it imports
            while not list(Path(tempfile.gettempdir()).glob(f"ppkit-{process.pid}-*")):
                assert process.poll() is None
                time.sleep(0.005)
        time.sleep(moments.uniform(0, 1.5))
        seen += len(_started_by(process.pid))
        process.kill()
        killed = time.perf_counter()
        patience = 1.0 if os.getloadavg()[0] < 2 * cores else 10.0  # the rest is the machine's
        while _left(process.pid) and time.perf_counter() - killed < patience:
            time.sleep(0.01)
        process.wait()
        times.append(time.perf_counter() - killed)
        assert not _left(process.pid)
    print(f"{n_kills} kills, {seen} processes, all gone after {max(times):.2f} s at most")
    assert seen > n_kills


def _left(pid: int) -> list[object]:
    return [*_started_by(pid), *Path(tempfile.gettempdir()).glob(f"ppkit-{pid}-*")]


def test_three_killed_notebooks_leave_nothing(tmp_path: Path) -> None:
    _check_kills(3, tmp_path, seed=3)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twenty_killed_notebooks_leave_nothing(tmp_path: Path) -> None:
    _check_kills(20, tmp_path, seed=20)
