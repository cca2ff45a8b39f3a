"""Values of the planner: a model, a machine, the ways of training that fit, and those that don't."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import Any, NamedTuple

from ppkit.errors import PpkitError
from ppkit.timeline import Timeline
from ppkit.units import bytes_text, duration, number, percent

__all__ = ["Machine", "Model", "Option", "Plan", "PlanError", "Rejected"]

_MOST_DEVICES = 64  # to simulate more takes minutes


class PlanError(PpkitError, ValueError):
    """A model, machine or batch that cannot be, or a plan in which nothing fits."""


@dataclass(frozen=True)
class Model:
    """A model as its cost: equal layers in a row, as in a transformer without its embedding.

    Args:
        n_layers: layers; a cut lies between two.
        n_parameters: numbers in all layers together.
        activation_bytes: what one layer keeps of one sample for its backward.
        forward: FLOPs of one sample's forward through all layers; on a machine of speed 1, seconds.
        message_bytes: what one layer hands to the next, for one sample; left out: as ``activation_bytes``.
        backward: FLOPs of one sample's full backward; left out: twice the forward.
        parameter_bytes: of one parameter; its gradient takes as many.
        optimizer_bytes: of the optimizer's state for one parameter; 8 for Adam in 32 bits, 0 for plain SGD.

    Raises:
        PlanError: a number that cannot be.
    """

    n_layers: int
    n_parameters: int
    activation_bytes: float
    forward: float
    message_bytes: float | None = None
    backward: float | None = None
    parameter_bytes: int = 4
    optimizer_bytes: int = 8

    def __post_init__(self) -> None:
        _check(self, counts=("n_layers", "n_parameters"), above_zero=("forward", "parameter_bytes"))


@dataclass(frozen=True)
class Machine:
    """Equal devices, and equal links between any two of them.

    Args:
        n_devices: how many; at most 64.
        memory: bytes of each device.
        speed: FLOPs a second that a device reaches in practice.
        latency: seconds of a message, however small.
        bandwidth: bytes a second of a link; None: without limit.
        overhead: seconds that a layer's forward, and likewise its backward, takes at least: it makes
            micro-batches that are too small expensive.

    Raises:
        PlanError: a number that cannot be.
    """

    n_devices: int
    memory: float
    speed: float = 1.0
    latency: float = 0.0
    bandwidth: float | None = None
    overhead: float = 0.0

    def __post_init__(self) -> None:
        _check(self, counts=("n_devices",), above_zero=("memory", "speed", "bandwidth"))
        if self.n_devices > _MOST_DEVICES:
            raise PlanError(f"n_devices={self.n_devices}: a plan simulates at most {_MOST_DEVICES}")


def _check(given: Model | Machine, counts: Sequence[str], above_zero: Sequence[str]) -> None:
    for field in fields(given):
        name, value = field.name, getattr(given, field.name)
        if value is None and field.default is None:
            continue
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        whole = numeric and value >= 1 and value == int(value)
        if not numeric or value < 0 or (name in above_zero and not value) or (name in counts and not whole):
            kind = "whole number of at least 1" if name in counts else "finite number"
            bound = " above 0" if name in above_zero else "" if name in counts else " of at least 0"
            raise PlanError(
                f"{type(given).__name__}({name}={value!r}): {name} must be a {kind}{bound}", values={name: value}
            )


@dataclass(frozen=True, repr=False)
class Option:
    """One way of training, simulated.

    Attributes:
        kind: without numbers, such as ``"DP × 1F1B"``.
        name: with them, such as ``"2 replicas × 1F1B, 4 stages"``.
        n_replicas, n_stages: replicas, and devices of each.
        n_microbatches: parts in which a replica takes its share of the batch.
        timeline: one step; of a hybrid, that of one replica.
        memory: bytes that each rank of the timeline holds at most.
        batch: samples in a step.
    """

    kind: str
    name: str
    n_replicas: int
    n_stages: int
    n_microbatches: int
    timeline: Timeline
    memory: tuple[int, ...]
    batch: int

    @property
    def n_devices(self) -> int:
        """Devices in use."""
        return self.n_replicas * self.n_stages

    @property
    def seconds(self) -> float:
        """Of one step."""
        return self.timeline.makespan

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return self.batch / self.seconds

    @property
    def bubble(self) -> float:
        """The part of the step in which a device does not compute, communication that is waited for included."""
        return self.timeline.bubble_fraction

    @property
    def peak_memory(self) -> int:
        """Bytes on the rank that holds the most."""
        return max(self.memory)

    @property
    def bytes_sent(self) -> int:
        """Bytes in a step, by the rank that sends the most."""
        return max(self.timeline.bytes_sent)

    @property
    def row(self) -> tuple[str, ...]:
        """Its line in the table of a plan."""
        memory, sent = bytes_text(self.peak_memory), bytes_text(self.bytes_sent)
        counts = (str(self.n_devices), str(self.n_microbatches))
        return (self.name, *counts, duration(self.seconds), percent(self.bubble), memory, sent)

    def __repr__(self) -> str:
        return ", ".join(f"{head} {cell}" for head, cell in zip(_HEAD, self.row, strict=True))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return self.timeline._repr_mimebundle_(include, exclude)


_HEAD = ("strategy", "devices", "micro-batches", "step", "bubble", "memory", "bytes sent")


class Rejected(NamedTuple):
    """A way of training that this machine cannot take, and why."""

    kind: str
    name: str
    why: str
    memory: int | None = None  # bytes of the rank that holds the most, at the best number of micro-batches


@dataclass(frozen=True, repr=False)
class Plan:
    """What fits, the fastest first, and what does not; it shows itself as a table of the best of each kind.

    Attributes:
        options: all that fit.
        rejected: all others.
    """

    model: Model
    machine: Machine
    batch: int
    options: tuple[Option, ...]
    rejected: tuple[Rejected, ...]

    @property
    def best(self) -> Option:
        """The fastest.

        Raises:
            PlanError: nothing fits.
        """
        if not self.options:
            raise PlanError(f"nothing fits.\n{self._advice}", values={"memory": self.machine.memory})
        return self.options[0]

    @property
    def best_of_each_kind(self) -> tuple[Option, ...]:
        """The fastest of each kind, the fastest first."""
        best: dict[str, Option] = {}
        for option in self.options:
            best.setdefault(option.kind, option)
        return tuple(best.values())

    def of_kind(self, kind: str) -> tuple[Option, ...]:
        """All options of a kind that fit, such as ``"1F1B"``, ``"DP"`` or ``"DP × GPipe"``, the fastest first."""
        return tuple(option for option in self.options if option.kind == kind)

    @property
    def _refused_kinds(self) -> tuple[Rejected, ...]:
        """Of each kind of which nothing fits, what comes closest."""
        fitting = {option.kind for option in self.options}
        closest: dict[str, Rejected] = {}
        for item in sorted(self.rejected, key=lambda item: item.memory or math.inf):
            if item.kind not in fitting:
                closest.setdefault(item.kind, item)
        return tuple(closest.values())

    @property
    def _advice(self) -> str:
        weights = self.model.n_parameters * (2 * self.model.parameter_bytes + self.model.optimizer_bytes)
        layer = weights / self.model.n_layers + self.model.activation_bytes
        if layer > self.machine.memory:
            return (
                f"One layer with one sample needs {bytes_text(layer)}, a device has {bytes_text(self.machine.memory)}: "
                "no pipeline can help, since a stage holds whole layers. Cut the layers themselves (tensor "
                "parallelism), or take larger devices."
            )
        closest = self._refused_kinds[0]
        return f"Closest: {closest.name}, which {closest.why}. Take more devices, a smaller batch, or recompute."

    def __str__(self) -> str:
        rows = [_HEAD, *(option.row for option in self.best_of_each_kind)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows]
        refused = [f"{item.name}: {item.why}" for item in self._refused_kinds]
        return "\n".join(
            [self._title, *(lines if self.options else [self._advice]), *(["Does not fit:"] * bool(refused)), *refused]
        )

    __repr__ = __str__

    @property
    def _title(self) -> str:
        many = "devices" if self.machine.n_devices > 1 else "device"
        return (
            f"a batch of {number(self.batch)} on {self.machine.n_devices} {many} of "
            f"{bytes_text(self.machine.memory)}, simulated; the best of each kind"
        )

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            sides = ("left", *["right"] * (len(cells) - 1))
            parts = zip(cells, sides, strict=True)
            cell = "<{tag} style='text-align:{side}'>{text}</{tag}>"
            return f"<tr>{''.join(cell.format(tag=tag, side=side, text=escape(text)) for text, side in parts)}</tr>"

        body = "".join(line(option.row, "td") for option in self.best_of_each_kind)
        refused = "".join(f"<li>{escape(item.name)}: {escape(item.why)}</li>" for item in self._refused_kinds)
        table = f"<table>{line(_HEAD, 'th')}{body}</table>" if self.options else f"<p>{escape(self._advice)}</p>"
        return f"<p>{escape(self._title)}</p>{table}{f'<p>Does not fit:</p><ul>{refused}</ul>' if refused else ''}"
