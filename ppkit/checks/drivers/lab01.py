"""Lab 01 on a rank: calls the learner's function with ppkit's own parts around it, and notes what came of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppkit.checks.oracle import LEARNING_RATE, MOMENTUM, Batch, Pass
from ppkit.checks.reference import naive as reference

__all__ = ["backward", "first_rank", "forward", "leaves", "train"]

Function = Callable[..., Any]


def forward(forward_stage: Function, stages: Sequence[nn.Module], passes: Sequence[Pass]) -> dict[str, Any]:
    """Run the learner's forward, then a backward of this stage alone, from the right gradient of its output."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    stage, right = stages[rank], passes[rank]
    batch = right.input.clone() if rank == 0 else None
    returned = forward_stage(stage, batch, tuple(right.input.shape), rank, n_ranks)
    if not (isinstance(returned, (tuple, list)) and len(returned) == 2 and all(map(torch.is_tensor, returned))):
        return {"returned": shown(returned)}
    stage_input, output = returned
    seen: dict[str, Any] = {"output": output.detach().clone(), "input": stage_input.detach().clone()}
    seen["has_graph"] = output.requires_grad
    if output.requires_grad and (output.shape, output.dtype) == (right.output.shape, right.output.dtype):
        seen["leaves"] = len(leaves(output, stage))
        output.backward(right.output_grad)
        seen["asks"] = stage_input.requires_grad
        seen["input_grad"] = gradient(stage_input)
        seen["grads"] = gradients(stage)
    return seen


def backward(backward_stage: Function, stages: Sequence[nn.Module], passes: Sequence[Pass], targets: Tensor) -> Any:
    """Run this stage's forward alone, on its right input, then the learner's backward."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    stage_input = passes[rank].input.clone().requires_grad_(rank > 0)
    output = stages[rank](stage_input)
    loss = cross_entropy(output, targets) if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    return gradients(stages[rank])


def train(train_step: Function, stages: Sequence[nn.Module], batches: Sequence[Batch]) -> dict[str, Any]:
    """Run the learner's step on each batch; its `forward_stage` and `backward_stage` are ppkit's."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    substitute(train_step, {name: getattr(reference, name) for name in ("forward_stage", "backward_stage")})
    stage = stages[rank]

    def step(inputs: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer) -> Any:
        shape = (len(inputs), stage[0].in_features)  # type: ignore[index]  # stages are nn.Sequential
        return train_step(stage, optimizer, inputs if rank == 0 else None, targets, shape, rank, n_ranks)

    return _train(stage, batches, step)


def first_rank(first_rank_step: Function, stages: Sequence[nn.Module], batches: Sequence[Batch]) -> dict[str, Any]:
    """Run the learner's step on rank 0 of two, and ppkit's on rank 1."""
    rank = dist.get_rank()
    stage = stages[rank]

    def step(inputs: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer) -> Any:
        if rank == 0:
            return first_rank_step(stage, optimizer, inputs)
        shape = (len(inputs), stage[0].in_features)  # type: ignore[index]
        return reference.train_step(stage, optimizer, None, targets, shape, rank, 2)

    return _train(stage, batches, step)


def _train(stage: nn.Module, batches: Sequence[Batch], step: Function) -> dict[str, Any]:
    optimizer = torch.optim.SGD(stage.parameters(), LEARNING_RATE, MOMENTUM)
    losses: list[Any] = []
    weights = []
    for inputs, targets in batches:
        losses.append(number(step(inputs, targets, optimizer)))
        weights.append({name: parameter.detach().clone() for name, parameter in stage.named_parameters()})
    return {"losses": losses, "weights": weights}


def substitute(function: Any, names: Mapping[str, Any]) -> None:
    """Put ppkit's functions in place of the learner's of the same names, for all code of theirs on this rank."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__"):  # an object that can be called, or a method
        function = getattr(function, "__func__", None) or type(function).__call__
    getattr(function, "__globals__", {}).update(names)


def gradients(stage: nn.Module) -> dict[str, Tensor | None]:
    """The gradients of a stage's parameters by name; None where there is none."""
    return {name: gradient(parameter) for name, parameter in stage.named_parameters()}


def gradient(tensor: Tensor) -> Tensor | None:
    """A copy of a tensor's gradient; unlike `.grad`, without a warning where there can be none."""
    return tensor.grad.clone() if (tensor.is_leaf or tensor.retains_grad) and tensor.grad is not None else None


def number(value: Any) -> float | str | None:
    """A loss as a plain number; words for anything else."""
    if value is None:
        return None
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return shown(value)


def shown(value: Any) -> str | None:
    """What a value is, in words; None for one that stands for no answer yet."""
    if value is None or value is Ellipsis:
        return None
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(type(item).__name__ for item in value[:4])}"
    shape = f" of shape {list(value.shape)}" if isinstance(value, Tensor) else ""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}{shape}"


def leaves(output: Tensor, stage: nn.Module) -> list[Tensor]:
    """The leaves of a graph that are no parameters of the stage: what autograd takes for its input."""
    known = {id(parameter) for parameter in stage.parameters()}
    found: dict[int, Tensor] = {}
    nodes, seen = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            found[id(leaf)] = leaf
        nodes.extend(parent for parent, _ in node.next_functions)
    return list(found.values())
