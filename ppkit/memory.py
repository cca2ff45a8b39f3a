"""What every rank keeps in memory when: parameters, gradients, optimizer state, activations, leftovers of I."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any

from ppkit.costs import Costs
from ppkit.errors import CostsError, TimelineError
from ppkit.event import Event
from ppkit.metrics import held
from ppkit.schedule import Schedule
from ppkit.simulate import simulate
from ppkit.timeline import Timeline
from ppkit.units import bytes_text, duration

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["PARTS", "Curve", "Memory", "memory"]

PARTS = ("parameters", "optimizer state", "gradients", "activations", "weight-gradient leftovers")


@dataclass(frozen=True)
class Curve:
    """One rank's memory over time: ``totals[k]`` bytes from ``times[k]`` until ``times[k + 1]``.

    Args:
        times: seconds from the timeline's start, rising; the first is 0.
        parts: for each of ``PARTS`` its bytes from each time on.
    """

    times: tuple[float, ...]
    parts: Mapping[str, tuple[int, ...]]

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """Bytes of all parts from each time on."""
        return tuple(map(sum, zip(*self.parts.values(), strict=True)))

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return max(self.totals)

    @property
    def peak_at(self) -> float:
        """Seconds from the timeline's start: when the peak is first reached."""
        return self.times[self.totals.index(self.peak)]

    def at(self, seconds: float) -> dict[str, int]:
        """Bytes of each part at a time, counted from the timeline's start; what changes then has changed."""
        index = max(0, bisect_right(self.times, seconds) - 1)
        return {part: values[index] for part, values in self.parts.items()}


@dataclass(frozen=True, repr=False)
class Memory:
    """Memory of every rank over the time of a timeline; shows itself as step curves under the Gantt.

    Args:
        timeline: what happens when.
        curves: one for each rank.
    """

    timeline: Timeline
    curves: tuple[Curve, ...]

    @property
    def peak(self) -> tuple[int, ...]:
        """For each rank the most bytes that it holds at once."""
        return tuple(curve.peak for curve in self.curves)

    @property
    def peak_at(self) -> tuple[float, ...]:
        """For each rank, in seconds from the timeline's start, when that is first so."""
        return tuple(curve.peak_at for curve in self.curves)

    def gantt(self, **options: Any) -> go.Figure:
        """The Gantt with a step curve for each rank beneath it; options as ``ppkit.gantt`` takes them."""
        from ppkit.draw import gantt

        return gantt(self.timeline, memory=self, **options)

    def to_svg(self) -> str:
        """The same as one static SVG picture."""
        from ppkit.draw import to_svg

        return to_svg(self.timeline, memory=self)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__

    def _lines(self) -> Iterator[str]:
        yield f"memory of {self.timeline.name or 'the timeline'}"
        rows: list[tuple[str, ...]] = [("peak", "at", *PARTS)]
        for curve in self.curves:
            when = duration(curve.peak_at, self.timeline.notes.get("unit"))
            then = curve.at(curve.peak_at)
            rows.append((bytes_text(curve.peak), when, *(bytes_text(then[part]) for part in PARTS)))
        used = [n for n, head in enumerate(rows[0]) if n < 2 or any(any(curve.parts[head]) for curve in self.curves)]
        widths = {n: max(len(row[n]) for row in rows) for n in used}
        for number, row in enumerate(rows):
            head = f"rank {number - 1}" if number else ""
            yield f"{head:<8}" + "  ".join(f"{row[n]:>{widths[n]}}" for n in used)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from ppkit.draw import mimebundle

        return mimebundle(self.timeline, memory=self)


def memory(what: Schedule | Timeline, costs: Costs) -> Memory:
    """How many bytes every rank holds when, given what each thing takes.

    Counted as in the zero-bubble paper (arXiv 2401.10241, section 4): a stage's F stores ``costs.stored_bytes`` from
    its start until the end of its B or I (``held_until``, where a measured forward has it); an I leaves
    ``costs.leftover_bytes`` until the end of its W. A stage's parameters and optimizer state are there all the
    time; its gradients from the start of its first B or W, as PyTorch makes them.

    Args:
        what: a timeline, simulated or measured; or a schedule, which is simulated with ``costs``.
        costs: its sizes, in bytes, a scalar or one value for each stage.

    Raises:
        CostsError: all sizes are zero, or one has not one value for each stage.
        TimelineError: ``what`` is neither, or names no stage.
    """
    if isinstance(what, Schedule):
        what = simulate(what, costs)
    if not isinstance(what, Timeline):
        raise TimelineError(f"memory() takes a Schedule or a Timeline; got {what!r}")
    if not isinstance(costs, Costs):
        raise CostsError(f"costs must be a Costs, such as Costs(activation_bytes=1_000_000); got {costs!r}")
    stages = {event.stage for event in what if event.stage is not None}
    if not stages:
        raise TimelineError(f"{what.name or 'the timeline'} names no stage, so nothing says what its ranks hold")
    sizes = _Sizes.of(costs, max(stages) + 1)
    return Memory(what, tuple(_curve(what, rank, sizes) for rank in range(what.n_ranks)))


@dataclass(frozen=True)
class _Sizes:
    """Bytes by stage."""

    parameters: tuple[int, ...]
    optimizer: tuple[int, ...]
    gradients: tuple[int, ...]
    stored: tuple[int, ...]
    leftover: tuple[int, ...]

    @classmethod
    def of(cls, costs: Costs, n_stages: int) -> _Sizes:
        names = ("parameter_bytes", "optimizer_bytes", "gradient_bytes", "stored_bytes", "leftover_bytes")
        every = [costs.sizes(name, n_stages) for name in names]
        if not any(map(any, every)):
            raise CostsError(
                "these costs say nothing of memory: all sizes are 0. Give some, such as "
                "Costs(stored_bytes=8_000_000, parameter_bytes=2_000_000)"
            )
        return cls(*every)


_Change = tuple[float, int, int]  # seconds, which of PARTS, bytes


def _curve(timeline: Timeline, rank: int, sizes: _Sizes) -> Curve:
    zero = timeline.start
    # A release goes first where two changes come at one time, as in peak_in_flight.
    changes = (change for change in _changes(timeline.of_rank(rank), sizes, zero) if change[2])
    now = [0] * len(PARTS)
    times, states = [0.0], [tuple(now)]
    for seconds, part, nbytes in sorted(changes, key=lambda change: (change[0], change[2])):
        now[part] += nbytes
        if seconds > times[-1]:
            times.append(seconds)
            states.append(tuple(now))
        else:
            states[-1] = tuple(now)
    return Curve(tuple(times), dict(zip(PARTS, zip(*states, strict=True), strict=True)))


def _changes(row: tuple[Event, ...], sizes: _Sizes, zero: float) -> Iterator[_Change]:
    seen: set[int] = set()
    written: set[int] = set()
    leftovers: dict[tuple[int, int | None], float] = {}
    for event in row:
        stage = event.stage
        if stage is None or event.lane == "comm":
            continue
        if stage not in seen:
            seen.add(stage)
            yield 0.0, 0, sizes.parameters[stage]
            yield 0.0, 1, sizes.optimizer[stage]
        if event.kind in ("B", "W") and stage not in written:
            written.add(stage)
            yield event.start - zero, 2, sizes.gradients[stage]
        if event.kind == "I":
            leftovers[stage, event.microbatch] = event.end
        if event.kind == "W" and (left := leftovers.pop((stage, event.microbatch), None)) is not None:
            yield left - zero, 4, sizes.leftover[stage]
            yield event.end - zero, 4, -sizes.leftover[stage]
    for (stage, _), left in leftovers.items():
        yield left - zero, 4, sizes.leftover[stage]
    for forward, freed in held(row):
        if forward.stage is not None:
            yield forward.start - zero, 3, sizes.stored[forward.stage]
            if freed < inf:
                yield freed - zero, 3, -sizes.stored[forward.stage]
