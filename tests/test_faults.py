"""The table of faults: what goes wrong on ranks, and the error, the rank, and the words that a learner gets for it."""

# ruff: noqa: E501 -- a row is a line, so that the table reads as one
from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from processes import descendants
from torch import nn

from ppkit.errors import DeadlockError, Interrupted, MismatchError, RankError
from ppkit.launch import Ranks, launch

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


class Fault(NamedTuple):
    """One row: what every rank does, and what comes of it."""

    work: Callable[[], Any]
    error: type[RankError]
    rank: int | None
    words: str
    n_ranks: int = 2
    timeout: float | None = None


def _on(rank: int, call: Callable[[], Any], others: Callable[[], Any] = lambda: dist.barrier()) -> Any:
    return call() if dist.get_rank() == rank else others()


def _send(to: int, n: int = 1, tag: int = 0) -> None:
    dist.send(torch.ones(n), to, tag=tag)


def _recv(source: int, n: int = 1, tag: int = 0) -> None:
    dist.recv(torch.empty(n), source, tag=tag)


def _right() -> int:
    return (dist.get_rank() + 1) % dist.get_world_size()


def _raise() -> None:
    raise ValueError("no")


def _in_a_hook() -> None:
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _: _raise())
    y.backward()


def _deep(n: int = 0) -> int:
    return _deep(n + 1)


def _loop() -> None:
    while True:
        pass


def _leave_the_group() -> None:
    dist.destroy_process_group()
    dist.barrier()


def _flood() -> None:
    print("x" * 5_000_000)
    _raise()


def _without_output() -> None:
    os.close(1)
    os.close(2)
    _raise()


def _elsewhere() -> None:
    os.chdir("/")
    _raise()


def _wrong_members() -> None:
    group = dist.new_group([0, 1])
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1), group=group)
    else:
        _recv(0)


def _own_folder() -> Path:
    return Path(os.readlink("/proc/self/fd/1")).parent


def _without_folder() -> None:
    dist.barrier()
    if dist.get_rank() == 1:
        shutil.rmtree(_own_folder())
        _raise()
    dist.barrier()


def _wait_for_each_other_without_folder() -> None:
    dist.barrier()
    if dist.get_rank() == 1:
        shutil.rmtree(_own_folder())
    _recv(1 - dist.get_rank())


def _forget_an_isend() -> None:
    """Lose a message for sure: it is let go of before anybody receives."""
    let_go = _own_folder() / "let go"
    if dist.get_rank() == 0:
        dist.isend(torch.ones(3), 1)
        let_go.touch()
    else:
        while not let_go.exists():
            time.sleep(0.01)
        _recv(0, 3)


def _fork(in_child: Callable[[], Any]) -> None:
    """After ranks have talked: what a child says is not the rank's word."""
    dist.barrier()
    child = os.fork()
    if child == 0:
        in_child()
        return
    os.waitpid(child, 0)
    dist.barrier()
    _raise()


def _import_what_raises() -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "ppkit_raises.py").write_text("import os\nraise ValueError('at import')\n")
    sys.path.insert(0, str(folder))
    try:
        import ppkit_raises  # noqa: F401
    finally:
        shutil.rmtree(folder)


def _leave_the_group_twice() -> None:
    dist.destroy_process_group()
    dist.destroy_process_group()


def _import_that_fails() -> None:
    import ppkit_has_no_such_module  # noqa: F401


FAULTS = {
    # Nobody can move
    "both send first, large messages": Fault(lambda: _send(1 - dist.get_rank(), 500_000), DeadlockError, 0, "All of them send first"),
    "both receive first": Fault(lambda: _recv(1 - dist.get_rank()), DeadlockError, 0, "All of them receive first"),
    "a cycle of three": Fault(lambda: _recv(_right()), DeadlockError, 0, "2 waits for 0 to send", 3),
    "a cycle of four": Fault(lambda: _send(_right()), DeadlockError, 0, "3 waits for 0 to receive", 4),
    "another tag": Fault(lambda: _on(0, lambda: _send(1, tag=3), lambda: _recv(0, tag=4)), DeadlockError, 0, "sends with tag 3, but rank 1 receives with tag 4"),
    "another peer": Fault(lambda: _on(0, lambda: _send(1), lambda: _recv(3 - dist.get_rank())), DeadlockError, 0, "1 waits for 2 to send, 2 waits for 1 to send", 3),
    "a peer that has returned": Fault(lambda: _on(1, lambda: _recv(0), lambda: None), DeadlockError, 1, "rank 0, which has already returned"),
    "an isend that its rank forgets": Fault(_forget_an_isend, DeadlockError, 1, "nobody called wait() on what the isend at "),
    "an irecv that nobody answers": Fault(lambda: _on(1, lambda: dist.irecv(torch.empty(1), 0).wait(), lambda: None), DeadlockError, 1, "wait for irecv(from rank 0"),
    "a wait for an isend too early": Fault(lambda: (dist.isend(torch.ones(1), 1 - dist.get_rank()).wait(), _recv(1 - dist.get_rank())), DeadlockError, 0, "An isend is done only when it is received"),
    "a collective against a receive": Fault(lambda: _on(0, lambda: dist.all_reduce(torch.ones(1)), lambda: _recv(0)), DeadlockError, 0, "rank 0 is in all_reduce"),
    "a barrier that one rank misses": Fault(lambda: _on(1, lambda: None), DeadlockError, 0, "rank 0 is in barrier"),
    "a group whose other member is elsewhere": Fault(_wrong_members, DeadlockError, 0, "rank 0 is in all_reduce", 2),
    # What does not agree
    "collectives in another order": Fault(lambda: _on(0, lambda: dist.all_reduce(torch.ones(1))), MismatchError, 1, "rank 0 in all_reduce; rank 1 in barrier"),
    "other roots": Fault(lambda: dist.broadcast(torch.ones(1), dist.get_rank()), MismatchError, 1, "different roots in broadcast"),
    "a sum of other sizes": Fault(lambda: dist.all_reduce(torch.ones(2 + dist.get_rank())), MismatchError, 1, "[2] and [3]"),
    "a buffer too small": Fault(lambda: _on(0, lambda: _send(1, 10), lambda: _recv(0, 3)), MismatchError, 1, "[10] and [3]"),
    "a buffer of another dtype": Fault(lambda: _on(0, lambda: _send(1), lambda: dist.recv(torch.empty(1, dtype=torch.int32), 0)), MismatchError, 1, "different dtypes"),
    "a buffer too small, from anyone": Fault(lambda: _on(0, lambda: _send(1, 10), lambda: dist.recv(torch.empty(3))), RankError, 1, "Usually the receive buffer and the message differ in size"),
    # Exceptions
    "one raises": Fault(lambda: _on(1, _raise), RankError, 1, "rank 1 raised ValueError: no"),
    "all raise": Fault(_raise, RankError, 0, "rank 0 raised ValueError: no"),
    "a hook raises in the backward": Fault(lambda: _on(1, _in_a_hook), RankError, 1, "in _in_a_hook\n    y.backward()"),
    "a module gets another shape": Fault(lambda: _on(1, lambda: nn.Linear(2, 2)(torch.ones(3))), RankError, 1, "rank 1 raised RuntimeError"),
    "a peer that is not there": Fault(lambda: _on(0, lambda: _send(7)), RankError, 0, "no such rank"),
    "a message to oneself": Fault(lambda: _on(0, lambda: _send(0)), RankError, 0, "rank 0 raised ValueError"),
    "no memory": Fault(lambda: _on(1, lambda: torch.empty(2**60)), RankError, 1, "rank 1 raised RuntimeError"),
    "endless recursion": Fault(lambda: _on(1, _deep), RankError, 1, "rank 1 raised RecursionError"),
    "a module that is missing": Fault(_import_that_fails, RankError, 0, "rank 0 raised ModuleNotFoundError"),
    "a module that raises": Fault(lambda: _on(1, _import_what_raises), RankError, 1, "rank 1 raised ValueError: at import"),
    "a result that cannot travel": Fault(
        lambda: _on(0, lambda: (i for i in range(3)), lambda: None), RankError, 0, "cannot be sent back"
    ),
    "sys.exit": Fault(lambda: _on(1, lambda: sys.exit(2)), RankError, 1, "rank 1 called sys.exit(2)"),
    "the group is left too early": Fault(lambda: _on(1, _leave_the_group), RankError, 1, "rank 1 raised ValueError"),
    "the group is left twice": Fault(lambda: _on(1, _leave_the_group_twice), RankError, 1, "rank 1 raised AssertionError"),
    "the run's folder is deleted": Fault(_without_folder, RankError, 1, "rank 1 raised ValueError: no"),
    "a deadlock, its folder deleted": Fault(_wait_for_each_other_without_folder, DeadlockError, 0, "All of them receive first"),
    "a fork that returns": Fault(lambda: _fork(lambda: None), RankError, 0, "rank 0 raised ValueError: no"),
    "a fork that raises": Fault(lambda: _fork(lambda: sys.exit(7)), RankError, 0, "rank 0 raised ValueError: no"),
    "a flood of output": Fault(lambda: _on(1, _flood), RankError, 1, "rank 1 raised ValueError: no"),
    "no output any more": Fault(lambda: _on(1, _without_output), RankError, 1, "rank 1 raised ValueError: no"),
    "another folder": Fault(lambda: _on(1, _elsewhere), RankError, 1, "rank 1 raised ValueError: no"),
    # Processes that end
    "os._exit(0)": Fault(lambda: _on(1, lambda: os._exit(0)), RankError, 1, "rank 1 ended with exit code 0"),
    "os._exit(3)": Fault(lambda: _on(1, lambda: os._exit(3)), RankError, 1, "rank 1 ended with exit code 3"),
    "abort": Fault(lambda: _on(1, os.abort), RankError, 1, "rank 1 was ended by SIGABRT"),
    "a crash in C code": Fault(lambda: _on(1, lambda: ctypes.string_at(0)), RankError, 1, "rank 1 was ended by SIGSEGV"),
    "SIGKILL": Fault(lambda: _on(1, lambda: os.kill(os.getpid(), signal.SIGKILL)), RankError, 1, "rank 1 was ended by SIGKILL"),
    "SIGTERM": Fault(lambda: _on(1, lambda: os.kill(os.getpid(), signal.SIGTERM)), RankError, 1, "rank 1 was ended by SIGTERM"),
    # Time
    "an endless loop": Fault(lambda: _on(1, _loop), RankError, 0, "rank 1: is computing", 2, 2.0),
    "an endless sleep": Fault(lambda: _on(1, lambda: time.sleep(100)), RankError, 0, "time limit of 1 s", 2, 1.0),
    "Python's lock is held": Fault(lambda: _on(1, lambda: ctypes.PyDLL(None).usleep(60_000_000)), RankError, 0, "rank 1: is in C code", 2, 4.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    fault = FAULTS[name]
    launch(dist.get_rank)
    before = descendants(os.getpid())
    begun = time.perf_counter()
    with pytest.raises(RankError) as caught:
        launch(fault.work, n_ranks=fault.n_ranks, timeout=fault.timeout, show=False)
    assert time.perf_counter() - begun < 30
    error = caught.value
    assert type(error) is fault.error, error.message
    assert error.rank == fault.rank, error.message
    assert fault.words in error.message
    if name not in ("a result that cannot travel", "os._exit(0)", "os._exit(3)", "SIGKILL", "SIGTERM"):  # no line left
        assert "test_faults.py, line " in error.message
    if name == "abort":
        assert "receive buffer" not in error.message
    assert max(map(len, error.message.partition("Afterwards")[2].splitlines()), default=0) < 120
    assert launch(dist.get_rank).results == (0, 1)
    assert len(descendants(os.getpid())) <= len(before) + fault.n_ranks  # the server and its spares


def _hold_the_lock() -> None:
    dist.barrier()
    if dist.get_rank() == 1:
        (_own_folder() / "held").touch()
        ctypes.PyDLL(None).usleep(60_000_000)
    dist.barrier()


def _interrupt_once_held(held: list[Path]) -> None:
    while not (found := list(Path(tempfile.gettempdir()).glob(f"ppkit-{os.getpid()}-*/held"))):
        time.sleep(0.01)
    held += found
    time.sleep(0.2)
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_while_a_rank_holds_pythons_lock_says_where() -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # none in a shell's background job
    held: list[Path] = []
    interrupter = threading.Thread(target=_interrupt_once_held, args=(held,), daemon=True)
    try:
        interrupter.start()
        with pytest.raises(Interrupted) as caught:
            launch(_hold_the_lock, show=False)
    finally:
        signal.signal(signal.SIGINT, handler)
    interrupter.join()
    assert len(held) == 1
    message = str(caught.value)
    assert "rank 0: waits in barrier()" in message
    assert "rank 1: is in C code" in message
    assert "in _hold_the_lock: ctypes.PyDLL(None).usleep(60_000_000)" in message
    assert launch(dist.get_rank).results == (0, 1)


def _delete_all_folders() -> None:
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(_own_folder().parent)


def test_kept_ranks_without_their_folder_are_replaced() -> None:
    with Ranks(2) as ranks:
        ranks.run(_delete_all_folders)
        assert ranks.run(dist.get_rank).results == (0, 1)


def test_a_fork_that_returns_is_not_the_rank() -> None:
    def fork() -> str:
        dist.barrier()
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
        dist.barrier() if child else None
        return "rank" if child else "child"

    assert launch(fork).results == ("rank", "rank")


def test_a_crash_leaves_no_core_file() -> None:
    assert launch(lambda: resource.getrlimit(resource.RLIMIT_CORE)[0]).results == (0, 0)


def test_the_picture_of_a_failure_has_what_the_other_ranks_did_up_to_then() -> None:
    def work() -> None:
        if dist.get_rank() == 0:
            dist.send(nn.Linear(2, 2)(torch.ones(2)).detach(), 1)
            _recv(1)
        else:
            _recv(0, n=2)
            time.sleep(0.2)
            raise ValueError

    with pytest.raises(RankError) as caught:
        launch(work)
    assert caught.value.timeline is not None
    events = [(event.label, event.note) for event in caught.value.timeline.of_rank(0)]
    assert events == [("F0", ""), ("send→1", ""), ("recv←1", "never finished")]
