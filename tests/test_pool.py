"""Ranks that are kept: runs follow each other on the same processes, and nothing of one is seen by the next."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import busy, descendants

import ppkit
from ppkit import Emulation, Ranks
from ppkit.errors import DeadlockError, LaunchError, RankError

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs the fork server")]


@pytest.fixture(scope="module")
def shared() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


def _total() -> float:
    x = torch.full((3,), dist.get_rank() + 1.0)
    dist.all_reduce(x)
    return x[0].item()


# Runs


def test_runs_follow_each_other_on_the_same_processes(shared: Ranks) -> None:
    first = shared.run(lambda: (os.getpid(), _total()))
    second = shared.run(lambda a: (os.getpid(), _total() + a), 1)
    assert [pid for pid, _ in first.results] == [pid for pid, _ in second.results]
    assert [total for _, total in first.results] == [3.0, 3.0]
    assert [total for _, total in second.results] == [4.0, 4.0]


def test_a_run_has_all_that_a_launch_has(shared: Ranks, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> str:
        print("hello from", dist.get_rank())
        if dist.get_rank() == 0:
            dist.send(torch.nn.Linear(2, 2)(torch.ones(2)).detach(), 1)
        else:
            dist.recv(torch.empty(2), 0)
        return os.environ["RANK"]

    for _ in range(2):
        run = shared.run(work, emulate=Emulation(forward=0.01))
        assert run.results == ("0", "1")
        assert run.output == ("hello from 0\n", "hello from 1\n")
        assert [(e.rank, e.kind, e.microbatch, e.message) for e in run.timeline] == [
            (0, "F", 0, None), (1, "RECV", None, 0), (0, "SEND", None, 0)
        ] or sorted(e.kind for e in run.timeline) == ["F", "RECV", "SEND"]  # fmt: skip
        assert run.timeline.source == "measured, emulated"
        assert (run.n_ranks, run.device, run.backend) == (2, "cpu", "gloo")
        assert capsys.readouterr().out == "rank 0 | hello from 0\nrank 1 | hello from 1\n"


def test_many_runs_are_each_right_and_leave_no_descriptor_or_file(shared: Ranks) -> None:
    def held() -> tuple[float, int]:
        gc.collect()
        return _total(), len(os.listdir("/proc/self/fd"))

    shared.run(held)
    before = len(os.listdir("/proc/self/fd"))
    results = [shared.run(held).results for _ in range(30)]
    assert {total for result in results for total, _ in result} == {3.0}
    assert len({descriptors for result in results for _, descriptors in result}) == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_launch_and_ranks_live_side_by_side(shared: Ranks) -> None:
    pids = shared.run(os.getpid).results
    assert ppkit.launch(_total, n_ranks=3).results == (6.0,) * 3
    with pytest.raises(RankError):
        ppkit.launch(_fail)
    with Ranks(3) as other:
        assert other.run(_total).results == (6.0,) * 3
        assert shared.run(os.getpid).results == pids
        assert other.run(_total).results == (6.0,) * 3
    assert shared.run(os.getpid).results == pids


def _fail() -> None:
    raise ValueError("no")


# Nothing is seen by the next run


def _leave_random() -> None:
    torch.rand(5), random.random()


def _leave_modes() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(3)
    torch.autograd.set_detect_anomaly(True)
    torch.set_printoptions(precision=1)
    sys.setrecursionlimit(5000)
    os.umask(0)


def _leave_hooks() -> None:
    torch.nn.modules.module.register_module_forward_hook(lambda *_: torch.zeros(2))
    torch.nn.Linear.forward = lambda self, x: x * 0  # type: ignore[method-assign]
    torch.left_behind = 1  # type: ignore[attr-defined]
    torch.nn.functional.relu = torch.sin  # type: ignore[assignment]
    torch.Tensor.left_behind = 1  # type: ignore[attr-defined]
    dist.send = None  # type: ignore[assignment]
    del torch.nn.GELU


def _leave_surroundings() -> None:
    os.environ["PPKIT_LEFT"] = "1"
    os.environ.pop("PATH")
    os.chdir("/")
    sys.path.insert(0, "/left")
    sys.stdout = None  # type: ignore[assignment]
    warnings.simplefilter("error")
    logging.basicConfig(level=logging.DEBUG)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(1)


def _leave_groups() -> None:
    dist.new_group([0])
    dist.destroy_process_group()


def _leave_group_of_both() -> None:
    group = dist.new_group([0, 1])
    dist.all_reduce(torch.ones(1), group=group)


def _leave_messages() -> None:
    """One message that nobody receives, one collective that nobody waits for."""
    dist.all_reduce(torch.ones(1), async_op=True)
    if dist.get_rank() == 0:
        dist.isend(torch.full((2,), 99.0), 1)


def _describe() -> dict[str, Any]:
    x = torch.full((2,), dist.get_rank() + 1.0)
    if dist.get_rank() == 0:
        dist.send(x, 1)
    else:
        dist.recv(x, 0)
    torch.manual_seed(0)
    linear = torch.nn.Linear(2, 2)
    return {
        "random": (torch.rand(1).item(), random.random()),
        "seed": torch.initial_seed(),
        "message": x.tolist(),
        "total": _total(),
        "dtype": str(torch.ones(1).dtype),
        "device": str(torch.ones(1).device),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "anomaly": torch.is_anomaly_enabled(),
        "printed": repr(torch.tensor([1 / 3])),
        "forward": linear(torch.ones(2)).tolist(),
        "left": [hasattr(owner, "left_behind") for owner in (torch, torch.Tensor)],
        "relu": torch.nn.functional.relu(torch.ones(1)).item(),
        "gelu": hasattr(torch.nn, "GELU"),
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "path": list(sys.path),
        "filters": len(warnings.filters),
        "logging": (logging.root.level, len(logging.root.handlers)),
        "alarm": (signal.getsignal(signal.SIGALRM), signal.alarm(0)),
        "limits": (sys.getrecursionlimit(), os.umask(0o022)),
        "groups": len(dist.distributed_c10d._world.pg_map),
        "tasks": len(threading.enumerate()),
    }


@pytest.mark.parametrize(
    "leave",
    [_leave_random, _leave_modes, _leave_hooks, _leave_surroundings, _leave_groups, _leave_group_of_both,
     _leave_messages],
)  # fmt: skip
def test_what_a_run_leaves_is_not_there_in_the_next(shared: Ranks, leave: Callable[[], None]) -> None:
    fresh = ppkit.launch(_describe).results
    pids = shared.run(os.getpid).results
    shared.run(leave)
    after = shared.run(lambda: (os.getpid(), _describe())).results
    assert tuple(state for _, state in after) == fresh
    assert tuple(pid for pid, _ in after) == pids  # it was put back, not made anew


def test_attributes_come_back_by_their_own_names(shared: Ranks) -> None:
    def swap() -> None:
        torch.sin, torch.cos = torch.cos, torch.sin

    def move() -> None:
        torch.pi_of_mine = torch.pi  # type: ignore[attr-defined]
        del torch.pi

    expected = [(torch.sin(torch.ones(1)).item(), torch.pi, False)] * 2
    for leave in (swap, move):
        shared.run(leave)
        look = lambda: (torch.sin(torch.ones(1)).item(), torch.pi, hasattr(torch, "pi_of_mine"))  # noqa: E731
        assert list(shared.run(look).results) == expected


def test_what_is_printed_between_two_runs_is_of_neither(shared: Ranks) -> None:
    class Talker:
        def __del__(self) -> None:
            print("good-bye")

    def leave() -> None:
        print("first")
        torch.talker = Talker()  # type: ignore[attr-defined]

    assert shared.run(leave).output == ("first\n",) * 2
    assert shared.run(lambda: print("second")).output == ("second\n",) * 2


def test_each_run_has_a_folder_of_its_own_and_the_last_ones_is_gone(shared: Ranks) -> None:
    def folder() -> tuple[Path, list[str]]:
        own = Path(os.readlink("/proc/self/fd/1")).parent
        return own, sorted(path.name for path in own.parent.glob("run.*"))

    first = [shared.run(folder).results for _ in range(3)]
    assert all(len({own for own, _ in results}) == 1 for results in first)  # all ranks in one
    assert len({results[0][0] for results in first}) == 3
    assert all(names == [own.name] for results in first for own, names in results)


def test_a_crash_in_a_later_run_names_the_learners_line(shared: Ranks) -> None:
    def crash() -> None:
        if dist.get_rank() == 1:
            ctypes.string_at(0)
        dist.barrier()

    shared.run(faulthandler.disable)
    with pytest.raises(RankError, match=r"rank 1 was ended by SIGSEGV\.\n.*in crash\n    ctypes\.string_at\(0\)"):
        shared.run(crash)


def test_memory_is_freed(shared: Ranks) -> None:
    def hold() -> None:
        torch.kept = [torch.ones(20_000_000)]  # type: ignore[attr-defined]
        torch.kept.append(torch.kept)  # type: ignore[attr-defined]  # a cycle, for the collector

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    before = shared.run(resident).results
    shared.run(hold)
    after = shared.run(resident).results
    assert max(b - a for a, b in zip(before, after, strict=True)) < 40  # of 80 MB


def test_the_notebooks_folder_and_environment_of_now_are_taken(
    shared: Ranks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = tmp_path / "edited_between_runs.py"
    module.write_text("answer = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PPKIT_TEST_VARIABLE", "one")

    def look() -> tuple[str, str, int]:
        import edited_between_runs

        return os.getcwd(), os.environ["PPKIT_TEST_VARIABLE"], edited_between_runs.answer

    assert shared.run(look).results[0] == (str(tmp_path), "one", 1)
    monkeypatch.setenv("PPKIT_TEST_VARIABLE", "two")
    module.write_text("answer = 2  # and longer, so that no cached code fits\n")
    assert shared.run(look).results[0] == (str(tmp_path), "two", 2)


def test_a_variable_that_torch_reads_once_gets_new_ranks(shared: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shared.run(os.getpid).results
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    after = shared.run(lambda: (os.getpid(), os.environ["TORCH_DISTRIBUTED_DEBUG"])).results
    assert not {pid for pid, _ in after} & set(before)
    assert after[0][1] == "DETAIL"


def test_a_class_of_a_cell_is_as_the_cell_says(shared: Ranks) -> None:
    class Counter:
        count = 0

    def use() -> int:
        Counter.count += 1
        Counter.extra = True  # type: ignore[attr-defined]
        return Counter.count

    assert shared.run(use).results == (1, 1)
    assert shared.run(lambda: (use(), hasattr(Counter, "extra"))).results == ((1, True),) * 2
    assert shared.run(lambda: hasattr(Counter, "extra")).results == (False, False)


def test_every_run_is_seeded_alike() -> None:
    with Ranks(1, seed=7) as ranks:
        assert ranks.run(lambda: torch.rand(1).item()).results == ranks.run(lambda: torch.rand(1).item()).results
        assert ranks.run(torch.initial_seed).results == (7,)


# Renewal


def _hang() -> None:
    time.sleep(60)


def _receive_from_nobody() -> None:
    dist.recv(torch.ones(1), 1 - dist.get_rank())


def _raise_on_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("no")
    dist.barrier()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit() -> None:
    sys.exit(3)


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (_hang, RankError), (_receive_from_nobody, DeadlockError), (_raise_on_one, RankError), (_die, RankError),
        (_exit, RankError),
    ],
)  # fmt: skip
def test_after_a_failure_new_ranks_serve_the_next_run(
    shared: Ranks, fail: Callable[[], None], error: type[Exception]
) -> None:
    before = shared.run(os.getpid).results
    with pytest.raises(error):
        shared.run(fail, timeout=1 if fail is _hang else None)
    after = shared.run(lambda: (os.getpid(), _total())).results
    assert [total for _, total in after] == [3.0, 3.0]
    assert not {pid for pid, _ in after} & set(before)
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]


def test_after_an_interrupt_new_ranks_serve_the_next_run(shared: Ranks, interrupted: Callable[..., None]) -> None:
    shared.run(_total)
    for delay in (0.002, 0.01, 0.5):
        begun = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            interrupted(delay, shared.run, time.sleep, 60)
        assert time.perf_counter() - begun < delay + 5
        assert shared.run(_total).results == (3.0, 3.0)


@pytest.mark.parametrize("what", ["thread", "process"])
def test_what_cannot_be_taken_away_gets_new_ranks(shared: Ranks, what: str) -> None:
    def leave() -> int:
        if what == "thread":
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        elif os.fork() == 0:
            time.sleep(60)
        return os.getpid()

    before = shared.run(leave).results
    after = shared.run(lambda: (os.getpid(), _total())).results
    assert [total for _, total in after] == [3.0, 3.0]
    assert not {pid for pid, _ in after} & set(before)


def test_ranks_that_ended_while_idle_are_replaced(shared: Ranks) -> None:
    for pid in shared.run(os.getpid).results:
        os.kill(pid, signal.SIGKILL)
    assert shared.run(_total).results == (3.0, 3.0)


def test_a_server_that_was_killed_is_replaced(shared: Ranks) -> None:
    from ppkit.launch.starter import starter

    pids = shared.run(os.getpid).results
    server = starter()._process  # type: ignore[attr-defined]
    server.kill()
    server.wait()
    assert shared.run(_total).results == (3.0, 3.0)
    assert ppkit.launch(_total).results == (3.0, 3.0)
    deadline = time.perf_counter() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# Use


def test_bad_arguments_are_told_before_anything_starts() -> None:
    with pytest.raises(LaunchError, match="n_ranks=0"):
        Ranks(0)
    with pytest.raises(LaunchError, match="device='tpu'"):
        Ranks(2, device="tpu")
    with pytest.raises(LaunchError, match="timeout=-1"):
        Ranks(2, timeout=-1)
    with Ranks(2) as ranks:
        with pytest.raises(LaunchError, match="takes a function"):
            ranks.run(3)  # type: ignore[arg-type]
        with pytest.raises(LaunchError, match="timeout='5'"):
            ranks.run(_total, timeout="5")  # type: ignore[arg-type]
        with pytest.raises(LaunchError, match="emulate=1"):
            ranks.run(_total, emulate=1)  # type: ignore[arg-type]
        with pytest.raises(LaunchError, match="cannot be called with the 1 argument given"):
            ranks.run(_total, 1)
        assert ranks.run(_total).results == (3.0, 3.0)


def test_the_time_limit_of_all_runs() -> None:
    with Ranks(1, timeout=1) as ranks, pytest.raises(RankError, match="time limit of 1 s"):
        ranks.run(_hang)


def test_use_after_close_is_told() -> None:
    ranks = Ranks(1)
    assert ranks.run(_total).results == (1.0,)
    pids = ranks.run(os.getpid).results
    ranks.close()
    ranks.close()
    assert "closed" in repr(ranks)
    assert not Path(f"/proc/{pids[0]}").exists()
    with pytest.raises(LaunchError, match="are closed; make new ones"):
        ranks.run(_total)
    with pytest.raises(LaunchError, match="are closed"), ranks:
        pass


def test_use_by_two_at_once_is_told(shared: Ranks) -> None:
    errors: list[LaunchError] = []

    def interfere() -> None:
        time.sleep(0.5)
        for call in (lambda: shared.run(_total), shared.close):
            try:
                call()
            except LaunchError as error:
                errors.append(error)

    thread = threading.Thread(target=interfere)
    thread.start()
    shared.run(time.sleep, 2)
    thread.join()
    assert ["at work for another run" in str(errors[0]), "cannot be closed" in str(errors[1])] == [True, True]
    assert shared.run(_total).results == (3.0, 3.0)


def test_nested_use_is_told(shared: Ranks) -> None:
    with pytest.raises(LaunchError, match="in a `with` block already"), shared:
        pass
    with pytest.raises(LaunchError, match="the variable 'shared'"):
        shared.run(lambda: shared.run(_total))
    with pytest.raises(RankError, match="ranks cannot start ranks"):
        shared.run(lambda: Ranks(1).run(_total))


def test_ranks_in_a_cell(shared: Ranks) -> None:
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    ppkit.load_ipython_extension(shell)
    shell.user_ns.update(pool=shared)
    cell = "import os, torch.distributed as dist\n(os.getpid(), dist.get_world_size())"
    shell.run_cell_magic("ranks", "--pool pool --out one", cell)
    shell.run_cell_magic("ranks", "--pool pool --out two", cell)
    assert shell.user_ns["one"].results == shell.user_ns["two"].results
    assert shell.user_ns["one"].results[0][1] == 2
    with pytest.raises(LaunchError, match="3 ranks, but pool has 2"):
        shell.run_cell_magic("ranks", "3 --pool pool", cell)
    shell.user_ns["other"] = types.SimpleNamespace()
    with pytest.raises(LaunchError, match=r"--pool takes ppkit\.Ranks; other is namespace"):
        shell.run_cell_magic("ranks", "--pool other", "1")


# Nothing is left


def test_nothing_is_left_of_ranks_that_are_closed_or_forgotten() -> None:
    folders = Path(tempfile.gettempdir())
    before = busy(os.getpid()), len(list(folders.glob(f"ppkit-{os.getpid()}-*")))
    with Ranks(2) as closed:
        closed.run(_total)
    assert (busy(os.getpid()), len(list(folders.glob(f"ppkit-{os.getpid()}-*")))) == before
    forgotten = Ranks(2)
    forgotten.run(_total)
    del forgotten
    gc.collect()
    deadline = time.perf_counter() + 10
    while busy(os.getpid()) != before[0] and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert (busy(os.getpid()), len(list(folders.glob(f"ppkit-{os.getpid()}-*")))) == before


@pytest.mark.parametrize("end", ["return", "kill"])
def test_ranks_end_with_their_process(tmp_path: Path, end: str) -> None:
    import subprocess

    script = tmp_path / "notebook.py"
    script.write_text(
        "import os, sys, time, ppkit\n"
        "ranks = ppkit.Ranks(2)\n"
        "ranks.run(os.getpid)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        + ("time.sleep(0.5)\n" if end == "return" else "time.sleep(60)\n")
    )
    process = subprocess.Popen([sys.executable, str(script)], cwd=Path(__file__).parents[1])
    deadline = time.perf_counter() + 60
    while not (tmp_path / "ready").exists() and time.perf_counter() < deadline:
        time.sleep(0.02)
    started = descendants(process.pid)
    assert len(started) >= 3
    if end == "kill":
        process.kill()
    process.wait()
    deadline = time.perf_counter() + 5
    while (alive := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not alive
    assert not list(Path(tempfile.gettempdir()).glob(f"ppkit-{process.pid}-*"))
