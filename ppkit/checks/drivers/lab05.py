"""Lab 05 on a rank: calls the learner's functions with ppkit's own parts around them, and notes what came of it."""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ppkit.checks.drivers.lab01 import gradients, number, shown
from ppkit.checks.oracle import LEARNING_RATE, MOMENTUM
from ppkit.checks.oracle_gpipe import Cut
from ppkit.checks.oracle_replicas import Net, state
from ppkit.observe import operations
from ppkit.observe.fields import NEVER_WAITED, Row

__all__ = ["accuracies", "collectives", "loop", "measure", "on_devices", "replicas", "rows", "unweighted"]

Function = Callable[..., Any]


def collectives() -> list[Row]:
    """The collectives that this rank has begun so far."""
    recorder = operations.recorder
    return [] if recorder is None else [row for row in recorder.rows() if row.kind == "COLLECTIVE"]


def tensor_bytes(row: Row) -> int:
    """Bytes of the tensor of an all-reduce, of which a ring sends 2 (n - 1) / n."""
    n_ranks = dist.get_world_size()
    return round(row.nbytes * n_ranks / (2 * (n_ranks - 1)))


# Task 1


def measure(model: nn.Module, microbatches: Sequence[tuple[Tensor, Tensor]], bucket_bytes: int) -> None:
    """One step of ppkit's own, which reduces in the last micro-batch's backward."""
    from ppkit.data_parallel import GradientReducer  # here alone: the other checks need not wait for it

    reducer = GradientReducer(model, bucket_bytes=bucket_bytes)
    for i, (inputs, targets) in enumerate(microbatches):
        loss = cross_entropy(model(inputs), targets) / len(microbatches)
        if i < len(microbatches) - 1:
            with reducer.no_sync():
                loss.backward()
        else:
            loss.backward()


def unweighted(model: nn.Module, shards: Cut) -> dict[str, Tensor | None]:
    """The gradients of PyTorch's own DistributedDataParallel, with the plain mean loss of each shard."""
    rank = dist.get_rank()
    cross_entropy(DistributedDataParallel(model)(shards.inputs[rank]), shards.targets[rank]).backward()
    return gradients(model)


# Task 2


def rows(epoch_rows: Function, sizes: Sequence[int], n_epochs: int) -> list[list[Any]]:
    """This rank's rows, for several data sets and epochs; each rank has other random numbers before."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    random.seed(rank)
    torch.manual_seed(1000 + rank)
    return [[_whole(epoch_rows(size, epoch, rank, n_ranks)) for epoch in range(n_epochs)] for size in sizes]


def _whole(returned: Any) -> list[int] | str | None:
    if isinstance(returned, Tensor):
        returned = returned.tolist()
    if returned is None or returned is Ellipsis:
        return None
    try:
        return [operator.index(row) for row in returned]
    except TypeError:
        return shown(returned)


def accuracies(accuracy: Function, right: Sequence[Sequence[bool]]) -> list[Any]:
    """What the learner's function says on this rank, for several data sets.

    Args:
        accuracy: the learner's.
        right: for each data set, whether the model is right, by row.
    """
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    seen = []
    for whole in right:
        padded = [*whole, *whole[: -len(whole) % n_ranks]]
        seen.append(number(accuracy(torch.tensor(padded[rank::n_ranks]), len(whole), rank, n_ranks)))
    return seen


# Task 3


def loop(train: Function, model: nn.Module, batches: Sequence[Cut]) -> dict[str, Any]:
    """Run the learner's loop; note what it returns, the weights, its rows, and the use of a wrapper."""
    calls: dict[str, float] = {"made": 0, "called": 0, "rows": 0, "images": 0.0}
    plain = DistributedDataParallel.__init__, DistributedDataParallel.forward

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        calls["made"] += 1
        plain[0](self, *args, **kwargs)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["called"] += 1
        return plain[1](self, *args, **kwargs)  # type: ignore[no-untyped-call]  # torch has no types here

    def count(_model: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls["rows"] += len(inputs[0]) if torch.is_grad_enabled() else 0
        calls["images"] += float(inputs[0].sum())  # by which rows are told apart

    handle = model.register_forward_pre_hook(count)
    DistributedDataParallel.__init__, DistributedDataParallel.forward = made, called  # type: ignore[method-assign]
    try:
        returned = train(model, [(torch.cat(batch.inputs), torch.cat(batch.targets)) for batch in batches])
    finally:
        handle.remove()
        DistributedDataParallel.__init__, DistributedDataParallel.forward = plain  # type: ignore[method-assign]
    losses = [number(loss) for loss in returned] if isinstance(returned, (list, tuple, Tensor)) else shown(returned)
    return {"losses": losses, "weights": state(model), "bytes": sum(map(tensor_bytes, collectives())), **calls}


# Task 4

Call = tuple[int, Tensor]  # of a replica: its rows, and the parameter with which it computed


class Probe(Net):
    """Notes who is called with how many rows; copies of it note it in the same place."""

    seen: ClassVar[list[Call]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[N, 64]`` to scores ``[N, 10]``."""
        self.seen.append((len(images), self.last.weight.detach()))  # alive, so that no other takes its place in memory
        return super().forward(images)


def on_devices(step: Function, settings: Sequence[tuple[tuple[Tensor, Tensor], int]]) -> list[dict[str, Any]]:
    """Run the learner's step for several batches and numbers of devices, all of them the CPU."""
    found = []
    for (images, labels), n_devices in settings:
        model = Probe()
        before = state(model)
        Probe.seen.clear()
        loss = step(model, images.clone(), labels.clone(), [torch.device("cpu")] * n_devices)
        found.append(
            {
                "loss": number(loss),
                "gradients": gradients(model),
                "moved": any(not torch.equal(before[name], one) for name, one in state(model).items()),
                "rows": [n_rows for n_rows, _ in Probe.seen],
                "memories": len({weight.data_ptr() for _, weight in Probe.seen}),
            }
        )
    return found


# Task 5


def replicas(
    begin_alike: Function, replica_step: Function, models: Sequence[nn.Module], batches: Sequence[Cut]
) -> dict[str, Any]:
    """Let the learner's functions begin with a model of this rank's own, and train it on this rank's shards."""
    rank = dist.get_rank()
    model = models[rank]
    begin_alike(model)
    seen: dict[str, Any] = {"begun": copy.deepcopy(model.state_dict()), "steps": []}
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    taken: list[dict[str, Tensor | None]] = []
    optimizer.register_step_pre_hook(lambda *_: taken.append(gradients(model)))
    for batch in batches:
        taken.clear()
        before = len(collectives())
        loss = replica_step(model, optimizer, batch.inputs[rank], batch.targets[rank], batch.n_rows)
        new = collectives()[before:]
        step = {
            "loss": number(loss),
            "taken": list(taken),
            "left": gradients(model),
            "weights": state(model),
            "bytes": sum(map(tensor_bytes, new)),
            "unwaited": sum(row.note == NEVER_WAITED for row in new),
        }
        seen["steps"].append(step)
    return seen
