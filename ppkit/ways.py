"""The planner's ways of training: which there are, what a stage of each costs, and its simulated step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ppkit.costs import Costs
from ppkit.event import Event
from ppkit.partition import equal_sizes
from ppkit.plans import Machine, Model
from ppkit.quick import SCHEDULES, build
from ppkit.schedule import Op
from ppkit.simulate import simulate
from ppkit.simulate_ddp import ring_seconds, simulate_data_parallel
from ppkit.timeline import Timeline

__all__ = ["Step", "Way", "impossible", "ways"]

_BUCKET_BYTES = 25 * 2**20


class Way(NamedTuple):
    """A way of training: replicas of a pipeline, each of whose stages is a group of devices that share its layers."""

    schedule: str  # "" for one stage
    n_stages: int
    n_replicas: int
    n_tensor: int = 1
    n_chunks: int = 1  # of a stage's layers

    @property
    def kind(self) -> str:
        """Without numbers."""
        parts = ("DP" if self.n_replicas > 1 else "", "TP" if self.n_tensor > 1 else "", self.schedule)
        return " × ".join(filter(None, parts)) or "one device"

    def __str__(self) -> str:
        replicas = f"{self.n_replicas} replicas" if self.n_replicas > 1 else ""
        tensor = f"{self.n_tensor}-way tensor" if self.n_tensor > 1 else ""
        chunks = f" of {self.n_chunks} chunks" if self.n_chunks > 1 else ""
        stages = f"{self.schedule}, {self.n_stages} stages{chunks}" if self.n_stages > 1 else ""
        return " × ".join(filter(None, (replicas, tensor, stages))) or "one device"


def ways(machine: Machine) -> Iterator[Way]:
    """All ways on all or fewer devices; tensor parallelism inside a node."""
    for used in _divisors(machine.n_devices):
        for tensor in _divisors(math.gcd(used, machine.node_size)):
            for stages in _divisors(used // tensor):
                for schedule in list(SCHEDULES) if stages > 1 else [""]:
                    chunks = 2 if schedule == "interleaved 1F1B" else 1
                    yield Way(schedule, stages, used // tensor // stages, tensor, chunks)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def impossible(way: Way, model: Model, batch: int) -> str:
    """Why the model or the batch cannot be divided so; empty if they can."""
    pieces = way.n_stages * way.n_chunks
    if pieces > model.n_layers:
        return f"needs {pieces} pieces of at least one layer, but the model has {model.n_layers}"
    if model.n_heads is not None and model.n_heads % way.n_tensor:
        return f"needs heads in {way.n_tensor} equal parts, but a layer has {model.n_heads}"
    if way.n_replicas > batch:
        return f"needs a sample for each of {way.n_replicas} replicas, but the batch has {batch}"
    return ""


class Step(NamedTuple):
    """A way of training with a number of micro-batches, and all that decides what its step takes."""

    way: Way
    n_microbatches: int
    model: Model
    machine: Machine
    batch: int
    zero: bool = False

    @property
    def rows(self) -> int:
        """Samples of a micro-batch, the largest."""
        return math.ceil(math.ceil(self.batch / self.way.n_replicas) / self.n_microbatches)

    @property
    def sizes(self) -> list[int]:
        """Layers of each stage, or of each chunk."""
        return equal_sizes(self.model.n_layers, self.way.n_stages * self.way.n_chunks)

    @property
    def counts(self) -> list[float]:
        """Parameters on one device, of each stage or chunk."""
        per_layer = self.model.n_parameters / self.model.n_layers
        return [size * per_layer / self.way.n_tensor for size in self.sizes]

    @property
    def waits(self) -> tuple[float, float]:
        """Seconds of a layer's all-reduces among its devices in a forward, and in a backward, of a micro-batch.

        Two each, of the layer's output and of the gradient of its input, for its two halves: Shoeybi et al.,
        arXiv 1909.08053, section 3; those of the forward once more where the backward computes it again.
        """
        latency, bandwidth = self.machine.link(self.way.n_tensor)
        one = ring_seconds(self.rows * self.model.message, self.way.n_tensor, latency, bandwidth)
        return 2 * one, (4 if self.model.recompute else 2) * one

    def tensor_bytes(self, rank: int) -> int:
        """Bytes that a device of a rank sends in these all-reduces in a step."""
        n, layers = self.way.n_tensor, sum(self.sizes[rank :: self.way.n_stages])
        reduces = (6 if self.model.recompute else 4) * layers * self.n_microbatches
        return round(reduces * 2 * (n - 1) / n * self.rows * self.model.message)

    @property
    def working_bytes(self) -> int:
        """Of the layer that is computed again, if so: all that its backward needs, beside what others keep."""
        return math.ceil(self.rows * self._kept_by_a_layer) if self.model.recompute else 0

    @property
    def _kept_by_a_layer(self) -> float:
        """Bytes of one sample on one device: tensor parallelism does not divide all of them."""
        model, n = self.model, self.way.n_tensor
        return model.whole + (model.activation_bytes - model.whole) / n

    @property
    def _message(self) -> tuple[float, float, float | None]:
        """Bytes that a device sends of a boundary, and latency and bandwidth of that.

        Of equal copies each device of a group sends its part, and the receivers gather them: the scatter/gather
        optimization of arXiv 2104.04473, section 4.1.
        """
        n, nbytes = self.way.n_tensor, self.rows * self.model.message
        latency, bandwidth = self.machine.link(n * self.way.n_stages)
        gather = ring_seconds(nbytes, n, *self.machine.link(n)) / 2
        return nbytes / n, latency + gather, bandwidth

    @property
    def replica_link(self) -> tuple[float, float | None]:
        """Latency and bandwidth of the ring of devices that hold the same parameters."""
        return self.machine.link(self.way.n_tensor * self.way.n_stages * self.way.n_replicas)

    def costs(self) -> Costs:
        """Of each stage or chunk, for a micro-batch, on one device of its group."""
        model, machine, sizes, counts = self.model, self.machine, self.sizes, self.counts
        speed = machine.speed * self.way.n_tensor
        in_forward, in_backward = self.waits
        kept = model.message if model.recompute else self._kept_by_a_layer

        def seconds(work: float, wait: float) -> list[float]:
            return [size * (machine.overhead + self.rows * work / model.n_layers / speed + wait) for size in sizes]

        nbytes, latency, bandwidth = self._message
        gradients = [math.ceil(count * model.parameter_bytes) for count in counts]
        return Costs(
            forward=seconds(model.forward, in_forward),
            backward=seconds(model.full_backward, in_backward),
            latency=latency,
            bandwidth=bandwidth,
            activation_bytes=math.ceil(nbytes),
            n_replicas=self.way.n_replicas,
            reduce_seconds=[self._reduce_seconds(size) for size in gradients],
            bucket_bytes=_BUCKET_BYTES,
            parameter_bytes=gradients,
            optimizer_bytes=[math.ceil(count * model.optimizer_bytes) for count in counts],
            stored_bytes=[math.ceil(self.rows * size * kept) for size in sizes],
        )

    def _reduce_seconds(self, nbytes: int) -> float:
        """Of a stage's gradients, in buckets, each around the ring."""
        latency, bandwidth = self.replica_link
        hops = 2 * (self.way.n_replicas - 1) * (math.ceil(nbytes / _BUCKET_BYTES) - 1)
        return ring_seconds(nbytes, self.way.n_replicas, latency, bandwidth) + hops * latency

    def gather(self, rank: int) -> tuple[float, int]:
        """Seconds of ZeRO-1's all-gather of a rank's parameters at the end of a step, and bytes that it sends."""
        n, stages = self.way.n_replicas, self.way.n_stages  # the ranks of replicas of one stage are alike
        nbytes = sum(self.counts[rank % stages :: stages]) * self.model.parameter_bytes
        # Half of a ring all-reduce: n - 1 hops, in each of which a rank hands on 1/n of the parameters.
        return ring_seconds(nbytes, n, *self.replica_link) / 2, round(nbytes * (n - 1) / n)

    def layer_times(self, costs: Costs) -> tuple[float, list[float], list[int]]:
        """Of replicas of one stage: seconds of its forward and of each layer's backward, and bytes of its gradients."""
        layers = self.model.n_layers
        seconds, (nbytes,) = costs.seconds(1), costs.sizes("gradient_bytes", 1)
        (forward,), (backward,) = seconds[Op.F], seconds[Op.B]
        return forward, [backward / layers] * layers, [math.ceil(nbytes / layers)] * layers

    def simulated(self) -> Timeline:
        """One step; of a hybrid, that of one replica, of tensor parallelism, that of one device of each group."""
        way, m, costs = self.way, self.n_microbatches, self.costs()
        if way.n_stages == 1 and way.n_replicas > 1:
            timeline = self._replicas(costs)
        else:
            schedule = build(way.schedule or "1F1B", way.n_stages, m, way.n_chunks)
            timeline = simulate(schedule.with_reduce() if way.n_replicas > 1 else schedule, costs)
        name = f"{way}, one replica" if way.n_stages > 1 and way.n_replicas > 1 else str(way)
        timeline = replace(timeline, name=f"{name}, m = {m}")
        return self._with_gather(timeline) if self.zero else timeline

    def _replicas(self, costs: Costs) -> Timeline:
        """Replicas accumulate m - 1 micro-batches; the last one's backward overlaps with its all-reduces."""
        n, m = self.way.n_replicas, self.n_microbatches
        forward, backward, nbytes = self.layer_times(costs)
        latency, bandwidth = self.replica_link
        last = simulate_data_parallel(backward, nbytes, n, forward=forward, latency=latency, bandwidth=bandwidth)
        if m == 1:
            return last
        before = simulate(build("1F1B", 1, m - 1, 1), costs)
        events = [event._replace(rank=rank, stage=rank) for rank in range(n) for event in before]
        for event in last.shifted(before.makespan):
            events.append(event._replace(microbatch=m - 1) if event.kind == "F" else event)
        return Timeline(tuple(events), last.source, n, last.name)

    def _with_gather(self, timeline: Timeline) -> Timeline:
        """The same, and an all-gather of the parameters at the end."""
        end, events = timeline.end, list(timeline.events)
        for rank in range(timeline.n_ranks):
            seconds, sent = self.gather(rank)
            events.append(Event(rank, "COLLECTIVE", end, end + seconds, name="all_gather", nbytes=sent))
        return replace(timeline, events=tuple(events), name=f"{timeline.name} + ZeRO-1")
