"""Lab 02 on a rank: calls the learner's functions with ppkit's own parts around them, and notes what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppkit.checks.drivers.lab01 import gradient, gradients, leaves, number, shown, substitute
from ppkit.checks.oracle import LEARNING_RATE, MOMENTUM
from ppkit.checks.oracle_gpipe import Cut, Stored
from ppkit.checks.reference import gpipe as reference

__all__ = ["first_rank", "forward", "inputs_of", "losses", "run_steps", "schedules", "shapes_of", "train"]

Function = Callable[..., Any]


def schedules(gpipe_schedule: Function, sizes: Sequence[tuple[int, int]]) -> list[Any]:
    """The learner's schedules, as plain lists of texts where they are lists."""
    return [_plain(gpipe_schedule(*size)) for size in sizes]


def _plain(rows: Any) -> Any:
    rows = getattr(rows, "actions", rows)
    if not isinstance(rows, (list, tuple)):
        return shown(rows)
    return [[str(action) for action in row] if isinstance(row, (list, tuple)) else shown(row) for row in rows]


def losses(microbatch_loss: Function, cuts: Sequence[Cut]) -> list[dict[str, Any]]:
    """The learner's losses of every micro-batch, and the gradients of the outputs after a backward from each."""
    seen = []
    for cut in cuts:
        outputs = [part.clone().requires_grad_() for part in cut.inputs]
        values = []
        for output, targets in zip(outputs, cut.targets, strict=True):
            loss = microbatch_loss(output, targets, cut.n_rows)
            values.append(number(loss))
            if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
                loss.backward()
        seen.append({"losses": values, "grads": [gradient(output) for output in outputs]})
    return seen


def forward(forward_all: Function, stages: Sequence[nn.Module], cut: Cut, stored: Sequence[Stored]) -> dict[str, Any]:
    """Run the learner's forwards, then a backward of every micro-batch from the right gradient of its output."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    stage, right = stages[rank], [parts[rank] for parts in stored]
    returned = forward_all(stage, inputs_of(cut, rank), [tuple(part.input.shape) for part in right], rank, n_ranks)
    if not _is_stored(returned):
        return {"returned": shown(returned)}
    pairs = list(returned)
    seen: dict[str, Any] = {
        "outputs": [output.detach().clone() for _, output in pairs],
        "buffers": len({stage_input.data_ptr() for stage_input, _ in pairs}),
        "graphs": [output.requires_grad for _, output in pairs],
        "asks": [stage_input.requires_grad or bool(leaves(output, stage)) for stage_input, output in pairs],
    }
    if all(seen["graphs"]) and [o.shape for o in seen["outputs"]] == [part.output.shape for part in right]:
        for (_, output), part in zip(pairs, right, strict=True):
            output.backward(part.output_grad)
        seen["input_grads"] = [gradient(stage_input) for stage_input, _ in pairs]
        seen["grads"] = gradients(stage)
    return seen


def _is_stored(returned: Any) -> bool:
    return isinstance(returned, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(torch.is_tensor, pair)) for pair in returned
    )


def first_rank(first_rank_step: Function, stages: Sequence[nn.Module], cuts: Sequence[Cut]) -> dict[str, Any]:
    """Run the learner's step on rank 0 of two, and ppkit's on rank 1."""
    rank = dist.get_rank()
    stage = stages[rank]

    def step(cut: Cut, optimizer: torch.optim.Optimizer) -> Any:
        if rank == 0:
            return first_rank_step(stage, optimizer, list(cut.inputs))
        return reference.gpipe_step(stage, optimizer, None, cut.targets, shapes_of(cut, stage), rank, 2)

    return run_steps(stage, cuts, step)


def train(gpipe_step: Function, stages: Sequence[nn.Module], cuts: Sequence[Cut]) -> dict[str, Any]:
    """Run the learner's step on each batch; its `forward_all` and `microbatch_loss` are ppkit's."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    substitute(gpipe_step, {name: getattr(reference, name) for name in ("forward_all", "microbatch_loss")})
    stage = stages[rank]

    def step(cut: Cut, optimizer: torch.optim.Optimizer) -> Any:
        targets = list(cut.targets)
        return gpipe_step(stage, optimizer, inputs_of(cut, rank), targets, shapes_of(cut, stage), rank, n_ranks)

    return run_steps(stage, cuts, step)


def inputs_of(cut: Cut, rank: int) -> list[Tensor] | None:
    """The micro-batches, on rank 0."""
    return [part.clone() for part in cut.inputs] if rank == 0 else None


def shapes_of(cut: Cut, stage: nn.Module) -> list[tuple[int, int]]:
    """Shapes of a stage's inputs."""
    return [(len(part), stage[0].in_features) for part in cut.inputs]  # type: ignore[index]  # stages are nn.Sequential


def run_steps(stage: nn.Module, cuts: Sequence[Cut], step: Function, *, keep_inputs: bool = True) -> dict[str, Any]:
    """Run a step on each batch; note losses, weights and the manner of it.

    Args:
        stage: of this rank.
        cuts: the batches.
        step: called with a batch and the optimizer.
        keep_inputs: keep the stage's inputs alive, to tell buffers that are used again; it holds no graph.
    """
    optimizer = torch.optim.SGD(stage.parameters(), LEARNING_RATE, MOMENTUM)
    losses: list[Any] = []
    weights = []
    with _watched(stage, keep_inputs) as watch:
        for cut in cuts:
            losses.append(number(step(cut, optimizer)))
            weights.append({name: parameter.detach().clone() for name, parameter in stage.named_parameters()})
    return {"losses": losses, "weights": weights, **watch}


@contextmanager
def _watched(stage: nn.Module, keep_inputs: bool) -> Iterator[dict[str, int]]:
    """Count backwards, those that keep their graph, and the buffers that the stage was called with."""
    watch = {"backwards": 0, "retained": 0, "calls": 0, "buffers": 0}
    kept: list[Any] = []
    pointers: set[int] = set()
    plain = Tensor.backward
    inside = False

    def backward(self: Tensor, gradient: Any = None, retain_graph: Any = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:  # that of a subclass, such as a buffer whose send is watched, calls Tensor's
            return plain(self, gradient, retain_graph, *args, **kwargs)  # type: ignore[no-untyped-call]
        inside = True
        watch["backwards"] += 1
        watch["retained"] += bool(retain_graph)
        try:
            return plain(self, gradient, retain_graph, *args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            inside = False

    def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if keep_inputs:
            kept.append(inputs[0].detach())  # alive, so that no other takes its place in memory
            pointers.add(inputs[0].data_ptr())
            watch.update(calls=len(kept), buffers=len(pointers))

    Tensor.backward = backward  # type: ignore[method-assign]
    handle = stage.register_forward_pre_hook(note)
    try:
        yield watch
    finally:
        Tensor.backward = plain  # type: ignore[method-assign]
        handle.remove()
