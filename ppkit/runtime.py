"""The executor: runs any valid schedule on real ranks, one method for each operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppkit.batches import cut, n_samples, shares, signature
from ppkit.errors import PpkitError
from ppkit.layout import lay_out
from ppkit.observe.operations import Operations
from ppkit.reduce import completed_by
from ppkit.routes import Sent
from ppkit.schedule import Action, Op, Schedule
from ppkit.shared import Sharing, shared_parameters
from ppkit.stage import Gradients, PipelineError, Stage, Tensors
from ppkit.units import kind_of

__all__ = ["Pipeline", "PipelineError", "StepResult", "shared_parameters"]


Key = tuple[int, int]  # stage, micro-batch


@dataclass(frozen=True)
class StepResult:
    """What a step found, on the last stage's rank; None elsewhere.

    Attributes:
        loss: the mean over the batch.
        losses: the mean over each micro-batch.
        output: of a schedule that is forward only, what the last stage made of the batch.
    """

    loss: float | None = None
    losses: tuple[float, ...] | None = None
    output: Any = None


class Pipeline:
    """Trains a model whose stages lie on several ranks, as a schedule says; or evaluates it, by one without backward.

    All ranks of the group construct it, and call `step`, together.

    Args:
        schedule: what every rank does, with or without its messages.
        modules: this rank's stages: by index, or in order. Each is called with what the one before returns, a tensor
            or a tuple of tensors.
        loss_fn: of the last stage's output and the target; the mean over a micro-batch. A schedule that is forward
            only needs none.
        group: of as many ranks as the schedule has; None for all ranks.
        device: where the stages compute; left out: where their parameters are. Tensors go between ranks from there
            over NCCL, else as copies on the CPU.
        checkpoint: keep a micro-batch's input alone, and compute its forward again before its backward; True, or the
            stages that do. Random numbers, such as dropout's, are drawn alike both times.
        reduce: called as ``reduce(stage, module)`` at each REDUCE; what it returns, if anything, is waited for at the
            end of the step.
        completes: called as ``completes(stage, module)`` before the B or W that completes a stage's gradients, if
            nothing but messages comes between that and its REDUCE: for hooks that begin to reduce in there.
        shared: parameters that several stages hold, as `shared_parameters` finds them; alike on all ranks. Their
            gradients are summed over the stages.
        weigh: of a micro-batch's target, its weight in the loss; left out: the number of its samples. For a loss that
            is a mean over tokens without padding, their number.

    Raises:
        PipelineError: something does not fit together, on this rank or between ranks.
        ScheduleError: the schedule is not valid.
    """

    def __init__(
        self,
        schedule: Schedule,
        modules: Mapping[int, nn.Module] | Sequence[nn.Module],
        loss_fn: Callable[..., Tensor] | None,
        *,
        group: Any = None,
        device: torch.device | str | None = None,
        checkpoint: bool | Collection[int] = False,
        reduce: Callable[[int, nn.Module], Any] | None = None,
        completes: Callable[[int, nn.Module], None] | None = None,
        shared: Sharing | None = None,
        weigh: Callable[[Any], float] | None = None,
    ) -> None:
        self._layout = lay_out(schedule, modules, loss_fn, group, device, checkpoint, shared or {})
        self._has_first = 0 in self._layout.stages
        self._has_last = schedule.n_stages - 1 in self._layout.stages
        self._trains = not schedule.forward_only
        self._loss_fn = loss_fn
        self._reduce_fn = reduce
        self._completes = completes
        row = self._layout.actions
        self._last = {(stage, row[at].microbatch) for stage, at in completed_by(row).items()}
        self._weigh = weigh
        self._signature: object = None  # of the last step's inputs, on the first stage's rank
        self._failed: PipelineError | None = None
        self._operations = Operations()
        self._stages = self._layout.stages
        self._onward = self._layout.onward
        self._skips_from, self._skips_into = self._layout.skips_from, self._layout.skips_into
        self._do: dict[Op, Callable[[int, int], None]] = {
            Op.F: self._forward,
            Op.B: self._backward,
            Op.I: self._input_grad,
            Op.W: self._weight_grad,
            Op.SEND_F: self._send_forward,
            Op.RECV_F: self._receive_forward,
            Op.SEND_B: self._send_backward,
            Op.RECV_B: self._receive_backward,
            Op.REDUCE: self._reduce,
        }

    # A step

    def step(self, inputs: Any = None, targets: Any = None) -> StepResult:
        """One forward and backward of a batch; gradients are added to `.grad`.

        Args:
            inputs: a tensor ``[N, ...]`` or a tuple of them, on the first stage's rank; not used elsewhere.
            targets: likewise, on the last stage's rank.

        Returns:
            the losses, on the last stage's rank.

        Raises:
            PipelineError: the batch cannot be cut, a stage failed, or the loss is NaN; it names the action.
        """
        if self._trains and not torch.is_grad_enabled():
            raise PipelineError("step trains: call it outside of torch.no_grad() and torch.inference_mode()")
        if not self._stages:
            return StepResult()
        if self._failed is not None:
            raise PipelineError(f"this pipeline failed in an earlier step and cannot go on: {self._failed.message}")
        at: Action | str = "at the start of a step"
        try:
            self._begin(inputs, targets)
            with torch.set_grad_enabled(self._trains):
                for at in self._layout.actions:
                    self._do[at.op](at.stage, at.microbatch or 0)
            at = "at the end of a step"
            return self._finish() if self._trains else self._evaluated(targets)
        except Exception as error:
            self._failed = self._explain(error, at)
            # With the frames of what failed, the line of the learner's module among them.
            raise self._failed.with_traceback(error.__traceback__) from None

    def forget_shapes(self) -> None:
        """Agree anew on shapes, dtypes and who needs gradients in the next step; on all ranks.

        This happens by itself where the inputs change; it is needed when parameters are frozen or thawed, or a stage
        returns something else for the same inputs.
        """
        self._signature = None

    def _begin(self, inputs: Any, targets: Any) -> None:
        m, device = self._layout.n_microbatches, self._layout.device
        # What moves between the actions of this step, by stage and micro-batch.
        self._inputs: dict[Key, Tensors] = {}
        self._outputs: dict[Key, Tensors] = {}
        self._output_grads: dict[Key, Gradients] = {}
        self._input_grads: dict[Key, Gradients] = {}
        self._losses: dict[int, Tensor] = {}
        self._sent: dict[object, list[Sent]] = {}
        self._reductions: list[Any] = []

        changed, n = False, 0
        if self._has_first:
            n, now = n_samples("inputs", inputs), signature(inputs)
            changed, self._signature = now != self._signature, now
        changed, n = self._layout.header.pass_on(changed, n)
        if n < m:
            raise PipelineError(
                f"a batch of {n} samples cannot be cut in {m} micro-batches; give at least {m} samples"
                + (f", or take a schedule with {n} micro-batches or fewer" if n else ""),
                values={"n_samples": n, "n_microbatches": m},
            )
        if self._has_first:
            self._inputs = {(0, i): part for i, part in enumerate(cut(inputs, m, device))}
        if self._has_last and self._trains:
            n_samples("targets", targets, expected=n)
            parts = cut(targets, m, device)
            self._targets = parts if isinstance(targets, (tuple, list)) else [part for (part,) in parts]
            self._shares = shares(self._targets, self._weigh)
        self._layout.shared.begin()
        for route in self._layout.routes:
            route.begin(changed)

    def _evaluated(self, targets: Any) -> StepResult:
        self._wait_for_all()
        if not self._has_last:
            return StepResult()
        parts = [self._outputs[max(self._stages), i] for i in range(self._layout.n_microbatches)]
        tensors = tuple(map(torch.cat, zip(*parts, strict=True)))
        output = tensors if len(tensors) > 1 else tensors[0]
        if targets is None or self._loss_fn is None:
            return StepResult(output=output)
        with torch.no_grad():
            return StepResult(self._loss_fn(output, targets).item(), output=output)

    def _finish(self) -> StepResult:
        self._wait_for_all()
        for work in self._reductions:
            work.wait()
        self._layout.shared.add_up()
        if not self._has_last:
            return StepResult()
        losses = tuple(self._losses[i].item() for i in range(len(self._losses)))
        if bad := [i for i, loss in enumerate(losses) if math.isnan(loss)]:
            raise PipelineError(f"the loss of micro-batch {bad[0]} is NaN; all losses: {losses}")
        if not any(loss.requires_grad for loss in self._losses.values()):
            raise PipelineError("no loss depends on a parameter that needs a gradient: nothing was trained")
        return StepResult(sum(share * loss for share, loss in zip(self._shares, losses, strict=True)), losses)

    # The operations

    def _forward(self, stage: int, i: int) -> None:
        inputs = self._inputs.pop((stage, i))
        for skip in self._skips_into[stage]:
            inputs += skip.receive(i)
        target = self._targets[i] if self._stages[stage].loss_fn else None
        with self._operations.run("F", stage, i, keeps=self._trains):
            outputs = self._stages[stage].forward(i, inputs, target)
        for skip in reversed(self._skips_from[stage]):
            outputs, value = outputs[:-1], outputs[-1]
            self._sent[skip, i] = skip.send(i, (value,))
        if self._stages[stage].loss_fn:
            self._losses[i] = outputs[0]
        elif stage not in self._onward or self._onward[stage].remote:
            self._outputs[stage, i] = outputs
        else:  # the next stage is on this rank too
            self._inputs[stage + 1, i] = outputs

    def _send_forward(self, stage: int, i: int) -> None:
        self._sent[Op.SEND_F, stage, i] = self._onward[stage].send(i, self._outputs.pop((stage, i)))

    def _receive_forward(self, stage: int, i: int) -> None:
        self._inputs[stage, i] = self._onward[stage - 1].receive(i)
        self._wait_for_delivered(Op.RECV_F, stage, i)

    def _backward(self, stage: int, i: int) -> None:
        output_grads = self._take_output_grads(stage, i)
        own = self._announced(stage, i)
        with self._operations.run("B", stage, i, module=own.module, again=own.checkpoint):
            input_grads = own.backward(i, output_grads)
        self._hand_back(stage, i, input_grads)

    def _input_grad(self, stage: int, i: int) -> None:
        output_grads = self._take_output_grads(stage, i)
        with self._operations.run("I", stage, i, again=self._stages[stage].checkpoint):
            input_grads = self._stages[stage].input_grad(i, output_grads)
        self._hand_back(stage, i, input_grads)

    def _weight_grad(self, stage: int, i: int) -> None:
        own = self._announced(stage, i)
        with self._operations.run("W", stage, i, module=own.module):
            own.weight_grad(i)

    def _send_backward(self, stage: int, i: int) -> None:
        self._sent[Op.SEND_B, stage, i] = self._onward[stage - 1].send_back(i, self._input_grads.pop((stage, i)))

    def _receive_backward(self, stage: int, i: int) -> None:
        self._output_grads[stage, i] = self._onward[stage].receive_back(i)
        self._wait_for_delivered(Op.RECV_B, stage, i)

    def _reduce(self, stage: int, i: int) -> None:
        work = self._reduce_fn(stage, self._stages[stage].module) if self._reduce_fn else None
        if work is not None:
            self._reductions.append(work)

    # Between them

    def _announced(self, stage: int, i: int) -> Stage:
        """The stage, whose gradients are about to grow; said, if it is for the last time."""
        own = self._stages[stage]
        if self._completes and (stage, i) in self._last:
            self._completes(stage, own.module)
        return own

    def _take_output_grads(self, stage: int, i: int) -> Gradients:
        """The gradients of all that a forward has made: for the next stage, or the loss, and for skips."""
        if self._stages[stage].loss_fn:  # the gradient of the batch's loss by the micro-batch's
            found: Gradients = (torch.full_like(self._losses[i], self._shares[i]),)
        else:
            found = self._output_grads.pop((stage, i))
        for skip in self._skips_from[stage]:
            found = (*found, *skip.receive_back(i))
            self._wait_for((skip, i))
        return found

    def _hand_back(self, stage: int, i: int, gradients: Gradients) -> None:
        """Bring on their way the gradients of all that a forward has taken: to the stage before, and along skips."""
        for skip in reversed(self._skips_into[stage]):
            gradients, gradient = gradients[:-1], gradients[-1]
            self._sent[skip, "back", i] = skip.send_back(i, (gradient,))
        if stage == 0:
            return
        if self._onward[stage - 1].remote:
            self._input_grads[stage, i] = gradients
        else:
            self._output_grads[stage - 1, i] = gradients

    def _wait_for_all(self) -> None:
        for key in list(self._sent):
            self._wait_for(key)
        self._layout.header.finish()

    def _wait_for_delivered(self, op: Op, stage: int, i: int) -> None:
        """Let go of buffers: what the sender of this message must have received before has arrived for sure."""
        for key in self._layout.delivered.get((op, stage, i), ()):
            self._wait_for(key)

    def _wait_for(self, key: object) -> None:
        for work, _ in self._sent.pop(key):
            work.wait()

    def _explain(self, error: Exception, at: Action | str) -> PipelineError:
        rank = self._layout.rank
        where = f"rank {rank}, {at}"
        what = error.message if isinstance(error, PpkitError) else f"{type(error).__name__}: {error}"
        action, stage = (str(at), at.stage) if isinstance(at, Action) else (None, None)
        details = error.values if isinstance(error, PpkitError) else {}
        if isinstance(at, Action) and at.op is Op.F and not isinstance(error, PpkitError):
            what += f" (the stage is {kind_of(self._stages[at.stage].module)})"
        if "a leaf Variable that requires grad is being used in an in-place operation" in what:
            what += ". A stage may not change its input in place: give its first operation inplace=False"
        return PipelineError(f"{where}: {what}", rank=rank, stage=stage, action=action, values=details)
