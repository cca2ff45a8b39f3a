"""`torch.distributed.pipelining` in and out: its schedules as ours, ours run by it, both drawn alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppkit.action import Op
from ppkit.builders import gpipe, one_f_one_b
from ppkit.observe.torch_stage import ObservedStage
from ppkit.runtime import StepResult
from ppkit.schedule import Schedule
from ppkit.torch_names import torch_names
from ppkit.torch_schedules import (
    BridgeError,
    Differences,
    as_torch,
    differences,
    from_torch,
    schedule_class,
    to_torch,
    torch_schedule,
)

__all__ = [
    "BridgeError",
    "Differences",
    "TorchPipeline",
    "as_torch",
    "differences",
    "from_torch",
    "to_torch",
    "torch_schedule",
]


class TorchPipeline:
    """A schedule run by `torch.distributed.pipelining` on real ranks.

    One of ours goes to torch's `_PipelineScheduleRuntime` as CSV; a class of torch runs as it is. A run under
    `ppkit.launch` records every F, B, I and W with the numbers of the schedule. (Torch has nothing to do in an I of
    stage 0, whose input needs no gradient: the W does it all.) Before its first step torch sends the shapes through
    all stages, with a forward and a backward of each; these are recorded as "shape inference".

    By itself torch adds up the micro-batches' gradients and divides what `.grad` then holds by their number, whatever
    it held before (`scale_grads=True`). Here every loss is divided instead, which gives the same, and adds to `.grad`.

    All ranks of the group construct it together.

    Args:
        schedule: one of ours; or a schedule class of torch, or its name, and then `n_microbatches`.
        modules: by stage, those of this rank; or a list in the order of this rank's stages.
        loss_fn: of the last stage's output and the target; a scalar, the mean over a micro-batch.
        n_microbatches: for a class of torch.
        group: the ranks; None for all.
        device: of the stages; left out: that of their parameters.

    Raises:
        BridgeError: what torch cannot run, or would run wrongly.
        ScheduleError: the schedule is not valid.
    """

    def __init__(
        self,
        schedule: Schedule | str | type,
        modules: Mapping[int, nn.Module] | Sequence[nn.Module],
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        n_microbatches: int | None = None,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        n_ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        if isinstance(schedule, Schedule):
            cls, self.schedule = torch_names().Runtime, _runnable(schedule, n_ranks)
        else:
            if n_microbatches is None:
                raise BridgeError(f"a schedule of torch's own ({schedule}) needs n_microbatches=")
            cls = schedule_class(schedule)
            self.schedule = _of_class(cls, n_ranks, n_microbatches, len(modules))
        own = _own(self.schedule, rank, modules)
        place = torch.device(device) if device is not None else _device(own.values())
        stages = [
            ObservedStage(module, index, self.schedule.n_stages, place, group=group) for index, module in own.items()
        ]
        single = issubclass(cls, torch_names().Single)
        self._share = 1 / self.schedule.n_microbatches
        self._loss_fn = loss_fn
        self._runs = cls(
            stages[0] if single else stages,
            n_microbatches=self.schedule.n_microbatches,
            loss_fn=self._scaled_loss,
            scale_grads=False,
        )
        if isinstance(schedule, Schedule):
            _load(self._runs, self.schedule)
        self._has_first = 0 in own
        self._has_last = self.schedule.n_stages - 1 in own

    def step(self, inputs: Any = None, targets: Tensor | None = None) -> StepResult:
        """Train on one batch: forwards and backwards of all micro-batches; gradients are added to `.grad`.

        Args:
            inputs: a tensor or a tuple of tensors, batch dimension first; needed on the rank of stage 0.
            targets: needed on the rank of the last stage.

        Returns:
            the losses of the micro-batches and their mean, on the rank of the last stage; None elsewhere.

        Raises:
            BridgeError: the batch cannot be cut in micro-batches of one size. (Torch cuts by `tensor_split`, but
                receives every micro-batch in a buffer of the first one's shape.)
        """
        arguments = (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)) if self._has_first else ()
        keywords: dict[str, Any] = {"target": targets, "losses": []} if self._has_last else {}
        for tensor in (*arguments, *([targets] if self._has_last else [])):
            self._check(tensor)
        self._runs.step(*arguments, **keywords)
        if not self._has_last:
            return StepResult()
        losses = tuple(loss.item() / self._share for loss in keywords["losses"])
        return StepResult(sum(losses) / len(losses), losses)

    def _scaled_loss(self, output: Any, target: Any) -> Tensor:
        return self._loss_fn(output, target) * self._share

    def _check(self, tensor: Any) -> None:
        m = self.schedule.n_microbatches
        if not isinstance(tensor, Tensor) or not tensor.dim():
            raise BridgeError(
                f"step takes tensors: inputs on the rank of stage 0, targets on the last stage's; got {tensor!r}"
            )
        if not len(tensor) or len(tensor) % m:
            raise BridgeError(
                f"{len(tensor)} samples make no {m} micro-batches of one size: torch would receive each of them in a "
                f"buffer of the first one's shape. Use {max(1, len(tensor) // m) * m} samples, or ppkit.runtime, which "
                "takes any number",
                values={"samples": len(tensor), "n_microbatches": m},
            )


def _runnable(schedule: Schedule, n_ranks: int) -> Schedule:
    """The schedule, if torch runs it rightly."""
    schedule.validate()
    if schedule.n_ranks != n_ranks:
        raise BridgeError(f"{schedule.name} is for {schedule.n_ranks} ranks, but the group has {n_ranks}")
    if schedule.forward_only:
        raise BridgeError(
            f"{schedule.name} is forward only, and torch's schedules train; ppkit.runtime evaluates by it"
        )
    if idle := set(range(n_ranks)) - set(schedule.stage_to_rank):
        raise BridgeError(f"rank {min(idle)} has no stage in {schedule.name}; with torch every rank has one or more")
    last = schedule.n_stages - 1
    order = [a.microbatch for row in schedule.actions for a in row if a.stage == last and a.op is Op.F]
    if order != sorted(order):  # type: ignore[type-var]  # an F has a micro-batch
        raise BridgeError(
            f"the forwards of the last stage, {last}, go through the micro-batches in the order {order}; torch numbers "
            "losses as they come, and would start a backward from another micro-batch's loss",
            stage=last,
        )
    return schedule


def _load(runs: Any, schedule: Schedule) -> None:
    """Hand the schedule over as CSV, with our messages if it says when to send them."""
    with tempfile.TemporaryDirectory(prefix="ppkit-") as folder:
        path = Path(folder, "schedule.csv")
        path.write_text(schedule.to_csv(comms=schedule.has_comms), encoding="utf-8")
        runs._load_csv(str(path), format="compute_comms" if schedule.has_comms else "compute_only")


def _of_class(cls: type, n_ranks: int, n_microbatches: int, n_chunks: int) -> Schedule:
    """What a class of torch runs; the two that run no table do as ours of the same name."""
    builder = {"ScheduleGPipe": gpipe, "Schedule1F1B": one_f_one_b}.get(cls.__name__)
    return builder(n_ranks, n_microbatches) if builder else torch_schedule(cls, n_ranks, n_microbatches, n_chunks)


def _own(schedule: Schedule, rank: int, modules: Mapping[int, nn.Module] | Sequence[nn.Module]) -> dict[int, nn.Module]:
    stages = [stage for stage, place in enumerate(schedule.stage_to_rank) if place == rank]
    given = dict(modules) if isinstance(modules, Mapping) else dict(zip(stages, modules, strict=False))
    if sorted(given) != stages or len(modules) != len(stages):
        raise BridgeError(
            f"rank {rank} has the stages {stages} in {schedule.name}; got {len(modules)} modules"
            + (f", for the stages {sorted(given)}" if isinstance(modules, Mapping) else ""),
            rank=rank,
        )
    return {stage: given[stage] for stage in stages}


def _device(modules: Iterable[nn.Module]) -> torch.device:
    return next((p.device for module in modules for p in module.parameters()), torch.device("cpu"))
