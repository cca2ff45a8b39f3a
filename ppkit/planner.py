"""Which ways of training fit a machine, and which is the fastest: all simulated, ranked, and explained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ppkit.builders import gpipe, one_f_one_b
from ppkit.costs import Costs
from ppkit.event import Event
from ppkit.interleaved import interleaved_1f1b
from ppkit.memory import memory
from ppkit.partition import equal_sizes
from ppkit.plans import Machine, Model, Option, Plan, PlanError, Rejected
from ppkit.schedule import Op, Schedule
from ppkit.simulate import simulate
from ppkit.simulate_ddp import ring_seconds, simulate_data_parallel
from ppkit.timeline import Timeline
from ppkit.units import bytes_text
from ppkit.zero_bubble import zero_bubble_h1

__all__ = ["Machine", "Model", "Option", "Plan", "PlanError", "Rejected", "plan"]


class _Way(NamedTuple):
    """A way of training: replicas of a pipeline."""

    schedule: str  # "" for one stage
    n_stages: int
    n_replicas: int

    @property
    def kind(self) -> str:
        parts = ("DP" if self.n_replicas > 1 else "", self.schedule)
        return " × ".join(filter(None, parts)) or "one device"

    def __str__(self) -> str:
        replicas = f"{self.n_replicas} replicas" if self.n_replicas > 1 else ""
        stages = f"{self.schedule}, {self.n_stages} stages" if self.n_stages > 1 else ""
        return " × ".join(filter(None, (replicas, stages))) or "one device"


# Builders by name, with the number of chunks that they make of a rank's layers.
_BUILDERS: dict[str, tuple[Callable[[int, int], Schedule], int]] = {
    "1F1B": (one_f_one_b, 1),
    "GPipe": (gpipe, 1),
    "interleaved 1F1B": (partial(interleaved_1f1b, n_chunks=2), 2),
    "ZB-H1": (zero_bubble_h1, 1),
}


def plan(model: Model, machine: Machine, batch: int) -> Plan:
    """Simulate every way to train a model on a machine, and rank those that fit by the time of a step.

    One device, data parallelism (``DP``: gradients in buckets of 25 MiB, reduced under the last backward), the same
    with the optimizer's state cut (``ZeRO-1``), pipelines, and replicas of pipelines, on all or on fewer devices: d
    replicas of p stages where d·p divides their number. Of each, the number of micro-batches is tried in powers of 2
    up to 8 p (one stage: up to the batch), and the fastest that fits is kept. Interleaved means two chunks a rank.

    Simplified: layers are equal; embedding, optimizer's step, buckets and fragmentation cost nothing; a full
    micro-batch counts where the batch does not divide; ZeRO-1 all-reduces gradients and all-gathers parameters, as
    `ppkit.zero` (with a reduce-scatter it would send a third less). No recomputation, no tensor parallelism.

    Args:
        model: what one sample costs.
        machine: what the devices and links can do.
        batch: samples in a step, over all replicas.

    Raises:
        PlanError: no such batch.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise PlanError(f"batch={batch!r}: a whole number of samples, at least 1", values={"batch": batch})
    options: list[Option] = []
    rejected: list[Rejected] = []
    for way in _ways(machine.n_devices):
        if reason := _impossible(way, model, batch):
            rejected.append(Rejected(way.kind, str(way), reason))
            continue
        tried = [_option(way, m, model, machine, batch) for m in _counts(way, batch)]
        for sharded in (False, True)[: 1 + (way.n_replicas > 1)]:
            if sharded:
                tried = [_with_zero(option, model, machine) for option in tried]
            _sort_out(tried, machine, options, rejected)
    options.sort(key=lambda option: (option.seconds, option.n_devices, option.peak_memory))
    return Plan(model, machine, batch, tuple(options), tuple(rejected))


def _sort_out(tried: list[Option], machine: Machine, options: list[Option], rejected: list[Rejected]) -> None:
    """Keep the fastest of one way's options that fits; or else say what the smallest would need."""
    fitting = [option for option in tried if option.peak_memory <= machine.memory]
    if fitting:
        options.append(min(fitting, key=lambda option: (option.seconds, option.peak_memory)))
        return
    least = min(tried, key=lambda option: option.peak_memory)
    rank = least.memory.index(least.peak_memory)
    why = f"needs {bytes_text(least.peak_memory)} on rank {rank}, but a device has {bytes_text(machine.memory)}"
    rejected.append(Rejected(least.kind, least.name, why, least.peak_memory))


def _ways(n_devices: int) -> Iterator[_Way]:
    for used in (n for n in range(1, n_devices + 1) if n_devices % n == 0):
        for stages in (n for n in range(1, used + 1) if used % n == 0):
            for schedule in list(_BUILDERS) if stages > 1 else [""]:
                yield _Way(schedule, stages, used // stages)


def _impossible(way: _Way, model: Model, batch: int) -> str:
    pieces = way.n_stages * _BUILDERS.get(way.schedule, (None, 1))[1]
    if pieces > model.n_layers:
        return f"needs {pieces} pieces of at least one layer, but the model has {model.n_layers}"
    if way.n_replicas > batch:
        return f"needs a sample for each of {way.n_replicas} replicas, but the batch has {batch}"
    return ""


def _counts(way: _Way, batch: int) -> list[int]:
    rows = math.ceil(batch / way.n_replicas)
    most = min(rows, 8 * way.n_stages) if way.n_stages > 1 else rows
    return [2**power for power in range(most.bit_length())]


def _option(way: _Way, m: int, model: Model, machine: Machine, batch: int) -> Option:
    builder, n_chunks = _BUILDERS.get(way.schedule, (one_f_one_b, 1))
    schedule = builder(way.n_stages, m)
    rows = math.ceil(math.ceil(batch / way.n_replicas) / m)
    costs = _costs(way, rows, model, machine, n_chunks)
    pipeline = way.n_stages > 1
    timeline = simulate(schedule.with_reduce() if pipeline and way.n_replicas > 1 else schedule, costs)
    held = memory(timeline, costs).peak
    if not pipeline and way.n_replicas > 1:
        timeline = _replicas(way.n_replicas, m, costs, model, machine)
        held *= way.n_replicas
    name = f"{way}, one replica" if pipeline and way.n_replicas > 1 else str(way)
    return Option(
        way.kind, str(way), way.n_replicas, way.n_stages, m, replace(timeline, name=f"{name}, m = {m}"), held, batch
    )


def _costs(way: _Way, rows: int, model: Model, machine: Machine, n_chunks: int) -> Costs:
    """Costs of each stage for a micro-batch of so many rows."""
    sizes = equal_sizes(model.n_layers, way.n_stages * n_chunks)
    backward = 2 * model.forward if model.backward is None else model.backward
    message = model.activation_bytes if model.message_bytes is None else model.message_bytes

    def seconds(work: float) -> list[float]:
        return [size * (machine.overhead + rows * work / model.n_layers / machine.speed) for size in sizes]

    parameters = [model.n_parameters * size / model.n_layers for size in sizes]
    return Costs(
        forward=seconds(model.forward),
        backward=seconds(backward),
        latency=machine.latency,
        bandwidth=machine.bandwidth,
        activation_bytes=math.ceil(rows * message),
        n_replicas=way.n_replicas,
        parameter_bytes=[math.ceil(count * model.parameter_bytes) for count in parameters],
        optimizer_bytes=[math.ceil(count * model.optimizer_bytes) for count in parameters],
        stored_bytes=[math.ceil(rows * size * model.activation_bytes) for size in sizes],
    )


def _replicas(n: int, m: int, costs: Costs, model: Model, machine: Machine) -> Timeline:
    """Accumulate m - 1 micro-batches on each of n replicas; the last one's backward overlaps with its all-reduces."""
    seconds, (nbytes,) = costs.seconds(1), costs.sizes("gradient_bytes", 1)
    (forward,), (backward,) = seconds[Op.F], seconds[Op.B]
    layers = model.n_layers
    last = simulate_data_parallel(
        [backward / layers] * layers,
        [math.ceil(nbytes / layers)] * layers,
        n,
        forward=forward,
        latency=machine.latency,
        bandwidth=machine.bandwidth,
    )
    if m == 1:
        return last
    before = simulate(one_f_one_b(1, m - 1), costs)
    events = [event._replace(rank=rank, stage=rank) for rank in range(n) for event in before]
    for event in last.shifted(before.makespan):
        events.append(event._replace(microbatch=m - 1) if event.kind == "F" else event)
    return Timeline(tuple(events), last.source, n, last.name)


def _with_zero(option: Option, model: Model, machine: Machine) -> Option:
    """The same with the optimizer's state cut over the replicas, and an all-gather of the parameters at the end."""
    n, timeline = option.n_replicas, option.timeline
    n_ranks = len(option.memory)
    # Of each rank, in layers; replicas of one stage hold all.
    sizes = equal_sizes(model.n_layers, option.n_stages) if option.n_stages > 1 else [model.n_layers] * n_ranks
    freed, events = [], list(timeline.events)
    for rank, size in enumerate(sizes):
        count = size * model.n_parameters / model.n_layers
        freed.append(math.floor(count * model.optimizer_bytes * (n - 1) / n))
        nbytes = count * model.parameter_bytes
        # Half of a ring all-reduce: n - 1 hops, in each of which a rank hands on 1/n of the parameters.
        end = timeline.end + ring_seconds(nbytes, n, machine.latency, machine.bandwidth) / 2
        sent = round(nbytes * (n - 1) / n)
        events.append(Event(rank, "COLLECTIVE", timeline.end, end, name="all_gather", nbytes=sent))
    suffix = " + ZeRO-1"
    return replace(
        option,
        kind=option.kind + suffix,
        name=option.name + suffix,
        timeline=replace(timeline, events=tuple(events), name=timeline.name + suffix),
        memory=tuple(held - less for held, less in zip(option.memory, freed, strict=True)),
    )
