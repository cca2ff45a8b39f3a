"""What a way of training takes, computed as far as the planner asks: memory first, its time only if that may win."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

from ppkit.costs import Costs
from ppkit.plans import Option
from ppkit.quick import peak_bytes, step_seconds
from ppkit.schedule import Op
from ppkit.simulate_ddp import data_parallel_step
from ppkit.ways import Step

__all__ = ["Draft"]


class Draft:
    """One step of the planner's, as `Step.simulated` would have it, without its events.

    Args:
        step: the way, the number of micro-batches, the model and the machine.
        plain: the same step without ZeRO-1, if it is with it and the other is there.
    """

    def __init__(self, step: Step, plain: Draft | None = None) -> None:
        self.step = step
        self._plain = plain or (Draft(step._replace(zero=False)) if step.zero else self)

    def with_zero(self) -> Draft:
        """The same with the optimizer's state cut over the replicas."""
        return Draft(self.step._replace(zero=True), self)

    @property
    def kind(self) -> str:
        """Without numbers."""
        return self.step.way.kind + " + ZeRO-1" * self.step.zero

    @property
    def name(self) -> str:
        """With them."""
        return str(self.step.way) + " + ZeRO-1" * self.step.zero

    @property
    def option(self) -> Option:
        """The same as what a plan shows."""
        way = self.step.way
        return Option(
            self.kind,
            self.name,
            way.n_replicas,
            way.n_stages,
            self.step.n_microbatches,
            self.memory,
            self.step.batch,
            self.seconds,
            self._bubble,
            max(self._sent),
            way.n_tensor,
            self.step.simulated,
        )

    # Memory

    @cached_property
    def memory(self) -> tuple[int, ...]:
        """Bytes that each rank of the timeline holds at most; in tensor parallelism, each device of a rank's group."""
        if self.step.zero:
            return tuple(held - self._freed(rank) for rank, held in enumerate(self._plain.memory))
        way = self.step.way
        held = peak_bytes(way.schedule or "1F1B", way.n_stages, self.step.n_microbatches, way.n_chunks, self._costs)
        return tuple(one + self.step.working_bytes for one in held) * self._copies

    @property
    def peak_memory(self) -> int:
        """Bytes on the rank that holds the most."""
        return max(self.memory)

    def _freed(self, rank: int) -> int:
        """Bytes of the optimizer's state that other replicas keep."""
        n, p = self.step.way.n_replicas, self.step.way.n_stages
        return math.floor(sum(self.step.counts[rank % p :: p]) * self.step.model.optimizer_bytes * (n - 1) / n)

    # Time

    @cached_property
    def bound(self) -> float:
        """Seconds that the step takes at least: a rank's work, the first micro-batch's way there, the last one's back.

        In ZB-H1 a rank may end with weight gradients, which nobody waits for.
        """
        way, costs = self.step.way, self._costs
        around, most = 0.0, 0.0
        for rank in range(way.n_stages):
            most = max(most, around + self._work(rank))
            back = 0.0 if way.schedule == "ZB-H1" else self._seconds[Op.B][rank]
            links = 2 if back else 1
            around += self._seconds[Op.F][rank] + back + links * costs.transfer_seconds(self._messages[rank])
        return most

    @cached_property
    def seconds(self) -> float:
        """The makespan, as simulated to the last bit."""
        way, m = self.step.way, self.step.n_microbatches
        if self.step.zero:
            return self._plain.seconds + max(self.step.gather(rank)[0] for rank in range(way.n_stages))
        if way.n_stages > 1:
            return step_seconds(way.schedule, way.n_stages, m, way.n_chunks, self._costs)
        if way.n_replicas == 1:
            return step_seconds("1F1B", 1, m, 1, self._costs)
        before = step_seconds("1F1B", 1, m - 1, 1, replace(self._costs, n_replicas=1)) if m > 1 else 0.0
        return before + self._last_microbatch[0]

    @property
    def _bubble(self) -> float:
        """The part of the step in which a device does not compute; it waits in tensor parallelism's all-reduces too."""
        p, m = self.step.way.n_stages, self.step.n_microbatches
        waits = m * sum(self.step.waits) * self.step.model.n_layers
        busy = (sum(map(self._work, range(p))) - waits) / (p * self.seconds)
        return 0.0 if busy > 1 - 1e-12 else 1 - busy  # sums in another order may differ in the last bit

    def _work(self, rank: int) -> float:
        p, seconds = self.step.way.n_stages, self._seconds
        return self.step.n_microbatches * (sum(seconds[Op.F][rank::p]) + sum(seconds[Op.B][rank::p]))

    # Messages

    @property
    def _sent(self) -> list[int]:
        """Bytes that each rank, or a device of it, sends in a step."""
        way, m = self.step.way, self.step.n_microbatches
        p, n = way.n_stages, way.n_stages * way.n_chunks
        sent = [self.step.tensor_bytes(rank) for rank in range(p)]
        if p == 1 and way.n_replicas > 1:
            sent[0] += self._last_microbatch[1]
        elif p > 1:
            for stage in range(n - 1):
                sent[stage % p] += m * self._messages[stage]
                sent[(stage + 1) % p] += m * self._messages[stage]
            for stage, reductions in enumerate(self._costs.reductions(n)):
                sent[stage % p] += sum(one.sent for one in reductions)
        if self.step.zero:
            sent = [own + self.step.gather(rank)[1] for rank, own in enumerate(sent)]
        return sent

    # What these are computed from

    @cached_property
    def _costs(self) -> Costs:
        return self._plain._costs if self.step.zero else self.step.costs()

    @cached_property
    def _seconds(self) -> dict[Op, tuple[float, ...]]:
        return self._costs.seconds(self.step.way.n_stages * self.step.way.n_chunks)

    @cached_property
    def _messages(self) -> tuple[int, ...]:
        return self._costs.nbytes(self.step.way.n_stages * self.step.way.n_chunks)

    @property
    def _copies(self) -> int:
        """Ranks of the timeline that are alike: replicas of one stage are all shown."""
        return self.step.way.n_replicas if self.step.way.n_stages == 1 else 1

    @cached_property
    def _last_microbatch(self) -> tuple[float, int]:
        """Of replicas of one stage: seconds of the last micro-batch, with its all-reduces, and bytes sent in them."""
        forward, backward, nbytes = self.step.layer_times(self._costs)
        latency, bandwidth = self.step.replica_link
        n = self.step.way.n_replicas
        return data_parallel_step(backward, nbytes, n, forward=forward, latency=latency, bandwidth=bandwidth)
