"""The hybrid: any pipeline schedule in each replica, gradients summed over the replicas while backwards compute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppkit.buckets import BUCKET_BYTES
from ppkit.data_parallel import broadcast_module, check_same_model
from ppkit.mesh import DP, PP, Mesh, MeshError
from ppkit.runtime import Pipeline, StepResult
from ppkit.schedule import Op, Schedule
from ppkit.shared import Sharing
from ppkit.stage_reducer import StageReducer

__all__ = ["Hybrid", "clip_grad_norm"]


class Hybrid:
    """Trains replicas of a pipeline: each has its rows of the batch, all end with the same gradients.

    Every sample of the whole batch counts the same: the last stages agree on the batch's total weight, each
    replica's loss is scaled by its share, and gradients are summed over the replicas, so that shards may be uneven.
    A stage is reduced at the schedule's REDUCE. Where that comes right after the stage's last backward, as
    `Schedule.with_reduce` puts it, its buckets start in that backward already, as soon as their gradients are
    complete. All are waited for at the end of the step. Gradients are then parts of their bucket, which the next
    step writes anew: clone what is to be kept. All ranks construct it, and call `step`, together.

    Args:
        schedule: of one replica; a REDUCE for each stage is written in where it has none.
        modules: this rank's stages, as for `Pipeline`; they begin with the weights of replica 0.
        loss_fn: of the last stage's output and the target; the mean over a micro-batch.
        n_replicas: dp; the ranks are ``n_replicas × schedule.n_ranks``, a replica's ranks in a row.
        device, checkpoint: as for `Pipeline`.
        shared: parameters that several stages hold, as for `Pipeline`; summed over the stages in each replica.
        weigh: of a target, its weight in the loss; left out: the number of its samples.
        bucket_bytes: a bucket is full when its gradients have so many bytes; 0: one for each parameter.

    Raises:
        MeshError: the ranks do not fill the mesh, or the schedule reduces some stages only.
        ReplicaError: the replicas are not the same model.
        PipelineError, ScheduleError: as for `Pipeline`.
    """

    def __init__(
        self,
        schedule: Schedule,
        modules: Mapping[int, nn.Module] | Sequence[nn.Module],
        loss_fn: Callable[..., Tensor],
        n_replicas: int,
        *,
        device: torch.device | str | None = None,
        checkpoint: bool | Collection[int] = False,
        shared: Sharing | None = None,
        weigh: Callable[[Any], float] | None = None,
        bucket_bytes: float = BUCKET_BYTES,
    ) -> None:
        self.mesh = Mesh(n_replicas, schedule.n_ranks).on_ranks()
        self._loss_fn, self._weigh, self._share = loss_fn, weigh, 1.0
        schedule = _reduced(schedule)
        mine = [stage for stage, rank in enumerate(schedule.stage_to_rank) if rank == self.mesh.stage]
        self._modules = dict(modules) if isinstance(modules, Mapping) else dict(zip(mine, modules, strict=False))
        self._shared = shared or {}
        self._has_last = schedule.n_stages - 1 in mine
        self._same_start(nn.ModuleDict({f"stage {stage}": module for stage, module in self._modules.items()}))
        self._pipeline = Pipeline(
            schedule,
            modules,
            self._scaled_loss,
            group=self.mesh.group(PP),
            device=device,
            checkpoint=checkpoint,
            reduce=self._reduce,
            completes=self._open,
            shared=shared,
            weigh=weigh,
        )
        order = [action.stage for action in schedule.actions[self.mesh.stage] if action.op is Op.REDUCE]
        self._reducers = self._make_reducers(order, bucket_bytes) if n_replicas > 1 else {}

    def step(self, inputs: Any = None, targets: Any = None) -> StepResult:
        """One forward and backward of this replica's rows; gradients of the whole batch are added to `.grad`.

        `.grad` must be empty or zero before: what is in it would be summed over the replicas again.

        Args:
            inputs: this replica's rows, on the rank of its first stage; see `shard`.
            targets: likewise, on the rank of its last stage.

        Returns:
            on the ranks of the last stage: this replica's loss and those of its micro-batches, each times the replica's
            share of the batch; so the sum of `loss` over the replicas is the loss of the batch. None elsewhere.
        """
        if self._has_last:
            mine = torch.tensor(float(self._weight_of(targets)), dtype=torch.float64, device=self._device_of())
            total = mine.clone()
            dist.all_reduce(total, group=self.mesh.group(DP))
            self._share = (mine / total).item()
        for reducer in self._reducers.values():
            reducer.begin()
        return self._pipeline.step(inputs, targets)

    def shard(self, batch: Tensor) -> Tensor:
        """This replica's rows of a batch: contiguous parts whose sizes differ by at most 1.

        Args:
            batch: ``[N, ...]``, the same on every rank.
        """
        return batch.tensor_split(self.mesh.n_replicas)[self.mesh.replica]

    def clip(self, max_norm: float) -> float:
        """Scale all gradients down if the norm of the whole model's gradient is above a limit; gives that norm.

        Args:
            max_norm: the limit, above 0.
        """
        return clip_grad_norm(self._modules, max_norm, self.mesh.group(PP), self._shared)

    def _weight_of(self, targets: Any) -> float:
        if self._weigh is not None:
            return self._weigh(targets)
        first = targets[0] if isinstance(targets, (tuple, list)) else targets
        return len(first)

    def _scaled_loss(self, output: Any, target: Any) -> Tensor:
        return self._loss_fn(output, target) * self._share

    def _make_reducers(self, order: Sequence[int], bucket_bytes: float) -> dict[int, StageReducer]:
        """For each stage its reducer, of those parameters whose gradients it completes."""
        # A rank's stages may hold one and the same parameter: its gradient is complete after the last of them.
        last = {id(w): stage for stage in order for w in self._modules[stage].parameters()}
        own = {
            stage: [(name, w) for name, w in self._modules[stage].named_parameters() if last[id(w)] == stage]
            for stage in order
        }
        return {s: StageReducer(s, named, self.mesh.group(DP), bucket_bytes) for s, named in own.items() if named}

    def _open(self, stage: int, module: nn.Module) -> None:
        if stage in self._reducers:
            self._reducers[stage].open()

    def _reduce(self, stage: int, module: nn.Module) -> StageReducer | None:
        return self._reducers[stage].reduce() if stage in self._reducers else None

    def _same_start(self, stages: nn.Module) -> None:
        check_same_model(stages, self.mesh.group(DP))
        broadcast_module(stages, self.mesh.group(DP))

    def _device_of(self) -> torch.device:
        return next((w.device for module in self._modules.values() for w in module.parameters()), torch.device("cpu"))


def _reduced(schedule: Schedule) -> Schedule:
    """The schedule, with a REDUCE for each stage."""
    reduced = schedule.with_reduce()
    stages = {action.stage for row in reduced.actions for action in row if action.op is Op.REDUCE}
    if left := sorted(set(range(schedule.n_stages)) - stages):
        raise MeshError(
            f"{schedule.name} reduces some stages, but not {left}: their replicas would drift apart. Give each stage "
            "a REDUCE, or leave all out, and they are written in",
            stage=left[0],
        )
    return reduced


def clip_grad_norm(
    modules: Mapping[int, nn.Module], max_norm: float, group: Any = None, shared: Sharing | None = None
) -> float:
    """Scale the gradients of a model in stages by its global norm, as torch's ``clip_grad_norm_`` in one process.

    The squares are summed over the ranks of one pipeline. Replicas hold the same gradients and are not counted again,
    nor is a shared parameter: the first stage that holds it counts it.

    Args:
        modules: this rank's stages, by index; their gradients complete and the same in all replicas.
        max_norm: the limit, above 0.
        group: the ranks of one pipeline; None for all ranks.
        shared: as for `Pipeline`.

    Returns:
        the norm before.

    Raises:
        MeshError: the limit is not above 0.
    """
    if not max_norm > 0:
        raise MeshError(f"max_norm is {max_norm}; it must be above 0", values={"max_norm": max_norm})
    again = {(stage, name) for holders in (shared or {}).values() for stage, name in sorted(holders.items())[1:]}
    every: dict[int, tuple[Tensor, bool]] = {}  # a rank's stages may hold one and the same parameter
    for stage, module in sorted(modules.items()):
        for name, w in module.named_parameters():
            if w.grad is not None:
                every.setdefault(id(w), (w.grad, (stage, name) not in again))
    device = next((grad.device for grad, _ in every.values()), torch.device("cpu"))
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for grad, counts in every.values():
        if counts:
            squares += grad.double().square().sum()
    dist.all_reduce(squares, group=group)
    norm = squares.sqrt().item()
    for grad, _ in every.values():
        grad.mul_(min(1.0, max_norm / (norm + 1e-6)))  # the same small number as torch's
    return norm
