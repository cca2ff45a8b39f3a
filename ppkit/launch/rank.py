"""The life of one rank: join the others, call the learner's function under observation, report."""

from __future__ import annotations

import _thread
import faulthandler
import importlib.util
import io
import linecache
import os
import pickle
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ppkit.emulate import Emulation
from ppkit.launch.board import Board
from ppkit.launch.packing import pack
from ppkit.launch.reporter import Reporter
from ppkit.observe import Undo, leave_alone, observing

if TYPE_CHECKING:
    from ppkit.observe.recorder import Recorder

# All that a training step touches for the first time is touched before the fork: imports would cost every
# rank of every run up to seconds (`torch._dynamo` alone is some 820 modules).
_PRELOAD = (
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "torch.distributed.pipelining",
    "torch.distributed.optim",
    "torch.nn.parallel",
    "torch.utils.checkpoint",
    "torch.utils.data",
    "torch.utils.data.distributed",
    "ppkit.launch.store",
    "ppkit.observe.messages",
    "ppkit.observe.modules",
    "ppkit.emulate",
    "ppkit.models",
    "ppkit.data",
    "ppkit.builders",
    "ppkit.simulate",
    "pydoc_data.topics",
)
_PRELOAD_WHERE_THERE = ("torch.profiler._cupti_monitor",)  # not every release of torch has it
RANK_MARK = "PPKIT_RANK"  # in the environment of every rank
LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # the interface by the name that each system gives it
_FOREVER = timedelta(days=7)  # gloo's own limit never ends a run; the watcher does, with a reason


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


class _Observation:
    """What `preload` has wrapped, for the one run that this process will live for."""

    recorder: Recorder
    undo: Undo


_observation = _Observation()
_stores: list[Any] = []  # torch keeps the C++ side of a store alone


def preload() -> None:
    """Import and touch, before any fork, what a training step needs."""
    for name in _PRELOAD:
        importlib.import_module(name)
    for name in _PRELOAD_WHERE_THERE:
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    import torch

    from ppkit.observe.recorder import Recorder

    # First uses import modules and set up kernels too. Tiny tensors and one thread: no thread pool may exist
    # at a fork. The graph stays on the CPU, which autograd walks in the calling thread.
    torch.set_num_threads(1)
    _train_a_little()
    with suppress(AttributeError):  # `init_process_group` empties these caches; in a rank that would copy their pages
        torch._dynamo.trace_rules.clear_lru_cache()
    _observation.recorder = Recorder()
    _observation.undo = observing(_observation.recorder)


def _train_a_little() -> None:
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 4))
    for optimizer in (
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        torch.optim.Adam(model.parameters()),
    ):
        nn.functional.cross_entropy(model(torch.ones(2, 4)), torch.zeros(2, dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()
    pickle.loads(pack(model.state_dict())[0])


def rehearse() -> Iterator[None]:
    """Do in a spare what every rank does first, so that the pages it writes to are its own when a run comes.

    Nothing of it can be seen afterwards: the process group is a group of one and gone, seeds are set by each run.
    """
    import torch
    from torch import distributed as dist
    from torch._C import _distributed_c10d as c10d

    yield
    os.environ.update(_loopback())
    store = c10d.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=_FOREVER)
    cast(Any, dist.group.WORLD).allreduce([torch.ones(1)]).wait()  # not by a call that is observed
    dist.destroy_process_group()
    yield
    # Modules and optimizers are observed, for nobody; CUDA must not be touched.
    _observation.recorder.begin(0, 1, cast(Board, None), None, on_gpu=False)
    _train_a_little()


def run_rank(rank: int, run_dir: Path, control: Connection) -> None:
    """Be rank `rank` of the run described in `run_dir`, until the notebook says or signs off.

    Sends ("result", pickle, events), or ("error", report), and answers ("report",) at any time.
    """
    _redirect_output(run_dir / f"output.{rank}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stop button signals the whole group; the notebook decides
    faults = (run_dir / f"fault.{rank}").open("w")  # open as long as the process
    faulthandler.enable(faults)  # of all threads: an abort in gloo's own thread is about the learner's line
    reporter = Reporter(rank, control)
    _thread.start_new_thread(reporter.answer, ())  # `Thread.start` waits until it runs, with all cores taken
    try:
        plan: Plan = pickle.loads((run_dir / "plan").read_bytes())
        result = _call(rank, plan, run_dir, reporter)
        try:
            data = pack(result)[0]
        except Exception as error:
            raise TypeError(
                f"the value that rank {rank} returned, a {type(result).__name__}, cannot be sent back: "
                f"{type(error).__name__}: {error}. Return tensors, numbers, strings or containers of them."
            ) from None
    except BaseException as error:
        reporter.fail(error)
    else:
        reporter.succeed(data)
    _flush()
    reporter.finished.wait()  # stay, so that the other ranks' connections do: the notebook says when to go
    os._exit(0)


def _call(rank: int, plan: Plan, run_dir: Path, reporter: Reporter) -> Any:
    environment = plan.environment | _torchrun_variables(rank, plan)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(dict(environment.items() - os.environ.items()))
    with suppress(FileNotFoundError):
        os.chdir(plan.directory)
    sys.path[:] = plan.path
    for name, lines in plan.sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)

    import torch
    from torch import distributed as dist
    from torch._C import _distributed_c10d as c10d

    torch.set_num_threads(plan.threads)
    if plan.devices:
        torch.cuda.set_device(plan.devices[rank])
        torch.manual_seed(plan.seed)
    else:
        torch.default_generator.manual_seed(plan.seed)  # the other looks for every kind of device, for 5 ms
    random.seed(plan.seed)
    if plan.observe:
        _observation.recorder.begin(rank, plan.n_ranks, Board(run_dir / "board", plan.n_ranks), plan.emulation)
        reporter.recorder = _observation.recorder
    else:
        leave_alone(_observation.undo)
    from ppkit.launch.store import LogStore

    fn, args = pickle.loads((run_dir / "call").read_bytes())
    # NCCL asks the store from threads of its own, which Python could keep waiting.
    own = sys.platform != "win32" and plan.backend != "nccl"
    store: Any = LogStore(run_dir / "store") if own else c10d.FileStore(str(run_dir / "store"), plan.n_ranks)
    _stores.append(store)
    # CPU tensors go over gloo on GPUs too, so that the same function runs on both.
    backend = "cpu:gloo,cuda:nccl" if plan.backend == "nccl" else plan.backend
    dist.init_process_group(backend, store=store, rank=rank, world_size=plan.n_ranks, timeout=_FOREVER)
    result = fn(*args)
    return result if plan.returns else None


def _torchrun_variables(rank: int, plan: Plan) -> dict[str, str]:
    """What torchrun sets: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables."""
    variables: dict[str, object] = {
        "RANK": rank,
        "WORLD_SIZE": plan.n_ranks,
        "LOCAL_RANK": plan.devices[rank] if plan.devices else rank,
        "LOCAL_WORLD_SIZE": plan.n_ranks,
        RANK_MARK: rank,
    }
    if not plan.devices:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # so that `torch.cuda.is_available()` says what the run uses
    return {name: str(value) for name, value in variables.items()} | _loopback()


def _loopback() -> dict[str, str]:
    """Let nothing listen where other machines, or their users, could reach it."""
    name = LOOPBACK.get(sys.platform)
    return dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), name) if name else {}


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
