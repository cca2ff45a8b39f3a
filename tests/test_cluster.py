"""Ranks on the engines of an ipyparallel cluster: what comes back, what goes wrong and how, and what is left."""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import descendants

from ppkit.emulate import Emulation, Link
from ppkit.errors import DeadlockError, Interrupted, LaunchError, MismatchError, RankError
from ppkit.launch import launch
from ppkit.launch.clocks import Reading, on_first_clock
from ppkit.launch.seat import host, routes
from ppkit.observe.fields import Row

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

SEAT = "import importlib; seat = importlib.import_module('ppkit.launch.seat'); "


def started_by(*pids: int) -> set[int]:
    """Return what processes have started, where that can be told."""
    return {found for pid in pids for found in descendants(pid)} if sys.platform == "linux" else set()


def commands(pids: set[int]) -> list[str]:
    """Return the command lines of processes that are still there."""
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200])
        except OSError:
            continue
    return [text for text in found if text]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The client of a cluster of three engines; at the end nothing of it is left."""
    ipyparallel = pytest.importorskip("ipyparallel")
    before = started_by(os.getpid())
    cluster = ipyparallel.Cluster(n=3, profile_dir=str(tmp_path_factory.mktemp("profile")), log_level=40)
    client = cluster.start_and_connect_sync()
    started = started_by(os.getpid()) - before
    try:
        yield client
    finally:
        started |= started_by(*started)  # with what engines have started in the meantime
        client.close()
        cluster.stop_cluster_sync()
    wait_for(lambda: commands(started) == [])


@pytest.fixture
def two_machines(engines: Any) -> Iterator[Any]:
    """The same engines, the last of which says that it is on another machine; to it leads the network's address."""
    if not routes_here():
        pytest.skip("this machine has no address but its own loopback")
    engines[2].execute(SEAT + "real, seat.host = seat.host, lambda: ('elsewhere',)", block=True)
    yield engines
    engines[2].execute("seat.host = real", block=True)


def routes_here() -> bool:
    from ppkit.launch import seat

    return bool(seat._interfaces())


def total(n: int) -> tuple[int, float, str]:
    print("rank", dist.get_rank(), "was here")
    x = torch.full((3,), float(dist.get_rank() + n))
    dist.all_reduce(x)
    if dist.get_rank() == 0:
        dist.send(x, 1)
    elif dist.get_rank() == 1:
        dist.recv(x, 0)
    return dist.get_rank(), float(x[0]), os.environ["LOCAL_RANK"] + os.environ["LOCAL_WORLD_SIZE"]


# What comes back


def test_results_output_and_timeline_are_those_of_a_local_launch(engines: Any) -> None:
    run, local = launch(total, 1, n_ranks=3, cluster=engines), launch(total, 1, n_ranks=3)
    assert run.results == local.results == ((0, 6.0, "03"), (1, 6.0, "13"), (2, 6.0, "23"))
    assert run.output == local.output == tuple(f"rank {rank} was here\n" for rank in range(3))
    assert (run.n_ranks, run.device, run.backend) == (3, "cpu", "gloo")
    assert run.timeline.source == "measured"
    for rank in range(3):
        there, here = ([event.label for event in one.of_rank(rank)] for one in (run.timeline, local.timeline))
        assert there == here
    assert run.timeline.bytes_sent == local.timeline.bytes_sent
    ((send, received),) = run.timeline.messages
    assert send.start <= received.end


def test_what_the_ranks_print_is_shown_under_their_names(engines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    launch(total, 1, n_ranks=2, cluster=engines)
    assert capsys.readouterr().out.splitlines() == ["rank 0 | rank 0 was here", "rank 1 | rank 1 was here"]


def test_a_cells_function_travels_by_value_and_leaves_no_trace_on_the_engine(engines: Any) -> None:
    names: dict[str, Any] = {"__name__": "__main__", "torch": torch, "dist": dist}
    source = (
        "import os\nfactor = 3\nclass Pair:\n    def __init__(self, x): self.x = x * factor\n"
        "def f(y):\n    os.environ['LEFT'] = 'something'\n    return Pair(y + dist.get_rank()).x, os.getpid()\n"
    )
    exec(source, names)
    run = launch(names["f"], 5, n_ranks=3, cluster=engines)
    assert [value for value, _ in run.results] == [15, 18, 21]
    pids = engines[:].apply_sync(os.getpid)
    assert not {pid for _, pid in run.results} & set(pids), "a rank is a process of its own"
    assert engines[:].apply_sync(os.getenv, "LEFT") == [None] * 3
    again = launch(names["f"], 5, n_ranks=3, cluster=engines)
    assert not {pid for _, pid in run.results} & {pid for _, pid in again.results}


def test_a_view_chooses_the_engines_and_their_order(engines: Any) -> None:
    run = launch(lambda: os.getppid(), n_ranks=2, cluster=engines[[2, 0]], show=False)
    again = launch(lambda: os.getppid(), n_ranks=3, cluster=engines, show=False)
    assert run.results == (again.results[2], again.results[0]), "each engine keeps the server that forks its ranks"


def test_training_on_engines_is_training_here(engines: Any) -> None:
    def train() -> list[float]:
        model = torch.nn.Linear(4, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses = []
        for _ in range(3):
            loss = model(torch.rand(8, 4).double() + dist.get_rank()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    run, local = launch(train, n_ranks=2, cluster=engines, show=False), launch(train, n_ranks=2, show=False)
    assert run.results == local.results
    assert run.timeline.n_steps == 3


def test_emulated_devices_on_engines_of_this_machine(engines: Any) -> None:
    def step() -> None:
        x = torch.ones(1)
        if dist.get_rank() == 0:
            dist.send(torch.nn.Linear(1, 1)(x).detach(), 1)
        else:
            dist.recv(x, 0)

    emulation = Emulation(forward=0.03, backward=0.06, link=Link(0.05))
    run = launch(step, n_ranks=2, cluster=engines, emulate=emulation)
    ((send, received),) = run.timeline.messages
    assert run.timeline.source == "measured, emulated"
    assert received.end - send.start >= 0.049, "the link that is emulated takes 50 ms"


def test_what_is_remarked_on_is_in_the_warnings(engines: Any, two_machines: Any) -> None:
    def careless() -> None:
        if dist.get_rank() == 0:
            work = dist.isend(torch.ones(1), 2)
            dist.barrier()
            del work
        else:
            dist.recv(torch.ones(1), 0) if dist.get_rank() == 2 else None
            dist.barrier()

    for cluster in (engines[[0, 1, 2]], two_machines):
        run = launch(careless, n_ranks=3, cluster=cluster, show=False)
        assert [text[:45] for text in run.warnings] == ["rank 0: nobody called wait() on what the isen"]


# Several machines


def test_ranks_of_several_machines_meet_over_the_network(two_machines: Any) -> None:
    def where() -> tuple[str, str, str]:
        total(1)
        store = type(dist.distributed_c10d._get_default_store()).__name__
        return os.environ["GLOO_SOCKET_IFNAME"], os.environ["LOCAL_RANK"] + os.environ["LOCAL_WORLD_SIZE"], store

    run = launch(where, n_ranks=3, cluster=two_machines)
    assert [local for _, local, _ in run.results] == ["02", "12", "01"]
    for interface, _, store in run.results:
        assert interface not in ("lo", "lo0", "")
        assert store != "LogStore"
    ((send, received),) = run.timeline.messages
    assert send.start <= received.end
    assert run.timeline.makespan < 60


def test_the_deadlock_doctor_sees_ranks_of_several_machines(two_machines: Any) -> None:
    def ring() -> None:
        dist.recv(torch.empty(2), (dist.get_rank() + 1) % 3)

    with pytest.raises(DeadlockError, match="A cycle: 0 waits for 1 to send, 1 waits for 2") as caught:
        launch(ring, n_ranks=3, cluster=two_machines)
    assert "dist.recv(torch.empty(2), (dist.get_rank() + 1) % 3)" in str(caught.value)
    seconds = [float(text) for text in re.findall(r"for (\d+\.\d) s, at", str(caught.value))]
    assert len(seconds) == 3
    assert all(1 <= one < 60 for one in seconds), "on this machine's clock"


def test_emulation_between_machines_is_refused(two_machines: Any) -> None:
    with pytest.raises(LaunchError, match="emulate= needs all engines on the notebook's machine"):
        launch(total, 1, n_ranks=3, cluster=two_machines, emulate=Emulation(forward=0.01, backward=0.02))
    assert launch(total, 1, n_ranks=2, cluster=two_machines, emulate=Emulation(0.01, 0.02)).results


def test_a_machine_that_cannot_be_reached_is_named(two_machines: Any) -> None:
    two_machines[2].execute(SEAT + "real_routes, seat.routes = seat.routes, lambda addresses, port: {}", block=True)
    try:
        with pytest.raises(LaunchError, match=r"engine 2 cannot reach engine 0 on .* at [\d.]+.*, port \d+"):
            launch(total, 1, n_ranks=3, cluster=two_machines)
    finally:
        two_machines[2].execute("seat.routes = real_routes", block=True)


def test_clocks_that_drift_apart_are_put_on_the_first() -> None:
    rows = [Row("F", 100.0, 110.0, "forward", held_until=120.0), Row("SEND", 120.0, 121.0, "send")]
    first = on_first_clock(rows, Reading(100.0, 40.0), Reading(200.0, 41.0))
    assert [(row.start, row.end, row.held_until) for row in first] == [
        pytest.approx((60.0, 69.9, 79.8)),
        (pytest.approx(79.8), pytest.approx(80.79), None),
    ]
    assert rows[0].start == 100.0


def test_a_closed_port_leads_nowhere() -> None:
    assert routes(["127.0.0.1"], 9) == {}
    assert host() == host()


# What goes wrong on a rank


def test_an_error_names_rank_and_line_and_the_engines_go_on(engines: Any, two_machines: Any) -> None:
    def fails() -> None:
        print("before")
        dist.barrier()
        if dist.get_rank() == 1:
            raise ValueError("this one")
        dist.barrier()

    for cluster in (engines[[0, 1]], two_machines):
        with pytest.raises(RankError, match="rank 1 raised ValueError: this one") as caught:
            launch(fails, n_ranks=len(cluster), cluster=cluster, show=False)
        error = caught.value
        assert (error.rank, error.kind, error.original_type) == (1, "exception", "ValueError")
        assert 'raise ValueError("this one")' in str(error)
        assert error.output[1].startswith("before\n")
        assert error.timeline is not None
        assert [event.label for event in error.timeline.of_rank(1)] == ["barrier"]
    assert launch(total, 1, n_ranks=3, cluster=two_machines).results[2][1] == 6.0


def test_a_crash_of_a_rank_is_not_one_of_its_engine(engines: Any) -> None:
    def crashes() -> None:
        dist.barrier()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        dist.barrier()

    with pytest.raises(RankError, match="rank 1 was ended by SIGSEGV") as caught:
        launch(crashes, n_ranks=2, cluster=engines)
    assert (caught.value.rank, caught.value.kind) == (1, "signal")
    assert "os.kill(os.getpid(), signal.SIGSEGV)" in str(caught.value)
    assert launch(total, 1, n_ranks=2, cluster=engines).results


def test_a_deadlock_is_explained_and_over(engines: Any) -> None:
    def both_receive() -> None:
        dist.recv(torch.empty(1), 1 - dist.get_rank())

    with pytest.raises(DeadlockError, match="All of them receive first") as caught:
        launch(both_receive, n_ranks=2, cluster=engines)
    assert [call["peer"] for call in caught.value.pending] == [1, 0]


def test_calls_that_do_not_agree_are_explained_on_one_machine(engines: Any) -> None:
    def shapes() -> None:
        dist.all_reduce(torch.zeros(2 + dist.get_rank()))

    with pytest.raises(MismatchError, match=r"mismatch in shape, \[2\] and \[3\]"):
        launch(shapes, n_ranks=2, cluster=engines)


def test_an_endless_loop_ends_by_its_time_limit(engines: Any) -> None:
    def spins() -> None:
        while dist.get_rank() == 1:
            pass
        dist.barrier()

    with pytest.raises(RankError, match=r"time limit of 1\.5 s; not finished: ranks 0, 1") as caught:
        launch(spins, n_ranks=2, cluster=engines, timeout=1.5)
    assert caught.value.kind == "timeout"
    assert "rank 0: waits in barrier()" in str(caught.value)
    assert re.search(r"rank 1: is computing, at .*: (while|pass)", str(caught.value))
    assert launch(total, 1, n_ranks=2, cluster=engines).results


def test_an_interrupt_ends_the_ranks_and_says_what_they_did(engines: Any, interrupted: Callable[..., None]) -> None:
    launch(total, 1, n_ranks=2, cluster=engines)  # an engine's first run takes seconds
    with pytest.raises(Interrupted, match=r"rank 0: is computing, at .*: time.sleep\(100\)"):
        interrupted(1.0, lambda: launch(lambda: time.sleep(100), n_ranks=2, cluster=engines))
    assert launch(total, 1, n_ranks=2, cluster=engines).results


def test_engines_end_the_ranks_of_a_notebook_that_is_gone(engines: Any) -> None:
    from ppkit.launch import cluster as module

    engines[:].execute(SEAT + "patience, seat._PATIENCE = seat._PATIENCE, 1.0", block=True)
    try:
        ranks = module.Engines(engines, 2, "cpu", None, None)
        begun = begin_alone(ranks)
        pids = [int(pid) for pid in begun]
        deadline = time.monotonic() + 15
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        engines[:].execute("seat._PATIENCE = patience", block=True)


def begin_alone(ranks: Any) -> list[str]:
    """Start ranks that note their process and sleep, and ask no more."""
    from ppkit.launch.prepare import make_plan, pack_checked, write_run

    def note(folder: str) -> None:
        Path(folder, f"pid.{dist.get_rank()}").write_text(str(os.getpid()))
        time.sleep(100)

    with pytest.MonkeyPatch.context() as patch, ranks.folder() as folder:
        call, sources = pack_checked(note, (str(folder),), 2)
        plan = make_plan(
            ranks.placement, 2, sources, folder / "store",
            emulate=None, observe=True, threads=None, seed=0, returns=True,
        )  # fmt: skip
        write_run(folder, plan, call)
        ranks.start(folder, 2)
        paths = [folder / f"pid.{rank}" for rank in range(2)]
        deadline = time.monotonic() + 30
        while not all(path.exists() and path.read_text() for path in paths) and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = [path.read_text() for path in paths]
        patch.setattr(type(ranks), "call", lambda *_args: ranks._client[0].apply_async(int))  # no farewell
    return pids


# What no run can be made of


@pytest.mark.parametrize("n_ranks", [0, 4, True, "2"])
def test_there_is_an_engine_for_every_rank(engines: Any, n_ranks: Any) -> None:
    with pytest.raises(LaunchError, match=f"n_ranks={n_ranks!r}, and the cluster has 3 engines"):
        launch(total, 1, n_ranks=n_ranks, cluster=engines)


def test_what_is_no_cluster_and_no_cpu(engines: Any) -> None:
    with pytest.raises(LaunchError, match=r"cluster=3: an ipyparallel\.Client"):
        launch(total, 1, cluster=3)
    with pytest.raises(LaunchError, match="device='cuda': on a cluster ranks compute on the CPU"):
        launch(total, 1, cluster=engines, device="cuda")


def test_without_ipyparallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipyparallel", None)
    with pytest.raises(LaunchError, match=r"cluster= needs ipyparallel: pip install \"ppkit\[cluster\]\""):
        launch(total, 1, cluster=object())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.modules['ppkit.launch.seat'] = None", r"engine 1 cannot import ppkit \(ModuleNotFoundError: .*install"),
        ("seat.ppkit = type('', (), {'__version__': '0.0.1'})", r"engine 1 on .* has ppkit 0\.0\.1, and this notebook"),
        ("seat.platform = type('', (), {'python_version': lambda: '3.8.1', 'node': lambda: 'old'})",
         rf"engine 1 on old runs Python 3\.8\.1, and this notebook {re.escape(platform.python_version())}"),
        ("importlib.util.find_spec = lambda name: None", "engine 1 on .* has no torch; install it"),
        ("seat.starter = lambda: 1 / 0", "engine 1 raised ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_an_engine_that_cannot_be_a_rank_says_why(engines: Any, code: str, message: str) -> None:
    saved = "import sys, importlib.util; kept = dict(vars(seat)), importlib.util.find_spec; "
    engines[1].execute(SEAT + saved + code, block=True)
    try:
        with pytest.raises(LaunchError, match=message):
            launch(total, 1, n_ranks=2, cluster=engines)
    finally:
        engines[1].execute(
            "sys.modules['ppkit.launch.seat'] = seat; vars(seat).update(kept[0]); importlib.util.find_spec = kept[1]",
            block=True,
        )
    assert launch(total, 1, n_ranks=2, cluster=engines).results


def test_an_engine_at_work_is_not_waited_for(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppkit.launch import cluster as module

    monkeypatch.setattr(module, "_ANSWER", 0.5)
    monkeypatch.setattr(module.Engines._each, "__defaults__", (0.5,))
    busy = engines[1].apply_async(time.sleep, 3)
    with pytest.raises(LaunchError, match=r"engine 1 has not answered for 0\.5 s: it is at work on something else"):
        launch(total, 1, n_ranks=2, cluster=engines)
    busy.wait(20)
    assert launch(total, 1, n_ranks=2, cluster=engines).results


# Last, since they end an engine


def test_an_engine_that_dies_during_a_run_is_named(engines: Any) -> None:
    victim = engines[2].apply_sync(os.getpid)
    children = started_by(victim)

    def kill_engine(pid: int) -> None:
        dist.barrier()
        if dist.get_rank() == 2:
            os.kill(pid, signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(RankError, match="rank 2 raised EngineError: its engine is lost") as caught:
        launch(kill_engine, victim, n_ranks=3, cluster=engines)
    assert caught.value.rank == 2
    wait_for(lambda: commands(children) == [])
    assert launch(total, 1, n_ranks=2, cluster=engines).results


def test_a_dead_engine_is_none(engines: Any) -> None:
    wait_for(lambda: engines.ids == [0, 1])
    with pytest.raises(LaunchError, match="the cluster has 2 engines"):
        launch(total, 1, n_ranks=3, cluster=engines)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()
