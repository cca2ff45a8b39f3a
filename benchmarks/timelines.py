"""Timelines: emulated against simulated, the cost of observing, simulating and drawing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.result import Result
from benchmarks.steps import pipeline
from ppkit.builders import one_f_one_b
from ppkit.draw import gantt
from ppkit.emulate import Emulation
from ppkit.launch import launch
from ppkit.simulate import Costs, simulate
from ppkit.timeline import Timeline

FORWARD, BACKWARD = 0.020, 0.040
OPERATION = 0.005  # seconds of an operation, of which observing may take a hundredth
N_REPEATS = 400


def emulation() -> Iterator[Result]:
    """Emulated 1F1B of four stages and eight micro-batches against what `simulate` says."""
    schedule = one_f_one_b(4, 8)
    simulated = simulate(schedule, Costs(forward=FORWARD, backward=BACKWARD))
    run = launch(pipeline, schedule, 8, n_ranks=4, emulate=Emulation(forward=FORWARD, backward=BACKWARD))
    spans = [compute_span(run.timeline.step(n)) for n in range(run.timeline.n_steps)]
    ratio = median(spans) / simulated.makespan
    what = f"emulated 1F1B, p=4, m=8, 20/40 ms ({median(spans):.4f} s) against simulate ({simulated.makespan:.4f} s)"
    yield Result(
        what, f"{ratio:.4f}", "within 3 %", abs(ratio - 1) <= 0.03, f"steps {min(spans):.4f} to {max(spans):.4f} s"
    )


def compute_span(timeline: Timeline) -> float:
    """Return the time from the first forward to the last backward."""
    events = [event for event in timeline if event.kind in "FBIW"]
    return max(event.end for event in events) - min(event.start for event in events)


def observation() -> Iterator[Result]:
    """What observing adds to a forward, a backward, a send and a receive, as a part of operations of 5 ms."""
    launch(_operations, n_ranks=2)
    pairs = []
    for _ in range(5):
        with_, without = (launch(_operations, n_ranks=2, observe=observe).results[0] for observe in (True, False))
        pairs.append((with_, without))
    added = median(with_ - without for with_, without in pairs)
    part = added / (2 * OPERATION)
    what = f"observing F, B, send and receive: {1e6 * added:.0f} µs more, of two operations of 5 ms"
    yield Result(what, f"{100 * part:.2f} %", "1 %", part < 0.01)


def _operations() -> float:
    """Return the seconds of one forward, backward, send and receive of a stage of some 20 modules."""
    stage = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6)])
    x, peer = torch.ones(4, 8), 1 - dist.get_rank()
    times = []
    for _ in range(N_REPEATS):
        begun = time.perf_counter()
        y = stage(x)
        y.sum().backward()
        if peer:
            dist.send(x, peer)
            dist.recv(x, peer)
        else:
            dist.recv(x, peer)
            dist.send(x, peer)
        times.append(time.perf_counter() - begun)
    return sorted(times)[N_REPEATS // 10]  # what others do on the machine can only add


def drawing() -> Iterator[Result]:
    """Simulating and drawing 16,384 operations."""
    schedule = one_f_one_b(32, 256)
    gantt(simulate(one_f_one_b(2, 2)))  # plotly's first figure loads plotly
    simulating, building = [], []
    for _ in range(5):
        begun = time.perf_counter()
        timeline = simulate(schedule)
        between = time.perf_counter()
        figure = gantt(timeline)
        building.append(time.perf_counter() - between)
        simulating.append(between - begun)
    seconds = median(simulating)
    yield Result("simulate 1F1B, p=32, m=256", f"{seconds:.3f} s", "0.15 s", seconds <= 0.15)
    seconds = median(building)
    yield Result("its Gantt, 16,384 operations", f"{seconds:.2f} s", "1 s", seconds <= 1)
    size = len(figure.to_json())
    yield Result("its size as JSON", f"{size / 1e6:.2f} MB", "0.4 MB", size <= 400_000)
