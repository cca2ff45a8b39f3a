"""Ranks are started, fed, watched and ended: what comes back, and what a wrong call or a failing rank says."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist
from processes import busy, descendants, names

import ppkit
from ppkit.emulate import Emulation
from ppkit.errors import DeadlockError, Interrupted, LaunchError, RankError
from ppkit.launch import Ranks, devices, launch
from ppkit.launch.devices import place

pytestmark = pytest.mark.ranks

FACTOR = 3


def _rank() -> int:
    return dist.get_rank()


# What comes back


def test_calls_the_function_on_every_rank_with_its_arguments() -> None:
    run = launch(lambda a, b: (_rank(), dist.get_world_size(), a + b), 1, 2, n_ranks=3)
    assert run.results == ((0, 3, 3), (1, 3, 3), (2, 3, 3))
    assert (run.n_ranks, run.device, run.backend) == (3, "cpu", "gloo")


def test_one_rank_is_a_run_too() -> None:
    assert launch(_rank, n_ranks=1).results == (0,)


def test_the_ranks_really_are_a_process_group() -> None:
    def total() -> float:
        x = torch.full((5,), float(_rank() + 1))
        dist.all_reduce(x)
        return float(x[0])

    assert launch(total, n_ranks=4).results == (10.0,) * 4


def test_a_cells_function_travels_with_its_globals_closures_and_classes() -> None:
    local = {"x": 5}

    class Doubler:
        def __call__(self, value: int) -> int:
            return 2 * value

    def work() -> int:
        return Doubler()(local["x"]) * FACTOR + _rank()

    assert launch(work).results == (30, 31)


def test_a_partial_is_a_function() -> None:
    assert launch(functools.partial(max, 3), 7).results == (7, 7)


def test_torchrun_variables_are_set() -> None:
    def variables() -> list[str]:
        return [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]

    assert launch(variables).results == (["0", "2", "0", "2"], ["1", "2", "1", "2"])


def test_ranks_take_the_notebooks_folder_path_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "beside_the_notebook.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PPKIT_TEST_VARIABLE", "seen")

    def look() -> tuple[str, str, int]:
        import beside_the_notebook

        return os.getcwd(), os.environ["PPKIT_TEST_VARIABLE"], beside_the_notebook.answer

    assert launch(look, n_ranks=1).results == ((str(tmp_path), "seen", 42),)


def test_a_variable_taken_from_the_notebook_is_gone_from_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPKIT_TEST_VARIABLE", "seen")
    launch(_rank, n_ranks=1)
    monkeypatch.delenv("PPKIT_TEST_VARIABLE")
    assert launch(lambda: os.environ.get("PPKIT_TEST_VARIABLE"), n_ranks=1).results == (None,)


def test_every_run_starts_fresh_and_seeded() -> None:
    def draw() -> tuple[float, float, bool]:
        stale = hasattr(torch, "left_behind")
        torch.left_behind = True  # type: ignore[attr-defined]
        return torch.rand(1).item(), random.random(), stale

    first, second = launch(draw), launch(draw)
    assert first.results == second.results
    assert first.results[0] == first.results[1]
    assert not first.results[0][2]
    assert launch(draw, seed=1).results[0][0] != first.results[0][0]


def _state() -> dict[str, object]:
    """What a process knows and holds besides what this test sees to."""
    torch.nn.Linear(2, 2)(torch.ones(2)).sum().backward()  # a first backward starts what it needs
    dist.barrier()
    return {
        "modules": sorted(sys.modules),
        "environment": dict(os.environ),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "random": (torch.rand(1).item(), random.random()),
        "group": (dist.group.WORLD.group_name, dist.get_backend(), len(dist.distributed_c10d._world.pg_map)),
        "modes": (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGTERM)],
        "hooks": len(sys.modules["torch.optim.optimizer"]._global_optimizer_post_hooks),
        "group of processes": os.getpgid(0) == os.getpid() == os.getsid(0),
    }


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_a_rank_that_was_a_spare_is_as_one_that_was_forked() -> None:
    from ppkit.launch.starter import starter

    starter().close()  # type: ignore[attr-defined]
    forked = launch(_state)
    _wait_for_spares(2)
    time.sleep(0.5)  # in which they rehearse
    pids = descendants(os.getpid())
    kept = launch(lambda: (os.getpid(), _state()))
    assert {pid for pid, _ in kept.results} <= pids
    assert tuple(state for _, state in kept.results) == forked.results
    assert len(kept.timeline) == len(forked.timeline)


def _wait_for_spares(n: int) -> None:
    deadline = time.perf_counter() + 30
    while names(os.getpid()).count("ppkit spare") != n and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert names(os.getpid()).count("ppkit spare") == n


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_spares_that_were_ended_are_replaced_by_forks() -> None:
    launch(_rank, n_ranks=3)
    _wait_for_spares(3)
    for pid in descendants(os.getpid()):
        if Path(f"/proc/{pid}/comm").read_text() == "ppkit spare\n":
            os.kill(pid, signal.SIGKILL)
    _wait_for_spares(0)
    assert launch(_rank, n_ranks=3).results == (0, 1, 2)
    _wait_for_spares(3)
    assert launch(_rank, n_ranks=1).results == (0,)
    assert launch(_rank, n_ranks=5).results == (0, 1, 2, 3, 4)


def test_tensors_that_need_gradients_come_back() -> None:
    def train() -> tuple[torch.Tensor, torch.nn.Parameter]:
        w = torch.nn.Parameter(torch.ones(3))
        return (w * 2), w

    y, w = launch(train, n_ranks=1).results[0]
    assert torch.equal(y, torch.full((3,), 2.0))
    assert isinstance(w, torch.nn.Parameter)


def test_twenty_megabytes_come_back_from_every_rank() -> None:
    results = launch(lambda: torch.full((5_000_000,), float(_rank()))).results
    assert [r.sum().item() for r in results] == [0.0, 5e6]


def test_nothing_is_imported_in_a_rank_by_a_training_step() -> None:
    """Imports are paid by every rank of every run; the server has done them before the fork."""

    def step() -> list[str]:
        before = set(sys.modules)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        for optimizer in (torch.optim.SGD(model.parameters(), 0.1), torch.optim.AdamW(model.parameters())):
            x = torch.ones(2, 4)
            if _rank() == 0:
                dist.send(x, 1)
                dist.isend(x, 1).wait()
            else:
                dist.recv(x, 0)
                dist.irecv(x, 0).wait()
            model(x).sum().backward()
            for p in model.parameters():
                dist.all_reduce(p.grad)
            optimizer.step()
        dist.barrier()
        return sorted(set(sys.modules) - before)

    assert launch(step).results == ([], [])


def test_threads_of_all_ranks_fit_the_machine() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert launch(torch.get_num_threads, n_ranks=4).results == (max(1, (cores or 1) // 4),) * 4
    assert launch(torch.get_num_threads, threads=2).results == (2, 2)
    assert launch(torch.get_num_threads, n_ranks=1, emulate=Emulation(forward=0)).results == (1,)


def test_launches_from_two_threads_take_turns() -> None:
    results: dict[int, object] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: launch(lambda: i).results})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: (0, 0), 1: (1, 1)}


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_ranks_listen_on_loopback_alone() -> None:
    def listening() -> list[str]:
        """Addresses that this process listens on: /proc/net/tcp has them in hexadecimal, least byte first."""
        dist.barrier()
        inodes = {os.path.realpath(f"/proc/self/fd/{fd}").rsplit("/", 1)[-1] for fd in os.listdir("/proc/self/fd")}
        found = []
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                    found.append(fields[1].split(":")[0])
        dist.barrier()
        return found

    addresses = launch(listening, n_ranks=2).results[0]
    assert addresses
    assert set(addresses) == {"0100007F"}


# What is printed


def test_output_stands_under_the_ranks_names_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    def talk() -> None:
        time.sleep(0.05 * (2 - _rank()))  # the last rank speaks first
        print(f"a{_rank()}\nb{_rank()}")
        print("to stderr", file=sys.stderr)

    run = launch(talk, n_ranks=3)
    shown = capsys.readouterr()
    assert shown.out == "".join(f"rank {r} | a{r}\nrank {r} | b{r}\nrank {r} | to stderr\n" for r in range(3))
    assert shown.err == ""
    assert run.output[1] == "a1\nb1\nto stderr\n"


def test_output_of_c_code_without_newline_and_in_no_encoding_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def talk() -> None:
        os.write(1, b"caf\xe9")

    launch(talk, n_ranks=1)
    assert capsys.readouterr().out == "rank 0 | caf\\xe9\n"


def test_a_megabyte_of_output_does_not_block(capsys: pytest.CaptureFixture[str]) -> None:
    run = launch(lambda: print("x" * 1_000_000), n_ranks=1, show=False)
    assert len(run.output[0]) == 1_000_001
    assert capsys.readouterr().out == ""


def test_a_live_line_comes_after_a_second_and_is_wiped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPKIT_LIVE", "1")
    monkeypatch.delenv("PYTEST_VERSION")

    def slow() -> None:
        print("loading", flush=True)
        time.sleep(1.6)

    launch(slow)
    *live, last = capsys.readouterr().out.split("\r")
    assert any("s, 2 of 2 ranks not finished; rank" in line and "| loading" in line for line in live)
    assert last == "rank 0 | loading\nrank 1 | loading\n"


# Bad calls


@pytest.mark.parametrize("n_ranks", [0, -1, 1.5, "4", True, None, 1000])
def test_a_number_of_ranks_that_cannot_be(n_ranks: object) -> None:
    with pytest.raises(LaunchError, match=r"n_ranks=.*whole number from 1 to 200"):
        launch(_rank, n_ranks=n_ranks)  # type: ignore[arg-type]


def test_more_ranks_than_the_machine_carries_is_a_warning_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    with pytest.warns(UserWarning, match=r"17 ranks on 2 cores: each gets 0\.12 of a core.*Up to 16"):
        assert len(launch(_rank, n_ranks=17).results) == 17


def test_ranks_that_do_not_fit_the_memory_are_a_warning_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda: 200 * 2**20)
    with pytest.warns(UserWarning, match=r"2 ranks need some 0\.3 GB of memory, and 0\.2 GB are free; use at most 1"):
        launch(_rank)


@pytest.mark.parametrize("device", ["tpu", "gpu", "", None])
def test_an_unknown_device(device: object) -> None:
    with pytest.raises(LaunchError, match=r"device=.*not known; use one of 'auto', 'cpu', 'cuda'"):
        launch(_rank, device=device)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_where_one_is_asked_for() -> None:
    with pytest.raises(LaunchError, match=r"device='cuda' asks for a GPU, but torch sees none.*device='cpu'"):
        launch(_rank, device="cuda")


@pytest.mark.parametrize(
    ("device", "n_gpus", "expected"),
    [
        ("auto", 0, ("cpu", "gloo", ())),
        ("auto", 3, ("cpu", "gloo", ())),
        ("auto", 4, ("cuda", "nccl", (0, 1, 2, 3))),
        ("cpu", 8, ("cpu", "gloo", ())),
        ("cuda", 4, ("cuda", "nccl", (0, 1, 2, 3))),
        ("cuda", 3, ("cuda", "gloo", (0, 1, 2, 0))),
    ],
)
def test_devices_for_four_ranks(
    device: str, n_gpus: int, expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "count_gpus", lambda: n_gpus)
    placement = place(device, 4)
    assert placement[:3] == expected
    assert ("4 ranks share 3 GPUs over gloo" in placement.note) == (device == "cuda" and n_gpus == 3)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "5"])
def test_a_time_limit_that_cannot_be(timeout: object) -> None:
    with pytest.raises(LaunchError, match=r"timeout=.*seconds above 0"):
        launch(_rank, timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, 1.5, 10**12])
def test_a_number_of_threads_that_cannot_be(threads: object) -> None:
    with pytest.raises(LaunchError, match=r"threads=.*: a whole number from 1 to 1024, or None"):
        launch(_rank, threads=threads)  # type: ignore[arg-type]


def test_what_is_no_function() -> None:
    with pytest.raises(LaunchError, match="takes a function to call on every rank; got 3"):
        launch(3)  # type: ignore[arg-type]


def test_a_function_that_takes_other_arguments() -> None:
    def needs_two(a: int, b: int) -> None: ...

    with pytest.raises(
        LaunchError, match=r"needs_two\(a.*b.*\).*missing a required argument: 'b'.*launch\(needs_two, "
    ):
        launch(needs_two, 1)
    with pytest.raises(LaunchError, match="too many positional arguments"):
        launch(needs_two, 1, 2, 3)
    with pytest.raises(LaunchError, match=r"the 1 argument given.*, as in launch\(_rank, n_ranks=4\)"):
        launch(_rank, 3)


def test_an_open_file_is_named_by_its_variable(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("w") as log:

        def write() -> None:
            log.write("x")

        with pytest.raises(LaunchError, match=r"the variable 'log', used by .*write, an open file \(.*log\.txt\)"):
            launch(write)


LOCK = threading.Lock()


def test_a_lock_is_named_by_its_global_variable() -> None:
    def helper() -> None:
        with LOCK:
            pass

    def work() -> None:
        helper()

    # A function of this file would travel by reference; one of a cell travels with its globals.
    for fn in (helper, work):
        fn.__module__ = "__main__"
    with pytest.raises(LaunchError, match=r"the variable 'LOCK', used by .*helper, a _thread\.lock"):
        launch(work)


def test_an_argument_that_cannot_travel_is_named() -> None:
    with pytest.raises(LaunchError, match=r"argument 2 of print, at key 'lock', a _thread\.lock"):
        launch(print, 1, {"fine": 1, "lock": threading.Lock()})


def test_a_large_global_is_a_warning_with_its_size() -> None:
    big = torch.zeros(10_000_000)
    with pytest.warns(UserWarning, match=r"80 MB for 2 ranks"):
        assert launch(lambda: big.numel()).results == (10_000_000,) * 2


def test_a_rank_cannot_launch() -> None:
    with pytest.raises(RankError, match="ranks cannot start ranks"):
        launch(lambda: ppkit.launch(_rank), n_ranks=1)


# Failing ranks


def test_an_exception_is_raised_with_its_rank_and_the_learners_line() -> None:
    def divide() -> None:
        if _rank() == 1:
            _ = 1 / 0  # the learner's line
        dist.barrier()

    with pytest.raises(RankError) as caught:
        launch(divide, n_ranks=3)
    error = caught.value
    assert (error.rank, error.kind, error.original_type) == (1, "exception", "ZeroDivisionError")
    assert "rank 1 raised ZeroDivisionError: division by zero" in error.message
    assert "in divide\n    _ = 1 / 0  # the learner's line" in error.message
    assert "ppkit/launch" not in error.message
    assert "ppkit/launch" not in error.traceback_text
    assert error.traceback_text.startswith("Traceback")


def test_the_rank_that_failed_first_is_blamed_and_its_victims_are_listed() -> None:
    def fail_one_after_the_other() -> None:
        time.sleep(0.02 + 0.2 * (1 - _rank()))
        raise ValueError(f"from {_rank()}")

    with pytest.raises(RankError, match="rank 1 raised ValueError: from 1") as caught:
        launch(fail_one_after_the_other)
    assert caught.value.others == {0: "ValueError: from 0"}


@pytest.mark.parametrize("status", [0, 3, "bye"])
def test_sys_exit_on_a_rank(status: object) -> None:
    def leave() -> None:
        if _rank() == 1:
            sys.exit(status)
        dist.barrier()

    with pytest.raises(RankError, match=rf"rank 1 called sys\.exit\({status}\)") as caught:
        launch(leave)
    assert (caught.value.rank, caught.value.kind) == (1, "exit")


def test_os_exit_on_a_rank_is_told_with_its_last_output() -> None:
    def leave() -> None:
        if _rank() == 0:
            print("so long", flush=True)
            os._exit(7)
        dist.barrier()

    with pytest.raises(RankError, match=r"rank 0 ended with exit code 7.*\n.*\n  so long") as caught:
        launch(leave)
    assert (caught.value.rank, caught.value.kind) == (0, "exit")


def test_a_killed_rank_is_told_by_its_signal() -> None:
    def die() -> None:
        if _rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    with pytest.raises(RankError, match=r"rank 1 was ended by SIGKILL.*out of memory") as caught:
        launch(die)
    assert (caught.value.rank, caught.value.kind) == (1, "signal")


def test_a_buffer_too_small_for_what_anyone_sends_blames_the_receiver() -> None:
    """Who sends is known only afterwards, so that gloo is the first to see it, and ends the process."""

    def exchange() -> None:
        if _rank() == 0:
            dist.send(torch.ones(10), 1)
        else:
            dist.recv(torch.empty(3))

    with pytest.raises(RankError) as caught:
        launch(exchange)
    assert caught.value.rank == 1
    assert "rank 1 was ended by SIGABRT. Usually the receive buffer and the message differ" in caught.value.message
    assert "in exchange\n    dist.recv(torch.empty(3))" in caught.value.message
    assert "40 vs 12" in caught.value.message  # gloo's own words
    assert "Extension modules" not in caught.value.message


def test_a_crash_in_c_code_names_the_learners_line() -> None:
    def crash() -> None:
        if _rank() == 1:
            ctypes.string_at(0)
        dist.barrier()

    with pytest.raises(RankError, match=r"rank 1 was ended by SIGSEGV\.\n.*in crash\n    ctypes\.string_at\(0\)"):
        launch(crash)


def test_a_value_that_cannot_be_sent_back_is_told() -> None:
    with pytest.raises(RankError, match=r"the value that rank 0 returned, a lock, cannot be sent back"):
        launch(threading.Lock, n_ranks=1)
    launch(threading.Lock, n_ranks=1, returns=False)


def test_a_time_limit_ends_the_run_and_says_what_the_ranks_did() -> None:
    def stay() -> None:
        if _rank() == 0:
            time.sleep(60)

    begun = time.perf_counter()
    with pytest.raises(RankError, match=r"time limit of 2 s; not finished: rank 0") as caught:
        launch(stay, timeout=2)
    assert time.perf_counter() - begun < 10
    assert "rank 0: is computing, at " in caught.value.message
    assert "in stay: time.sleep(60)" in caught.value.message
    assert "rank 1: has returned" in caught.value.message
    assert caught.value.kind == "timeout"


def test_a_failed_run_keeps_its_timeline_and_shows_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        print("before")
        torch.nn.Linear(2, 2)(torch.ones(2))
        raise ValueError

    with pytest.raises(RankError) as caught:
        launch(work, n_ranks=1)
    assert caught.value.timeline is not None
    assert [event.kind for event in caught.value.timeline] == ["F"]
    assert capsys.readouterr().out == "rank 0 | before\n"


def test_an_interrupt_ends_the_run_at_once_and_the_next_one_works(interrupted: Callable[..., None]) -> None:
    launch(_rank)
    for delay in (0.004, 0.02, 0.05, 0.5):  # while ranks are forked, joined, at work
        begun = time.perf_counter()
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted(delay, launch, time.sleep, 60)
        assert time.perf_counter() - begun < delay + 5
        assert launch(_rank).results == (0, 1)
    assert isinstance(caught.value, Interrupted)
    assert "rank 0: is computing" in str(caught.value)


# Deadlocks


def _both(first: str) -> None:
    x, peer = torch.ones(2), 1 - _rank()
    if first == "send":
        dist.send(x, peer)
        dist.recv(x, peer)
    else:
        dist.recv(x, peer)
        dist.send(x, peer)


@pytest.mark.parametrize("first", ["send", "receive"])
def test_both_sides_doing_the_same_first_is_explained(first: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(DeadlockError) as caught:
        launch(_both, first)
    assert time.perf_counter() - begun < 10
    error = caught.value
    other = {"send": "receive", "receive": "send"}[first]
    assert f"0 waits for 1 to {other}, 1 waits for 0 to {other}. All of them {first} first" in error.message
    call = "send(to" if first == "send" else "recv(from"
    assert f"rank 0: waits in {call} rank 1, tag 0, float32 of shape [2])" in error.message
    assert "in _both" in error.message
    assert [p["peer"] for p in error.pending] == [1, 0]


def test_waiting_for_an_isend_before_the_receive_is_explained() -> None:
    def exchange() -> None:
        x, peer = torch.ones(2), 1 - _rank()
        dist.isend(x, peer).wait()
        dist.recv(x, peer)

    with pytest.raises(DeadlockError, match="An isend is done only when it is received") as caught:
        launch(exchange)
    assert "rank 0: waits in wait for isend(to rank 1, tag 0" in caught.value.message


def test_tags_that_differ_are_named() -> None:
    def exchange() -> None:
        if _rank() == 0:
            dist.send(torch.ones(1), 1, tag=3)
        else:
            dist.recv(torch.ones(1), 0, tag=4)

    with pytest.raises(DeadlockError, match=r"Rank 0 sends with tag 3, but rank 1 receives with tag 4"):
        launch(exchange)


def test_the_timeline_of_a_deadlock_goes_up_to_the_calls_that_never_finished() -> None:
    def work() -> None:
        torch.nn.Linear(2, 2)(torch.ones(2))
        _both("send")

    with pytest.raises(DeadlockError) as caught:
        launch(work)
    timeline = caught.value.timeline
    assert timeline is not None
    for rank in range(2):
        forward, send = timeline.of_rank(rank)
        assert (forward.kind, send.kind, send.peer, send.note) == ("F", "SEND", 1 - rank, "never finished")
        assert send.end - send.start > 1


def test_a_cycle_of_three_names_all() -> None:
    def ring() -> None:
        dist.recv(torch.ones(1), (_rank() + 1) % 3)

    with pytest.raises(DeadlockError, match="0 waits for 1 to send, 1 waits for 2 to send, 2 waits for 0 to send"):
        launch(ring, n_ranks=3)


def test_a_peer_that_has_returned_is_named() -> None:
    def one_too_many() -> None:
        if _rank() == 1:
            dist.recv(torch.ones(1), 0)

    with pytest.raises(DeadlockError, match="Rank 1 waits for rank 0, which has already returned"):
        launch(one_too_many)


def test_a_collective_that_one_rank_misses_is_named() -> None:
    def miss() -> None:
        if _rank() == 0:
            dist.all_reduce(torch.ones(1))
        else:
            dist.recv(torch.ones(1), 0)

    with pytest.raises(DeadlockError, match=r"rank 0 is in all_reduce; rank 1 elsewhere"):
        launch(miss)


def test_a_long_computation_is_no_deadlock() -> None:
    def slow_sender() -> float:
        x = torch.ones(1)
        if _rank() == 0:
            time.sleep(3)
            dist.send(x * 2, 1)
        else:
            dist.recv(x, 0)
        return x.item()

    assert launch(slow_sender).results == (1.0, 2.0)


@pytest.mark.parametrize("how", ["message", "collective"])
def test_a_large_message_on_its_way_is_no_deadlock(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["ppkit.launch.watch"], "_STUCK", 0.05)
    monkeypatch.setattr(sys.modules["ppkit.launch.watch"], "_TICK", 0.01)

    def exchange() -> float:
        x = torch.full((60_000_000,), float(_rank() + 1))  # 240 MB take some tenths of a second
        if how == "collective":
            dist.all_reduce(x)
        elif _rank() == 0:
            dist.send(x, 1)
        else:
            dist.recv(x, 0)
        return x[-1].item()

    assert launch(exchange).results == ((3.0, 3.0) if how == "collective" else (1.0, 1.0))


# Nothing is left


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", ["returns", "raises", "hangs", "forks"])
def test_no_process_file_or_descriptor_is_left(how: str) -> None:
    def work() -> None:
        if how == "raises":
            raise ValueError
        if how == "hangs":
            time.sleep(60)
        if how == "forks" and os.fork() == 0:
            time.sleep(60)

    launch(_rank)  # the server is there, and stays
    descriptors = set(os.listdir("/proc/self/fd"))
    if how in ("raises", "hangs"):
        with pytest.raises(RankError):
            launch(work, timeout=0.3)
    else:
        launch(work)
    assert busy(os.getpid()) == []
    assert set(names(os.getpid())) <= {"ppkit server", "ppkit spare"}
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert not list(Path(tempfile.gettempdir()).glob(f"ppkit-{os.getpid()}-*"))


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_the_ranks_end_with_the_notebook_that_is_killed(tmp_path: Path) -> None:
    import subprocess

    script = tmp_path / "notebook.py"
    script.write_text(
        "import os, time\n"
        "from ppkit.launch import launch\n"
        "def stay(folder):\n"
        "    import torch.distributed as dist\n"
        "    open(f'{folder}/{os.getpid()}.pid', 'w').close()\n"
        "    time.sleep(60)\n"
        f"launch(stay, {str(tmp_path)!r})\n"
    )
    notebook = subprocess.Popen([sys.executable, str(script)])
    deadline = time.perf_counter() + 60
    while len(pids := list(tmp_path.glob("*.pid"))) < 2 and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    children = descendants(notebook.pid)
    assert names(notebook.pid) == ["ppkit rank 0", "ppkit rank 1", "ppkit server"]
    notebook.kill()
    notebook.wait()
    deadline = time.perf_counter() + 5
    while (alive := [pid for pid in children if Path(f"/proc/{pid}").exists()]) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not alive
    assert not list(Path(tempfile.gettempdir()).glob(f"ppkit-{notebook.pid}-*"))


def test_a_fork_server_that_was_killed_is_replaced() -> None:
    from ppkit.launch.starter import starter

    server = starter()
    server._process.kill()  # type: ignore[union-attr]
    server._process.wait()  # type: ignore[union-attr]
    assert launch(_rank).results == (0, 1)


def test_interpreters_of_their_own_serve_where_there_is_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppkit.launch.spawner import SpawnStarter

    monkeypatch.setattr(sys.modules["ppkit.launch"], "starter", SpawnStarter)

    def add() -> float:
        x = torch.ones(1)
        dist.all_reduce(x)
        return x.item()

    assert launch(add).results == (2.0, 2.0)
    with pytest.raises(RankError, match="rank 0 raised ValueError: no"):
        launch(_raise_on_zero)


def _raise_on_zero() -> None:
    if _rank() == 0:
        raise ValueError("no")
    dist.barrier()


def test_a_rank_that_holds_pythons_lock_is_looked_into() -> None:
    def hold() -> None:
        if _rank() == 1:
            ctypes.PyDLL(None).usleep(60_000_000)  # keeps the lock, as much C code does
        dist.recv(torch.ones(1), 1)

    with pytest.raises(RankError, match=r"time limit of 2 s; not finished: ranks 0, 1") as caught:
        launch(hold, timeout=2)
    assert "rank 0: waits in recv(from rank 1" in caught.value.message
    assert "rank 1: is in C code, which has not let Python go on, at " in caught.value.message
    assert "in hold: ctypes.PyDLL(None).usleep(60_000_000)" in caught.value.message


def test_numbers_of_numpy_as_options() -> None:
    run = launch(
        dist.get_rank,
        n_ranks=numpy.int64(3),
        timeout=numpy.float32(30),
        threads=numpy.int64(1),
        seed=numpy.int64(2),
        show=False,
    )
    assert run.results == (0, 1, 2)
    assert type(run.n_ranks) is int


@pytest.mark.parametrize("seed", ["a", None, 1.5, True, 10**30])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(LaunchError, match="a whole number of at most 63 bits"):
        launch(dist.get_rank, seed=seed)
    with pytest.raises(LaunchError, match="a whole number of at most 63 bits"):
        Ranks(2, seed=seed)


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(LaunchError, match="has been deleted; go to another one"):
        launch(dist.get_rank)
    monkeypatch.chdir(tmp_path)
    assert launch(dist.get_rank, show=False).results == (0, 1)
