"""Three models on three machines, what a plan makes of them, and the best plan for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from operator import itemgetter
from typing import NamedTuple

from ppkit.builders import gpipe, interleaved_1f1b, one_f_one_b, zero_bubble_h1
from ppkit.costs import Costs
from ppkit.memory import Memory, memory
from ppkit.partition import equal_sizes
from ppkit.planner import Machine, Model
from ppkit.schedule import Op, Schedule
from ppkit.simulate import simulate
from ppkit.simulate_ddp import ring_seconds
from ppkit.timeline import Timeline

__all__ = [
    "CLUSTER",
    "HOME",
    "SCHEDULES",
    "SERVER",
    "Decision",
    "Outcome",
    "Site",
    "at_least",
    "best",
    "impossible",
    "many",
    "outcome",
]

# Builders by name, with the number of chunks that they make of a rank's layers.
SCHEDULES: dict[str, tuple[Callable[[int, int], Schedule], int]] = {
    "GPipe": (gpipe, 1),
    "1F1B": (one_f_one_b, 1),
    "interleaved": (partial(interleaved_1f1b, n_chunks=2), 2),
    "ZB-H1": (zero_bubble_h1, 1),
}
_GB = 10**9


class Link(NamedTuple):
    """Seconds of a message however small, and bytes a second."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Site:
    """A model, the machine that it is to be trained on, and the batch.

    Attributes:
        name: in the tasks.
        model: what a sample costs.
        node: devices and links of one node.
        batch: samples in a step, over all replicas.
        n_nodes: nodes, all alike.
        between: the link between two devices of different nodes.
    """

    name: str
    model: Model
    node: Machine
    batch: int
    n_nodes: int = 1
    between: Link | None = None

    @property
    def n_devices(self) -> int:
        """In all nodes."""
        return self.node.n_devices * self.n_nodes

    def link(self, in_a_node: bool) -> Link:
        """The link between devices that all lie in one node, or not."""
        if self.between and not in_a_node:
            return self.between
        return Link(self.node.latency, self.node.bandwidth or math.inf)


def _transformer(n_layers: int, width: int, length: int) -> Model:
    """A transformer as in lesson 08: mixed precision with Adam, an attention that does not store its scores."""
    n = 12 * width**2 * n_layers
    size = length * width
    return Model(n_layers, n, 34 * size, 2 * n * length, 2 * size, parameter_bytes=2, optimizer_bytes=12)


HOME = Site("home", _transformer(24, 1024, 512), Machine(2, 8 * _GB, 15e12, 1e-4, 0.5e9, 5e-4), batch=64)
SERVER = Site("server", _transformer(24, 2048, 16384), Machine(8, 24 * _GB, 100e12, 1e-5, 50e9, 1e-4), batch=32)
CLUSTER = Site(
    "cluster",
    _transformer(40, 5120, 2048),
    Machine(8, 80 * _GB, 300e12, 1e-5, 200e9, 1e-4),
    batch=256,
    n_nodes=4,
    between=Link(5e-5, 3e9),
)


@dataclass(frozen=True)
class Decision:
    """A plan: what the learner decides.

    Attributes:
        replicas, stages: replicas, and devices of each.
        microbatches: parts in which a replica takes its share of the batch.
        schedule: one of `SCHEDULES`.
        recompute: whether a stage keeps its input alone, and runs its forward again before its backward.
        zero: whether the optimizer's state is cut over the replicas.
        in_a_node: what neighbouring devices hold: "stages" of one replica, or "replicas" of one stage.
    """

    replicas: int
    stages: int
    microbatches: int
    schedule: str = "1F1B"
    recompute: bool = False
    zero: bool = False
    in_a_node: str = "stages"


def many(count: int, what: str) -> str:
    """How many of what, with its plural."""
    return f"{count} {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('ch') else 's'}"


def impossible(site: Site, plan: Decision) -> str:
    """Why a plan cannot be, in words; empty if it can."""
    used, pieces = plan.replicas * plan.stages, plan.stages * SCHEDULES[plan.schedule][1]
    if used > site.n_devices:
        wanted = f"{many(plan.replicas, 'replica')} of {many(plan.stages, 'stage')}"
        return f"{wanted} are {used} devices; there are {site.n_devices}"
    if pieces > site.model.n_layers:
        return f"a replica is cut in {pieces} pieces, but the model has {site.model.n_layers} layers"
    parts = plan.replicas * plan.microbatches
    if site.batch % parts:
        wanted = f"{many(plan.replicas, 'replica')} with {many(plan.microbatches, 'micro-batch')} each"
        return f"{wanted}: {site.batch} samples cannot be divided evenly into {parts}"
    if plan.stages == 1 and plan.schedule == "interleaved":
        return "interleaved chunks need at least 2 stages"
    if plan.recompute and plan.schedule == "ZB-H1":
        return "recomputation does not go together with ZB-H1, which keeps what its weight gradients need"
    return ""


@dataclass(frozen=True)
class Outcome:
    """What a simulation makes of a plan.

    Attributes:
        timeline: one step of one replica.
        memory: of that replica's ranks, without what is recomputed.
        recomputed: bytes of a stage's activations that are there while its backward runs; 0 without recomputation.
    """

    timeline: Timeline
    memory: Memory
    recomputed: int

    @property
    def seconds(self) -> float:
        """Of one step."""
        return self.timeline.makespan

    @property
    def peaks(self) -> tuple[int, ...]:
        """The most bytes that each rank of the replica holds."""
        return tuple(peak + self.recomputed for peak in self.memory.peak)

    @property
    def fullest(self) -> int:
        """The rank that holds the most."""
        return self.peaks.index(max(self.peaks))


@lru_cache(maxsize=64)  # a timeline of many ranks has megabytes
def outcome(site: Site, plan: Decision) -> Outcome:
    """Simulate one step of a plan that is possible.

    Counted as `ppkit.planner` counts; besides, with recomputation a backward takes a forward longer, and a stage keeps
    its input alone, and one micro-batch's activations during a backward (lesson 07). A stage's gradients are
    all-reduced over a ring after its last backward. All boundaries count as the slowest among them.
    """
    build = SCHEDULES[plan.schedule][0]
    schedule = build(plan.stages, plan.microbatches)
    costs, full = _costs(site, plan)
    timeline = simulate(schedule.with_reduce() if plan.replicas > 1 else schedule, costs)
    name = f"your plan for {site.name}" + (", one replica" if plan.replicas > 1 else "")
    timeline = replace(timeline, name=name)
    return Outcome(timeline, memory(timeline, costs), full if plan.recompute else 0)


def _links(site: Site, plan: Decision) -> tuple[Link, Link]:
    """The slowest link between neighbouring stages, and between the replicas of a stage."""
    size, used = site.node.n_devices, plan.stages * plan.replicas
    stages_inside = plan.in_a_node == "stages"
    in_a_row = plan.stages if stages_inside else plan.replicas  # so many devices in a row belong together
    near, far = site.link(used <= size or size % in_a_row == 0), site.link(used <= size)
    return (near, far) if stages_inside else (far, near)


@lru_cache(maxsize=4096)
def _costs(site: Site, plan: Decision) -> tuple[Costs, int]:
    """Costs of each stage, and the bytes that the largest one keeps of one micro-batch without recomputation."""
    model, node = site.model, site.node
    rows = site.batch // (plan.replicas * plan.microbatches)
    sizes = equal_sizes(model.n_layers, plan.stages * SCHEDULES[plan.schedule][1])
    forward, backward = (
        [size * (node.overhead + times * rows * model.forward / model.n_layers / node.speed) for size in sizes]
        for times in (1, 2)
    )
    if plan.recompute:
        backward = [sum(both) for both in zip(forward, backward, strict=True)]
    counts = [model.n_parameters * size // model.n_layers for size in sizes]
    shares = plan.replicas if plan.zero else 1
    along, across = _links(site, plan)
    message = int(rows * (model.message_bytes or 0))
    stored = [int(rows * size * model.activation_bytes) for size in sizes]
    # ZeRO-1 all-gathers the parameters after the step: once more half of a ring all-reduce.
    rounds = 1.5 if plan.zero and plan.replicas > 1 else 1.0
    costs = Costs(
        forward,
        backward,
        latency=along.latency,
        bandwidth=along.bandwidth,
        activation_bytes=message,
        n_replicas=plan.replicas,
        reduce_seconds=[
            rounds * ring_seconds(count * model.parameter_bytes, plan.replicas, *across) for count in counts
        ],
        parameter_bytes=[count * model.parameter_bytes for count in counts],
        optimizer_bytes=[count * model.optimizer_bytes // shares for count in counts],
        stored_bytes=[message] * len(sizes) if plan.recompute else stored,
    )
    return costs, max(stored)


# The best plan


@lru_cache
def best(site: Site) -> Decision:
    """The fastest plan that fits, among those whose numbers are powers of two.

    Branch and bound: plans are simulated in the order of the least that they can take, until no other can be faster.
    """
    found, least = None, math.inf
    for bound, plan in sorted(((at_least(site, plan), plan) for plan in _plans(site)), key=itemgetter(0)):
        if bound >= least:
            break
        result = outcome(site, plan)
        if max(result.peaks) <= site.node.memory and result.seconds < least:
            found, least = plan, result.seconds
    assert found is not None, site.name
    return found


def _plans(site: Site) -> Iterator[Decision]:
    """All plans whose numbers are powers of two, but for those that need more memory at first sight."""
    powers = [2**n for n in range(max(site.n_devices, site.batch).bit_length())]
    placements = ("stages", "replicas") if site.n_nodes > 1 else ("stages",)
    for replicas, stages, m in product(powers, powers, powers):
        for schedule, recompute, zero, place in product(SCHEDULES, (False, True), (False, True), placements):
            plan = Decision(replicas, stages, m, schedule, recompute, zero, place)
            if (zero and replicas == 1) or impossible(site, plan):
                continue
            costs, full = _costs(site, plan)
            pieces = stages * SCHEDULES[schedule][1]
            parts = ("parameter_bytes", "gradient_bytes", "optimizer_bytes")
            first = [sum(costs.sizes(part, pieces)[::stages]) for part in parts]  # of the first rank's pieces
            if sum(first) + full <= site.node.memory:
                yield plan


def at_least(site: Site, plan: Decision) -> float:
    """Seconds that a step cannot undercut: filling the pipeline up to a rank, that rank's work, and draining it."""
    costs, _ = _costs(site, plan)
    n = plan.stages * SCHEDULES[plan.schedule][1]
    table = costs.seconds(n)
    split = plan.schedule == "ZB-H1"  # a rank may do its last weight gradients while the others drain
    hop = costs.latency + costs.nbytes(n)[0] / (costs.bandwidth or math.inf)
    way, most = 0.0, 0.0
    for rank in range(plan.stages):
        work = sum(table[Op.F][piece] + table[Op.B][piece] for piece in range(rank, n, plan.stages))
        most = max(most, way + plan.microbatches * work)
        way += table[Op.F][rank] + hop + (0 if split else table[Op.B][rank] + hop)
    return most + (costs.reduce(n)[0][0] if plan.replicas > 1 and plan.stages == 1 else 0)
