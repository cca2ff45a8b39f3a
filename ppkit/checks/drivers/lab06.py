"""Lab 06 on a rank: calls the learner's functions, and notes who made which group, and who summed what with whom."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d
from torch.nn.functional import cross_entropy

from ppkit.checks.drivers.lab01 import gradients, number, shown, substitute
from ppkit.checks.oracle import LEARNING_RATE, MOMENTUM, Batch
from ppkit.checks.reference import hybrid as reference
from ppkit.observe import operations

__all__ = ["Collective", "finish", "groups", "paper", "same_start", "start_of", "tied", "train"]

Function = Callable[..., Any]
Shape = tuple[int, int]  # of the mesh: replicas, stages
GIVEN = ("forward_stage", "backward_stage")


# Task 1: on paper


def paper(mesh_groups: Function, my_rows: Function, shapes: Sequence[Shape], sizes: Sequence[int]) -> dict[str, Any]:
    """The learner's groups of every mesh, and each rank's rows of batches of every size."""
    return {
        "groups": [_pair(mesh_groups(*shape)) for shape in shapes],
        "rows": [[_rows(my_rows, size, rank, shape) for rank in range(shape[0] * shape[1])]
                 for shape in shapes for size in sizes],
    }  # fmt: skip


def _pair(value: Any) -> Any:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return shown(value)
    return tuple(_plain(part) for part in value)


def _plain(groups: Any) -> Any:
    """Lists of ranks, whatever kind of sequence they came in; words for anything else."""
    try:
        return [[operator.index(rank) for rank in ranks] for ranks in groups]
    except TypeError:
        return shown(groups) or "nothing"


def _rows(my_rows: Function, size: int, rank: int, shape: Shape) -> Any:
    """Which rows of a batch a rank takes: each row holds its own number."""
    batch = torch.arange(size, dtype=torch.float64).view(size, 1).repeat(1, 3)
    value = my_rows(batch, rank, *shape)
    if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == 3:
        return [int(row) for row in value[:, 0]]
    return shown(value)


# Task 3: groups


def groups(make_groups: Function, shapes: Sequence[Shape]) -> dict[str, Any]:
    """Let the learner make the groups of every mesh; note whom they hold, or where the ranks disagree."""
    returned: list[Any] = []
    try:
        with _all_together():
            for shape in shapes:
                pair = make_groups(*shape)
                both = isinstance(pair, (tuple, list)) and len(pair) == 2
                returned.append([_members(group) for group in pair] if both else shown(pair))
    except _DisagreeError as error:
        return {"returned": returned, "asked": error.asked, "call": error.call}
    return {"returned": returned}


def _members(group: Any) -> list[int] | str | None:
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        return "a group that this rank is not in"
    return dist.get_process_group_ranks(group) if isinstance(group, dist.ProcessGroup) else shown(group)


class _DisagreeError(Exception):
    """The ranks did not ask for one and the same group; holds what each asked for, None for one that has returned."""

    def __init__(self, asked: list[list[int] | None], call: int) -> None:
        super().__init__("not the same groups on all ranks")
        self.asked = asked
        self.call = call


@contextmanager
def _all_together() -> Iterator[None]:
    """Let a group be made only when all ranks ask for it; otherwise stop all of them, before any can hang.

    Ranks that disagree hang, each time in another place, or get away with it by luck. So they meet first.

    Raises:
        _DisagreeError: on every rank, at the first group on which they differ.
    """
    store = c10d.PrefixStore("lab06", c10d._get_default_store())
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    made = 0
    plain = c10d._new_group_with_tag  # what every way to make groups comes down to

    def meet(mine: list[int] | None) -> None:
        nonlocal made
        store.set(f"{made}/{rank}", json.dumps(mine))
        asked = [json.loads(store.get(f"{made}/{other}")) for other in range(n_ranks)]
        made += 1
        if any(one != asked[0] for one in asked):
            raise _DisagreeError(asked, made)

    def new_group(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("use_local_synchronization"):  # which asks for its members alone
            meet(sorted(range(n_ranks) if ranks is None else map(operator.index, ranks)))
        return plain(ranks, *args, **kwargs)

    c10d._new_group_with_tag = new_group
    try:
        yield
        meet(None)
    finally:
        c10d._new_group_with_tag = plain


def same_start(function: Function, shape: Shape) -> dict[str, Any]:
    """Call the learner's function on a stage with weights of this rank's own."""
    rank = dist.get_rank()
    _, column = reference.make_groups(*shape)
    stage = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64))
    with torch.no_grad():
        for position, parameter in enumerate(stage.parameters()):
            parameter.copy_(start_of(rank, position, parameter))
    before = list(stage.parameters())
    with _collectives() as seen:
        function(stage, column)
    after = list(stage.parameters())
    return {
        "weights": [parameter.detach().clone() for parameter in after],
        "replaced": any(one is not other for one, other in zip(after, before, strict=True)),
        "collectives": seen,
    }


def start_of(rank: int, position: int, like: Tensor) -> Tensor:
    """The weights that a rank has before; the mean of two ranks' is no rank's."""
    return torch.arange(like.numel(), dtype=like.dtype).view_as(like) + 100.0 * (rank + 1) ** 2 + 5000.0 * position


# Tasks 4 and 6: steps


class Collective(NamedTuple):
    """A collective that this rank took part in.

    Attributes:
        members: global ranks of its group.
        nbytes: of its tensor.
        step: optimizer steps before it.
        backwards: that had begun on this rank, since the last step.
    """

    members: tuple[int, ...]
    nbytes: int
    step: int
    backwards: int


@contextmanager
def _collectives() -> Iterator[list[Collective]]:
    """Note every collective of this rank, and how far it has come in its step."""
    recorder = operations.recorder
    assert recorder is not None  # a check's ranks are observed
    agreement: Any = recorder.agreement
    plain, seen = agreement.joins, []

    def joins(name: str, tensor: Any, group: Any, *rest: Any) -> Any:
        kinds = [row.kind for row in recorder.rows()]
        step = kinds.count("OPTIM")
        since = kinds[len(kinds) - kinds[::-1].index("OPTIM") :] if step else kinds
        nbytes = tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0
        members = tuple(dist.get_process_group_ranks(group))
        seen.append(Collective(members, nbytes, step, since.count("B") + recorder.in_backward))
        return plain(name, tensor, group, *rest)

    agreement.joins = joins
    try:
        yield seen
    finally:
        agreement.joins = plain


class _Watch:
    """Notes the rows of each forward, the gradients that the optimizer uses, and the weights after each batch."""

    def __init__(self, stage: nn.Module) -> None:
        self.stage = stage
        self.optimizer = torch.optim.SGD(stage.parameters(), LEARNING_RATE, MOMENTUM)
        self.rows: list[list[int]] = []  # of each batch
        self.grads: list[Any] = []  # at each step of the optimizer
        self.weights: list[dict[str, Tensor]] = []
        self.optimizer.register_step_pre_hook(lambda *_: self.grads.append(gradients(stage)))
        stage.register_forward_pre_hook(lambda _, inputs: self.rows[-1].append(len(inputs[0])))

    def batch(self, step: Function) -> float | str | None:
        """Run one step; return its loss."""
        self.rows.append([])
        loss = number(step())
        self.weights.append({name: one.detach().clone() for name, one in self.stage.named_parameters()})
        return loss

    def seen(self) -> dict[str, Any]:
        return {"rows": self.rows, "grads": self.grads, "weights": self.weights}


def train(
    hybrid_step: Function, stages: Sequence[nn.Module], shape: Shape, batches: Sequence[Batch], n_microbatches: int
) -> dict[str, Any]:
    """Run the learner's step on each batch."""
    row, column = reference.make_groups(*shape)
    substitute(hybrid_step, {name: getattr(reference, name) for name in GIVEN})
    watch = _Watch(stages[dist.get_rank(row)])

    def step(images: Tensor, labels: Tensor) -> Any:
        return hybrid_step(watch.stage, watch.optimizer, images.clone(), labels.clone(), n_microbatches, row, column)

    with _collectives() as seen:
        losses = [watch.batch(lambda batch=batch: step(*batch)) for batch in batches]
    return {"losses": losses, "collectives": seen, **watch.seen()}


def finish(
    finish_step: Function, stages: Sequence[nn.Module], shape: Shape, batches: Sequence[Batch], n_microbatches: int
) -> dict[str, Any]:
    """Run all forwards of each batch, and let the learner do the rest of the step."""
    row, column = reference.make_groups(*shape)
    substitute(finish_step, {name: getattr(reference, name) for name in GIVEN})
    replica, (before, after) = dist.get_rank(column), reference.neighbours(shape[1])
    watch = _Watch(stages[dist.get_rank(row)])

    def step(images: Tensor, labels: Tensor) -> Any:
        watch.optimizer.zero_grad()
        inputs, targets = (part.tensor_split(shape[0])[replica] for part in (images, labels))
        micro_batches = zip(inputs.tensor_split(n_microbatches), targets.tensor_split(n_microbatches), strict=True)
        kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for rows, classes in micro_batches:
            stage_input, output = reference.forward_stage(watch.stage, rows, before, after)
            total = cross_entropy(output, classes, reduction="sum") if after is None else None
            kept.append((stage_input, output, None if total is None else total / len(targets)))
        return finish_step(watch.stage, watch.optimizer, kept, before, after, column)

    with _collectives() as seen:
        for batch in batches:
            watch.batch(lambda batch=batch: step(*batch))
    return {"collectives": seen, **watch.seen()}


# Task 5: what crosses the stages


def tied(
    sum_and_clip: Function, grads: Sequence[Sequence[Tensor]], shape: Shape, limits: Sequence[float]
) -> dict[str, Any]:
    """Call the learner's function with the gradients of this rank's stage, for every limit.

    The first weight of the first stage and the last of the last stage are one parameter.
    """
    n_stages = shape[1]
    row, _ = reference.make_groups(*shape)
    pairs = [dist.new_group([first, first + n_stages - 1]) for first in range(0, shape[0] * n_stages, n_stages)]
    replica, stage = divmod(dist.get_rank(), n_stages)
    position = {0: 0, n_stages - 1: -1}.get(stage)
    seen = []
    with _collectives() as collectives:
        for limit in limits:
            weights = [nn.Parameter(torch.zeros_like(grad)) for grad in grads[stage]]
            for weight, grad in zip(weights, grads[stage], strict=True):
                weight.grad = grad.clone()
            one, ends = (None, None) if position is None else (weights[position], pairs[replica])
            norm = number(sum_and_clip(list(weights), one, row, ends, limit))
            seen.append((norm, [weight.grad for weight in weights]))
    return {"seen": seen, "collectives": collectives}
