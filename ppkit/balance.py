"""Profiles the layers of a model, and cuts it where the slowest, or the largest, stage is as small as it can be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor, nn

from ppkit.builders import one_f_one_b
from ppkit.layers import ModelError
from ppkit.partition import check_stages, equal_sizes, partition, partition_by_stage, stage_sums
from ppkit.profiling import Layer, layers_of, profile
from ppkit.simulate import Costs, simulate
from ppkit.timeline import Timeline
from ppkit.units import bytes_text, duration, number, percent
from ppkit.values import listed, whole

__all__ = ["Balance", "Layer", "balance", "partition", "profile"]

_BY = ("time", "memory")


@dataclass(frozen=True, repr=False)
class Balance:
    """A cut of the measured layers in stages; it displays itself as a table.

    Attributes:
        layers: the measurements.
        sizes: the number of layers of each stage: ``split(model, n_stages, by=result.sizes)`` cuts the model so.
        by: what was balanced: ``"time"`` or ``"memory"``.
        n_in_flight: for each stage, the micro-batches whose activations count in its memory.
        copies: numbers kept for each parameter: itself, its gradient, the optimizer's state.
    """

    layers: tuple[Layer, ...]
    sizes: tuple[int, ...]
    by: str = "time"
    n_in_flight: tuple[int, ...] = ()
    copies: int = 4

    @property
    def n_stages(self) -> int:
        """How many stages."""
        return len(self.sizes)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """For each stage but the first, its first layer."""
        return tuple(sum(self.sizes[:stage]) for stage in range(1, self.n_stages))

    @property
    def equal(self) -> Balance:
        """The same layers cut by count: as many in each stage, whatever they cost."""
        return replace(self, sizes=tuple(equal_sizes(len(self.layers), self.n_stages)))

    @property
    def stage_seconds(self) -> tuple[float, ...]:
        """For each stage, forward and backward of one micro-batch."""
        return tuple(stage_sums([layer.seconds for layer in self.layers], self.sizes))

    @property
    def stage_bytes(self) -> tuple[int, ...]:
        """For each stage, the bytes that training holds."""
        held = self.n_in_flight or (1,) * self.n_stages
        stages = pairwise((0, *self.boundaries, len(self.layers)))
        return tuple(
            sum(layer.memory(count, self.copies) for layer in self.layers[first:end])
            for count, (first, end) in zip(held, stages, strict=True)
        )

    def costs(self, latency: float = 0.0, bandwidth: float | None = None) -> Costs:
        """The stages' durations and message sizes, for `ppkit.simulate`.

        Args:
            latency: seconds of a message.
            bandwidth: bytes per second of a link; None: without limit.
        """
        ends = [*self.boundaries, len(self.layers)]
        return Costs(
            forward=tuple(stage_sums([layer.forward for layer in self.layers], self.sizes)),
            backward=tuple(stage_sums([layer.backward for layer in self.layers], self.sizes)),
            latency=latency,
            bandwidth=bandwidth,
            activation_bytes=tuple(self.layers[end - 1].output_bytes for end in ends),
        )

    def predict(self, n_microbatches: int = 8) -> Timeline:
        """The simulated step of 1F1B with these stages on ideal links: its makespan and its bubble.

        Args:
            n_microbatches: parts of the batch.
        """
        return replace(simulate(one_f_one_b(self.n_stages, n_microbatches), self.costs()), name=str(list(self.sizes)))

    def __str__(self) -> str:
        return "\n".join(_table(self))

    def __repr__(self) -> str:
        return str(self)


def balance(
    model: Iterable[nn.Module],
    sample: Tensor | tuple[Tensor, ...],
    n_stages: int,
    by: str = "time",
    *,
    repeats: int = 7,
    n_in_flight: int | Sequence[int] = 1,
    copies: int = 4,
) -> Balance:
    """Measure every layer, and cut the model where its most expensive stage is as cheap as it can be.

    Args:
        model: layers in order, such as an ``nn.Sequential``; a tuple is passed on as the next one's arguments.
        sample: one micro-batch for the first layer: a tensor, or a tuple of tensors.
        n_stages: how many stages.
        by: ``"time"``: seconds of forward and backward; ``"memory"``: bytes of parameters and activations.
        repeats: how often a layer is timed; the median counts.
        n_in_flight: micro-batches whose activations a stage holds at once, for the memory: of every stage, or a number
            for each, such as ``[min(p - r, m) for r in range(p)]`` with 1F1B.
        copies: numbers kept for each parameter; 4 with Adam: itself, its gradient, two averages.

    Returns:
        the layers' costs and the stages, as a table.

    Raises:
        ModelError: ``by`` or a count is not allowed, or a layer cannot be run.
        CostsError: more stages than layers.
    """
    if by not in _BY:
        raise ModelError(f'balance: by is {by!r}; use "time" or "memory"', values={"by": by})
    layers = layers_of(model)
    n_stages = check_stages(n_stages, len(layers))  # before the measurement, which takes a while
    given = listed(n_in_flight)
    held = tuple(_count("n_in_flight", one) for one in ([n_in_flight] * n_stages if given is None else given))
    copies = _count("copies", copies)
    if len(held) != n_stages:
        raise ModelError(
            f"balance: n_in_flight has {len(held)} numbers, but there are {n_stages} stages",
            values={"n_in_flight": held, "n_stages": n_stages},
        )
    measured = profile(layers, sample, repeats=repeats)
    if by == "time":
        sizes = partition([layer.seconds for layer in measured], n_stages)
    else:
        sizes = partition_by_stage([[layer.memory(count, copies) for layer in measured] for count in held])
    return Balance(measured, tuple(sizes), by, held, copies)


def _count(name: str, value: object) -> int:
    count = whole(value)
    if count is None or count < 1:
        raise ModelError(f"balance: {name} is {value!r}; it must be a whole number of at least 1", values={name: value})
    return count


# --- The table -------------------------------------------------------------------------------------

_HEAD = ("layer", "forward", "backward", "activations", "parameters", "stage", "by count")


def _table(found: Balance) -> Iterable[str]:
    stages, equal = (_stage_of(cut.sizes) for cut in (found, found.equal))
    rows = [_HEAD]
    for layer, stage, other in zip(found.layers, stages, equal, strict=True):
        times = duration(layer.forward), duration(layer.backward)
        sizes = bytes_text(layer.activation_bytes), bytes_text(layer.parameter_bytes)
        rows.append((layer.name, *times, *sizes, str(stage), str(other)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join((f"{name:<{widths[0]}}", *right))
    yield ""
    yield from _summary(found)


def _stage_of(sizes: Sequence[int]) -> list[int]:
    return [stage for stage, size in enumerate(sizes) for _ in range(size)]


def _summary(found: Balance, n_microbatches: int = 8) -> Iterable[str]:
    for what, cut in ((f"balanced by {found.by}", found), ("by layer count", found.equal)):
        if found.by == "time":
            shares = " ".join(map(duration, cut.stage_seconds))
        else:
            shares = " ".join(map(bytes_text, cut.stage_bytes))
        step = cut.predict(n_microbatches)
        rate = n_microbatches / step.makespan if step.makespan else 0.0
        yield f"{what}: {' + '.join(map(str, cut.sizes))} layers; stages: {shares}"
        yield (
            f"    1F1B with {n_microbatches} micro-batches: bubble fraction {percent(step.bubble_fraction)}, "
            f"{number(rate)} micro-batches a second"
        )
