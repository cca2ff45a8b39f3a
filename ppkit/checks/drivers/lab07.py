"""Lab 07 on a rank: calls the learner's functions, and notes what came of it."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import CellType, FunctionType, ModuleType
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppkit.checks.drivers.lab01 import gradients, shown
from ppkit.checks.drivers.lab02 import inputs_of, run_steps
from ppkit.checks.oracle_gpipe import Cut
from ppkit.checks.reference import skips as reference
from ppkit.checks.reference.gpipe import microbatch_loss

__all__ = ["Join", "Saved", "cuts", "first_rank", "recompute", "train", "verdicts"]

Function = Callable[..., Any]
Case = tuple[list[float], int]  # costs of the layers, number of stages


class Join(nn.Module):
    """A last stage that takes its input and the skip."""

    def __init__(self, width: int, skip_width: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width + skip_width, n_classes, dtype=torch.float64)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Give the scores of the classes."""
        scores: Tensor = self.linear(torch.cat([x, skip], dim=1))
        return scores


# What needs no second rank


def cuts(cut_layers: Function, cases: Sequence[Case], impossible: Sequence[Case] = ()) -> dict[str, list[Any]]:
    """The learner's cut of every case; words for what is no list of whole numbers, and for errors."""
    found = [_whole_numbers(cut_layers(list(costs), n_stages)) for costs, n_stages in cases]
    refused = [_outcome(cut_layers, list(costs), n_stages) for costs, n_stages in impossible]
    return {"cuts": found, "refused": refused}


def _whole_numbers(value: Any) -> Any:
    try:
        return [operator.index(one) for one in value]
    except TypeError:
        return shown(value)


def verdicts(find_skips: Function, right: Sequence[Any], broken: Sequence[Any]) -> dict[str, list[Any]]:
    """What the learner's function says of each arrangement of skips."""
    return {
        "right": [_outcome(find_skips, _fresh(stages), only=(ValueError,)) for stages in right],
        "broken": [_outcome(find_skips, _fresh(stages)) for stages in broken],
    }


def _fresh(stages: Any) -> Any:
    return [list(uses) for uses in stages]


def _outcome(function: Function, *args: Any, only: tuple[type[Exception], ...] = (Exception,)) -> tuple[str, Any]:
    """What a call returned, or the kind and the text of its error."""
    try:
        returned = function(*args)
    except NotImplementedError:
        raise
    except only as error:
        kind = "ValueError" if isinstance(error, ValueError) else type(error).__name__
        return kind, str(error)
    if isinstance(returned, dict):
        return "", {str(name): tuple(ends) if isinstance(ends, list) else ends for name, ends in returned.items()}
    return "", shown(returned)


# Skips on ranks


def first_rank(first_rank_step: Function, stages: Sequence[nn.Module], batches: Sequence[Cut]) -> dict[str, Any]:
    """Run the learner's step on rank 0 of three, and ppkit's on the others."""
    rank = dist.get_rank()
    stage = stages[rank]

    def step(cut: Cut, optimizer: torch.optim.Optimizer) -> Any:
        if rank == 0:
            return first_rank_step(stage, optimizer, [part.clone() for part in cut.inputs])
        return reference.skip_step(stage, optimizer, None, cut.targets, *_shapes(cut, stages), rank, len(stages))

    return run_steps(stage, batches, step)


def train(skip_step: Function, stages: Sequence[nn.Module], batches: Sequence[Cut]) -> dict[str, Any]:
    """Run the learner's step on each batch."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    stage = stages[rank]

    def step(cut: Cut, optimizer: torch.optim.Optimizer) -> Any:
        shapes = _shapes(cut, stages)
        return skip_step(stage, optimizer, inputs_of(cut, rank), list(cut.targets), *shapes, rank, n_ranks)

    return run_steps(stage, batches, step)


def _shapes(cut: Cut, stages: Sequence[Any]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Shapes of this stage's input, and of the first stage's output."""
    skip = stages[0][0].out_features
    inputs = [stages[0][0].in_features, *(stage[0].out_features for stage in stages[:-1])]
    widths = inputs[dist.get_rank()], skip
    mine, skips = ([(len(part), width) for part in cut.targets] for width in widths)
    return mine, skips


# Recomputation


def recompute(
    functions: tuple[Function, Function],
    stages: Sequence[nn.Module],
    batch: Cut,
    rows: Sequence[Sequence[tuple[str, int]]],
    seed: int,
) -> dict[str, Any]:
    """Run one step of a pipeline with the learner's forward and backward of a stage; note what each one gives.

    Args:
        functions: the learner's forward and backward.
        stages: of the model; all boundaries have the shape of the inputs.
        batch: in micro-batches.
        rows: for each rank, its forwards and backwards in order.
        seed: of the random numbers, plus the rank.
    """
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    one = _Recomputed(functions, stages[rank])
    sends = []
    torch.manual_seed(seed + rank)
    with one.saved:
        for op, i in rows[rank]:
            if op == "F":
                message = one.forward(i, _received_like(batch.inputs[i], rank - 1) if rank else batch.inputs[i].clone())
                peer = rank + 1
            else:
                output = one.outputs[i]
                grad = _received_like(output, rank + 1) if rank < n_ranks - 1 else _loss_grad(output, batch, i)
                message = one.backward(i, grad)
                peer = rank - 1
            if message is None:
                break
            if 0 <= peer < n_ranks:
                sends.append((dist.isend(message, peer), message))
    for work, _ in sends:
        if work is not None:
            work.wait()
    return one.seen


class _Recomputed:
    """A stage with the learner's forward and backward; it sends nothing itself."""

    def __init__(self, functions: tuple[Function, Function], stage: nn.Module) -> None:
        self.functions = functions
        self.stage = stage
        self.saved = Saved(stage)
        self.kept: dict[int, Any] = {}
        self.outputs: dict[int, Tensor] = {}
        self.seen: dict[str, Any] = {"results": {}, "held": [], "odd": None}

    def forward(self, i: int, stage_input: Tensor) -> Tensor | None:
        """Return the output, to be sent; None if there is none."""
        returned = self.functions[0](self.stage, stage_input)
        pair = isinstance(returned, (tuple, list)) and len(returned) == 2
        if not pair or not isinstance(returned[0], Tensor):
            self.seen["odd"] = "light_forward", shown(returned)
            return None
        self.outputs[i] = returned[0].detach().clone()
        self.seen["results"]["F", i] = {"output": self.outputs[i]}
        self.kept[i] = returned[1]
        del returned
        self.seen["held"].append((len(self.kept), self.saved.nbytes(list(self.kept.values()))))
        return self.outputs[i]

    def backward(self, i: int, grad: Tensor) -> Tensor | None:
        """Return the gradient of the input, to be sent; None if there is none."""
        found = self.functions[1](self.stage, self.kept.pop(i), grad)
        grads = self.seen["results"]["B", i] = dict(gradients(self.stage))
        if not isinstance(found, Tensor):
            self.seen["odd"] = "recomputing_backward", shown(found)
            return None
        message = grads["the stage's input"] = found.detach().contiguous().clone()
        return message


class _Box:
    """A saved tensor; weakly referred to, so that it is known when its graph is gone."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Weighs what autograd saves for backwards and what else is kept, parameters and whole numbers left out."""

    def __init__(self, stage: nn.Module) -> None:
        self._own = {parameter.untyped_storage().data_ptr() for parameter in stage.parameters()}
        self._boxes: WeakSet[_Box] = WeakSet()
        super().__init__(self._pack, lambda box: box.tensor)

    def _pack(self, tensor: Tensor) -> _Box:
        box = _Box(tensor.detach())  # the tensor itself may hold the graph that holds the box
        self._boxes.add(box)
        return box

    def nbytes(self, others: Any) -> int:
        """Bytes that are held: what lies in the same place counts once."""
        tensors = [box.tensor for box in self._boxes]
        tensors += _tensors_in(others)
        storages = [tensor.untyped_storage() for tensor in tensors if tensor.is_floating_point()]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        held: int = sum(nbytes for place, nbytes in sizes.items() if place not in self._own)
        return held


def _tensors_in(value: Any) -> list[Tensor]:
    """All tensors that a value refers to: in containers, in attributes, and in what a function has closed over."""
    found: list[Tensor] = []
    seen: dict[int, Any] = {}  # by place in memory; the values live as long as the search
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (nn.Module, type, ModuleType)):
            continue
        seen[id(one)] = one
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, FunctionType):
            waiting += [cell.cell_contents for cell in one.__closure__ or () if cell != CellType()]
            waiting += [one.__defaults__, one.__kwdefaults__]
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            waiting += one
        else:
            slots = [getattr(one, name, None) for kind in type(one).__mro__ for name in _slots(kind)]
            waiting += [*getattr(one, "__dict__", {}).values(), *slots, getattr(one, "__self__", None)]
            waiting += [getattr(one, "func", None), getattr(one, "args", None)]  # of functools.partial
    return found


def _slots(kind: type) -> Sequence[str]:
    names = vars(kind).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _received_like(tensor: Tensor, source: int) -> Tensor:
    buffer = torch.empty_like(tensor)
    dist.recv(buffer, source)
    return buffer


def _loss_grad(output: Tensor, batch: Cut, index: int) -> Tensor:
    leaf = output.detach().requires_grad_()
    return torch.autograd.grad(microbatch_loss(leaf, batch.targets[index], batch.n_rows), leaf)[0]
