"""The executor: against torch.distributed.pipelining, and emulated against simulated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from benchmarks.result import Result
from benchmarks.timelines import compute_span
from ppkit.builders import gpipe, interleaved_1f1b, naive, one_f_one_b, zero_bubble_h1, zero_bubble_v
from ppkit.emulate import Emulation
from ppkit.launch import launch
from ppkit.runtime import Pipeline
from ppkit.schedule import Schedule
from ppkit.simulate import Costs, simulate

N_RANKS, N_MICROBATCHES = 4, 8
# Samples and width: small enough for the executor itself to count, and large enough for the arithmetic to.
SIZES = {"tiny": (16, 16), "larger": (256, 384)}
N_ROUNDS, N_STEPS = 15, 4

OF_TORCH: dict[str, Callable[[], Schedule]] = {
    "GPipe": lambda: gpipe(N_RANKS, N_MICROBATCHES),
    "1F1B": lambda: one_f_one_b(N_RANKS, N_MICROBATCHES),
    "Interleaved1F1B": lambda: interleaved_1f1b(N_RANKS, N_MICROBATCHES, 2),
    "ZBVZeroBubble": lambda: zero_bubble_v(N_RANKS, N_MICROBATCHES),
}


def against_torch() -> Iterator[Result]:
    """A training step of the executor and of torch's, of the same model on the same ranks, in turn."""
    for size, (n_samples, width) in SIZES.items():
        for name in OF_TORCH:
            rounds = launch(_both, name, n_samples, width, n_ranks=N_RANKS, observe=False, show=False).results[0]
            ours, theirs = (median(seconds) for seconds in zip(*rounds, strict=True))
            ratio = median(mine / other for mine, other in rounds)
            what = f"{name}, {size} model: a step ({1e3 * ours:.2f} ms) against torch's ({1e3 * theirs:.2f} ms)"
            yield Result(what, f"{ratio:.2f}", "1.00", ratio <= 1)


def _both(name: str, n_samples: int, width: int) -> list[tuple[float, float]]:
    """Return the seconds of a step of both, for each round."""
    schedule = OF_TORCH[name]()
    x = torch.linspace(-1, 1, n_samples * width).reshape(n_samples, width)
    steps = [
        _our_step(schedule, _modules(schedule, width), x),
        _torch_step(name, schedule, _modules(schedule, width), x),
    ]
    for step in steps * 3:  # shapes are agreed on first
        step()
    rounds = [[_seconds(step) for step in steps] for _ in range(N_ROUNDS)]
    return [(ours, theirs) for ours, theirs in rounds]


def _modules(schedule: Schedule, width: int) -> dict[int, nn.Module]:
    """This rank's stages, of two layers each."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(schedule.n_stages)
    ]
    return {stage: stages[stage] for stage, rank in enumerate(schedule.stage_to_rank) if rank == dist.get_rank()}


def _our_step(schedule: Schedule, modules: dict[int, nn.Module], x: Tensor) -> Callable[[], Any]:
    pipe = Pipeline(schedule, modules, nn.functional.mse_loss)
    return lambda: pipe.step(x, x)


def _torch_step(name: str, schedule: Schedule, modules: dict[int, nn.Module], x: Tensor) -> Callable[[], Any]:
    stages = [PipelineStage(module, index, schedule.n_stages, x.device) for index, module in modules.items()]
    kind = get_schedule_class(name)
    single = name in ("GPipe", "1F1B")
    runs = kind(stages[0] if single else stages, N_MICROBATCHES, loss_fn=nn.functional.mse_loss)  # type: ignore[call-arg]

    def step() -> list[float]:
        losses: list[Tensor] = []
        last = {"target": x, "losses": losses} if schedule.n_stages - 1 in modules else {}
        runs.step(*([x] if 0 in modules else []), **last)
        return [loss.item() for loss in losses]

    return step


def _seconds(step: Callable[[], Any]) -> float:
    """Return the seconds of a step, from when all ranks begin until all have ended."""
    dist.barrier()
    begun = time.perf_counter()
    for _ in range(N_STEPS):
        step()
    dist.barrier()
    return (time.perf_counter() - begun) / N_STEPS


FORWARD, BACKWARD = 0.020, 0.040


def emulated() -> Iterator[Result]:
    """Every schedule on four emulated ranks against what `simulate` says."""
    for schedule in (
        naive(4, 2),
        gpipe(4, 8),
        one_f_one_b(4, 8),
        interleaved_1f1b(4, 8, 2),
        zero_bubble_h1(4, 8),
        zero_bubble_v(4, 8),
    ):
        simulated = simulate(schedule, Costs(forward=FORWARD, backward=BACKWARD)).makespan
        emulation = Emulation(forward=FORWARD, backward=BACKWARD)
        timeline = launch(_steps, schedule, 5, n_ranks=4, emulate=emulation, show=False).timeline
        spans = [
            compute_span(timeline.step(n)) for n in range(1, timeline.n_steps)
        ]  # shapes are agreed on in the first
        ratio = median(spans) / simulated
        what = f"{schedule.name} by the executor, p=4, emulated 20/40 ms ({median(spans):.4f} s) against simulate"
        extent = f"steps {min(spans):.4f} to {max(spans):.4f} s, simulated {simulated:.4f} s"
        yield Result(what, f"{ratio:.4f}", "within 3 %", abs(ratio - 1) <= 0.03, extent)


def _steps(schedule: Schedule, n_steps: int) -> None:
    modules = _modules(schedule, 8)
    pipe = Pipeline(schedule, modules, nn.functional.mse_loss)
    optimizer = torch.optim.SGD([p for module in modules.values() for p in module.parameters()], lr=0.0)
    x = torch.ones(N_MICROBATCHES, 8)
    for _ in range(n_steps):
        dist.barrier()
        pipe.step(x, x)
        optimizer.step()
