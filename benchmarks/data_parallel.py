"""Data parallelism: our bucketed gradients against torch's, and an emulated overlap against its simulation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.result import Result
from ppkit.data_parallel import DistributedDataParallel
from ppkit.emulate import Emulation, Link
from ppkit.launch import launch
from ppkit.simulate_ddp import simulate_data_parallel
from ppkit.timeline import Timeline

LAYERS, BATCH = 8, 64
WIDE, NARROW = 512, 64  # layers of 1 MB; and of 16 kB for emulated devices, whose arithmetic must fit in their time
N_STEPS, N_ROUNDS = 20, 5
FORWARD, BACKWARD, BUCKET = 0.020, 0.040, 0.008  # seconds; of a bucket on the link


def _layer_bytes(width: int) -> int:
    return 4 * width * width


def _wrapped(way: str, width: int) -> nn.Module:
    """A model in four buckets of two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(LAYERS)])
    bucket_bytes = 2 * _layer_bytes(width)
    if way == "torch":
        return nn.parallel.DistributedDataParallel(model, bucket_cap_mb=bucket_bytes / 2**20)
    return DistributedDataParallel(model, bucket_bytes=bucket_bytes)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, after: bool = False) -> None:
    dist.barrier()
    if after:
        with model.no_sync():  # type: ignore[operator]
            model(x).square().mean().backward()
        model.reducer.reduce()  # type: ignore[operator, union-attr]
    else:
        model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def _both_ways() -> dict[str, tuple[float, float]]:
    """Median seconds of a step, and of the processor in it; in turns, so that the machine's other work hits both."""
    x = torch.randn(BATCH, WIDE)
    models = {way: _wrapped(way, WIDE) for way in ("ours", "torch")}
    optimizers = {way: torch.optim.SGD(model.parameters(), lr=0.01) for way, model in models.items()}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in models}
    for step in range(N_STEPS + 2):
        for way in sorted(models, reverse=bool(step % 2)):
            begun, spent = time.perf_counter(), time.process_time()
            _train(models[way], optimizers[way], x)
            if step >= 2:  # torch lays its buckets out anew after the first
                seconds[way].append((time.perf_counter() - begun, time.process_time() - spent))
    return {way: (median(wall for wall, _ in times), median(cpu for _, cpu in times)) for way, times in seconds.items()}


def _steps(way: str) -> None:
    model, x = _wrapped(way, NARROW), torch.randn(BATCH, NARROW)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(6):
        _train(model, optimizer, x, after=way == "after")


def _span(timeline: Timeline) -> float:
    """Return the time from the first forward to the end of the last optimizer step."""
    start = min(event.start for event in timeline if event.kind == "F")
    return max(event.end for event in timeline if event.kind == "OPTIM") - start


def data_parallel() -> Iterator[Result]:
    """Our DDP against torch's on loopback and on an emulated link, and overlap against its simulation."""
    runs = [launch(_both_ways, n_ranks=2, observe=False).results[0] for _ in range(N_ROUNDS)]
    ratios = [run["ours"][0] / run["torch"][0] for run in runs]
    ratio = median(ratios)
    ours, theirs = (runs[ratios.index(ratio)][way][0] for way in ("ours", "torch"))
    cpu = median(run["ours"][1] / run["torch"][1] for run in runs)
    what = f"our DDP ({1e3 * ours:.1f} ms a step) against torch's ({1e3 * theirs:.1f} ms), 8 MB in 4 buckets, 2 ranks"
    remark = f"{min(ratios):.3f} to {max(ratios):.3f}; processor time {cpu:.3f}"
    yield Result(what, f"{ratio:.3f}", "1.10", ratio <= 1.1, remark)

    bandwidth = 2 * _layer_bytes(NARROW) / BUCKET  # a ring of two sends the bucket once
    emulation = Emulation(forward=FORWARD, backward=BACKWARD, link=Link(0.0, bandwidth), per_layer=True)
    spans = {}
    for way in ("after", "ours", "torch"):
        timeline = launch(_steps, way, n_ranks=2, emulate=emulation).timeline
        spans[way] = median(_span(timeline.step(n)) for n in range(1, timeline.n_steps))
    ratio = spans["ours"] / spans["torch"]
    what = f"the same on an emulated link ({1e3 * spans['ours']:.1f} ms against {1e3 * spans['torch']:.1f} ms)"
    yield Result(what, f"{ratio:.3f}", "1.10", ratio <= 1.1)
    for way, said in (("ours", "with overlap"), ("after", "without")):
        simulated = simulate_data_parallel(
            [BACKWARD / LAYERS] * LAYERS, [_layer_bytes(NARROW)] * LAYERS, 2, 2 * _layer_bytes(NARROW),
            forward=FORWARD, bandwidth=bandwidth, overlap=way == "ours",
        ).makespan  # fmt: skip
        ratio = spans[way] / simulated
        what = f"emulated step {said} ({1e3 * spans[way]:.1f} ms) against simulated ({1e3 * simulated:.1f} ms)"
        yield Result(what, f"{ratio:.3f}", "within 5 %", abs(ratio - 1) <= 0.05)
