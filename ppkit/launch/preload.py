"""What is done before there is a rank: imports before the fork, and a rehearsal in spares after it."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from ppkit.launch.board import Board
from ppkit.launch.packing import pack
from ppkit.observe import Undo, observing

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
    "ppkit.launch.reset",
    "ppkit.launch.store",
    "ppkit.observe.messages",
    "ppkit.observe.modules",
    "ppkit.emulate",
    "ppkit.models",
    "ppkit.data",
    "ppkit.builders",
    "ppkit.simulate",
    "ppkit.runtime",
    "ppkit.bridge",
    "ppkit.pairing",
    "pydoc_data.topics",
)
_PRELOAD_WHERE_THERE = ("torch.profiler._cupti_monitor",)  # not every release of torch has it
LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # the interface by the name that each system gives it
FOREVER = timedelta(days=7)  # gloo's own limit never ends a run; the watcher does, with a reason


class Observation:
    """What `preload` has wrapped."""

    recorder: Recorder
    undo: Undo


class _Unread:
    """Stands for the board of a run where there is none."""

    def step_taken(self, rank: int) -> None:
        """Nobody counts."""


observation = Observation()


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
    observation.recorder = Recorder()
    observation.undo = observing(observation.recorder)


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
    os.environ.update(loopback())
    store = c10d.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=FOREVER)
    cast(Any, dist.group.WORLD).allreduce([torch.ones(1)]).wait()  # not by a call that is observed
    dist.destroy_process_group()
    yield
    # Modules and optimizers are observed, for nobody; CUDA must not be touched.
    observation.recorder.begin(0, 1, cast(Board, _Unread()), None, on_gpu=False)
    _train_a_little()


def loopback() -> dict[str, str]:
    """Let nothing listen where other machines, or their users, could reach it."""
    name = LOOPBACK.get(sys.platform)
    return dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), name) if name else {}
