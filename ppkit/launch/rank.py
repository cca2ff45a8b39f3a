"""The life of one rank: join the others, call the learner's function under observation, report."""

from __future__ import annotations

import _thread
import io
import linecache
import os
import pickle
import random
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppkit.emulate import Emulation
from ppkit.launch.board import Board
from ppkit.launch.faults import report_faults
from ppkit.launch.packing import pack
from ppkit.launch.preload import FOREVER, loopback, observation
from ppkit.launch.reporter import Reporter
from ppkit.observe import leave_alone
from ppkit.units import kind_of

if TYPE_CHECKING:
    from ppkit.launch.reset import Baseline

CALL_FILE = "call"  # in the folder of a run: its plan, then what to call
RANK_MARK = "PPKIT_RANK"  # in the environment of every rank
_RENEW_PATIENCE = 0.002  # seconds in which the notebook goes on with the last run's result


@dataclass(frozen=True)
class Plan:
    """What every rank of a run is told.

    Attributes:
        n_ranks: how many ranks there are.
        backend: "gloo" or "nccl".
        devices: GPU of each rank; empty on the CPU.
        threads: threads that torch may use in a rank.
        seed: seeds `torch` and `random` on every rank alike.
        returns: whether to send back what the function returns.
        observe: whether to record events.
        emulation: durations to emulate, or None.
        environment, directory, path: the notebook's, at the time of the launch.
        sources: lines of the cells that the function comes from.
        store: file by which the ranks find each other, or "tcp://HOST:PORT".
        kept: whether more runs may follow on the same processes.
        board: file of the board that all ranks share; by default it lies in the folder of the run.
        local: this rank's number on its machine, and how many are there; None where all are on one machine.
    """

    n_ranks: int
    backend: str
    devices: tuple[int, ...]
    threads: int
    seed: int
    returns: bool
    observe: bool
    emulation: Emulation | None
    environment: dict[str, str] = field(repr=False)
    directory: str = "."
    path: tuple[str, ...] = ()
    sources: dict[str, list[str]] = field(default_factory=dict, repr=False)
    store: str = ""
    kept: bool = False
    board: str = ""
    local: tuple[int, int] | None = None


class _Kept:
    """What outlives a run on a rank that is kept; on others, what must live as long as the run."""

    plan: Plan | None = None
    baseline: Baseline | None = None
    store: Any = None  # torch keeps the C++ side of a store alone


_kept = _Kept()


def run_rank(rank: int, run_dir: Path, control: Connection) -> None:
    """Be rank `rank` of the run described in `run_dir`, until the notebook says or signs off.

    Sends ("result", pickle, events), or ("error", report), and answers ("report",) at any time; "renew" and "run" let
    it serve another run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stop button signals the whole group; the notebook decides
    reporter = Reporter(rank, control)
    _write_into(run_dir, rank)
    _thread.start_new_thread(reporter.answer, ())  # `Thread.start` waits until it runs, with all cores taken
    _run_once(rank, run_dir, reporter)
    while (order := reporter.order())[0] != "finish":  # stay, so that the other ranks' connections do
        if order[0] == "renew":
            last, run_dir = run_dir, Path(order[1])
            reporter.renewed(_renew(rank, last, run_dir, *order[2:]))
        else:
            _run_once(rank, run_dir, reporter)
    os._exit(0)


def _write_into(run_dir: Path, rank: int) -> None:
    """Leave what this rank prints, and where it crashes, in the folder of a run."""
    _redirect_output(run_dir / f"output.{rank}")
    report_faults(run_dir / f"fault.{rank}")


def read_run(run_dir: Path) -> tuple[Plan, bytes]:
    """Return the plan of a run, and what to call, packed."""
    with (run_dir / CALL_FILE).open("rb") as file:
        return pickle.load(file), file.read()


def _run_once(rank: int, run_dir: Path, reporter: Reporter) -> None:
    own = os.getpid()
    try:
        plan, call = read_run(run_dir)
        result = _call(rank, plan, call, run_dir, reporter)
        _end_fork(own)
        try:
            data = pack(result)[0]
        except Exception as error:
            raise TypeError(
                f"the value that rank {rank} returned, {kind_of(result)}, cannot be sent back: "
                f"{type(error).__name__}: {error}. Return tensors, numbers, strings or containers of them."
            ) from None
    except BaseException as error:
        _end_fork(own, error)
        reporter.fail(error)
    else:
        reporter.succeed(data)
    _flush()


def _end_fork(own: int, error: BaseException | None = None) -> None:
    """End a process that the learner's function has forked: it is not the rank, and has no word in its result."""
    if os.getpid() != own:
        if error is not None:
            traceback.print_exception(error)
        _flush()
        os._exit(error is not None)


def _renew(rank: int, last: Path, run_dir: Path, store: str, keep_group: bool) -> str:
    """Be as before the first run, and ready for the next; return why that cannot be, or ""."""
    plan, baseline = _kept.plan, _kept.baseline
    if plan is None or baseline is None:
        return "it was not to be kept"
    time.sleep(_RENEW_PATIENCE)
    try:
        _redirect_output(Path(os.devnull))  # what objects of the last run print at their end is of no run
        baseline.restore()
        _set_environment(rank, plan)
        _leave_groups(keep_group)
        _join(rank, plan, store)
        _move(rank, last, run_dir)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _move(rank: int, last: Path, run_dir: Path) -> None:
    """Move from the folder of the last run, which nobody reads any more, to that of the next."""
    run_dir.mkdir(mode=0o700, exist_ok=True)  # whoever comes first makes it
    _write_into(run_dir, rank)
    if rank == 0:
        shutil.rmtree(last, ignore_errors=True)


def _call(rank: int, plan: Plan, call: bytes, run_dir: Path, reporter: Reporter) -> Any:
    last = _kept.plan
    if last is None or plan.environment != last.environment:  # to the last one's it was put back
        _set_environment(rank, plan)
    with suppress(FileNotFoundError):
        os.chdir(plan.directory)
    sys.path[:] = plan.path
    for name, lines in plan.sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)

    import torch

    _kept.plan = plan
    if plan.observe:
        board = Board(Path(plan.board or run_dir / "board"), plan.n_ranks)
        observation.recorder.begin(rank, plan.n_ranks, board, plan.emulation)
        reporter.recorder = observation.recorder
    elif last is None:
        leave_alone(observation.undo)
    if plan.kept and last is None:
        from ppkit.launch.reset import Baseline

        _kept.baseline = Baseline()
    torch.set_num_threads(plan.threads)
    if plan.devices:
        torch.cuda.set_device(plan.devices[rank])
        torch.manual_seed(plan.seed)
    else:
        torch.default_generator.manual_seed(plan.seed)  # the other looks for every kind of device, for 5 ms
    random.seed(plan.seed)
    fn, args = pickle.loads(call)
    _join(rank, plan, plan.store)
    if plan.local is not None:
        from ppkit.launch.clocks import read_clock

        reporter.tell_clock(read_clock(rank, plan.n_ranks))
    result = fn(*args)
    return result if plan.returns else None


def _join(rank: int, plan: Plan, path: str) -> None:
    """Be in a process group with the other ranks; one that is there is kept."""
    from torch import distributed as dist
    from torch._C import _distributed_c10d as c10d

    if dist.is_initialized():
        return
    if path.startswith("tcp://"):
        host, _, port = path.removeprefix("tcp://").rpartition(":")
        _kept.store = c10d.TCPStore(host, int(port), plan.n_ranks, is_master=False, wait_for_workers=False)
    # NCCL asks the store from threads of its own, which Python could keep waiting.
    elif sys.platform == "win32" or plan.backend == "nccl":
        _kept.store = c10d.FileStore(path, plan.n_ranks)
    else:
        from ppkit.launch.store import LogStore

        _kept.store = LogStore(Path(path))
    # CPU tensors go over gloo on GPUs too, so that the same function runs on both.
    backend = "cpu:gloo,cuda:nccl" if plan.backend == "nccl" else plan.backend
    dist.init_process_group(backend, store=_kept.store, rank=rank, world_size=plan.n_ranks, timeout=FOREVER)


def _leave_groups(keep_default: bool) -> None:
    """Leave the groups that the learner has made, and the default one unless it is kept."""
    from torch import distributed as dist

    if not dist.is_initialized():
        return  # the learner has left them all
    if not keep_default:
        dist.destroy_process_group()
        return
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def _set_environment(rank: int, plan: Plan) -> None:
    environment = plan.environment | _torchrun_variables(rank, plan)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(dict(environment.items() - os.environ.items()))


def _torchrun_variables(rank: int, plan: Plan) -> dict[str, str]:
    """What torchrun sets: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables."""
    local_rank, n_local = plan.local or (rank, plan.n_ranks)
    variables: dict[str, object] = {
        "RANK": rank,
        "WORLD_SIZE": plan.n_ranks,
        "LOCAL_RANK": plan.devices[rank] if plan.devices else local_rank,
        "LOCAL_WORLD_SIZE": n_local,
        RANK_MARK: rank,
    }
    if not plan.devices:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # so that `torch.cuda.is_available()` says what the run uses
    found = {name: str(value) for name, value in variables.items()}
    return found if plan.local else found | loopback()  # other machines are reached by another interface


def _redirect_output(path: Path) -> None:
    """Send descriptors 1 and 2, and so C++ messages too, to a file: it never fills up and survives a crash."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target in (1, 2):
        os.dup2(fd, target)
    os.close(fd)
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "line_buffering": True}
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True, **options)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True, **options)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
