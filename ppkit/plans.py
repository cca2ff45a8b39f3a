"""Values of the planner: a model, a machine, the ways of training that fit, and those that don't."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from html import escape
from typing import Any, NamedTuple

from ppkit.errors import PpkitError
from ppkit.timeline import Timeline
from ppkit.units import bytes_text, duration, number, percent
from ppkit.values import real

__all__ = ["MOST_DEVICES", "Machine", "Model", "Option", "Plan", "PlanError", "Rejected"]

MOST_DEVICES = 64  # of a plan: to compare all ways on more takes long


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
        whole_bytes: of ``activation_bytes``, what tensor parallelism does not divide; left out: as
            ``message_bytes``, but no more than all. Of a transformer's 34 s·h bytes 10 s·h (arXiv 2205.05198).
        n_heads: of a layer; tensor parallelism cuts between heads. Left out: wherever it likes.
        recompute: a layer keeps its input alone, and its backward computes its forward again.

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
    whole_bytes: float | None = None
    n_heads: int | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        _check(self, counts=("n_layers", "n_parameters", "n_heads"), above_zero=("forward", "parameter_bytes"))

    @property
    def message(self) -> float:
        """Bytes of one sample between two layers."""
        return self.activation_bytes if self.message_bytes is None else self.message_bytes

    @property
    def whole(self) -> float:
        """Bytes of one sample's activations in a layer that tensor parallelism does not divide."""
        return min(self.message if self.whole_bytes is None else self.whole_bytes, self.activation_bytes)

    @property
    def full_backward(self) -> float:
        """FLOPs of one sample's backward, with the forward that is computed again, if so."""
        backward = 2 * self.forward if self.backward is None else self.backward
        return backward + self.forward * self.recompute


@dataclass(frozen=True)
class Machine:
    """Equal devices, and equal links between any two of them, or faster ones inside a node.

    Args:
        n_devices: how many.
        memory: bytes of each device.
        speed: FLOPs a second that a device reaches in practice.
        latency: seconds of a message, however small.
        bandwidth: bytes a second of a link; None: without limit.
        overhead: seconds that a layer's forward, and likewise its backward, takes beside its arithmetic: they
            make micro-batches that are too small expensive.
        node_size: devices of a node, such as a server; with 1, the default, links are all alike and tensor
            parallelism is not considered.
        node_latency: seconds of a message inside a node; left out: as ``latency``.
        node_bandwidth: bytes a second of a link inside a node; left out: as ``bandwidth``.

    Raises:
        PlanError: a number that cannot be.
    """

    n_devices: int
    memory: float
    speed: float = 1.0
    latency: float = 0.0
    bandwidth: float | None = None
    overhead: float = 0.0
    node_size: int = 1
    node_latency: float | None = None
    node_bandwidth: float | None = None

    def __post_init__(self) -> None:
        above_zero = ("memory", "speed", "bandwidth", "node_bandwidth")
        _check(self, counts=("n_devices", "node_size"), above_zero=above_zero)

    def link(self, span: int) -> tuple[float, float | None]:
        """Latency and bandwidth between devices of a group that lies on so many devices in a row."""
        if self.node_size % span:
            return self.latency, self.bandwidth
        latency = self.latency if self.node_latency is None else self.node_latency
        return latency, self.bandwidth if self.node_bandwidth is None else self.node_bandwidth


def _check(given: Model | Machine, counts: Sequence[str], above_zero: Sequence[str]) -> None:
    for one in fields(given):
        name, value = one.name, getattr(given, one.name)
        if value is None and one.default is None:
            continue
        if one.default is False:
            if not isinstance(value, bool):
                raise PlanError(f"{type(given).__name__}({name}={value!r}): {name} must be True or False")
            continue
        amount = real(value)  # of NumPy's numbers too
        whole = 1 <= amount < math.inf and amount.is_integer()
        if not 0 <= amount < math.inf or (name in above_zero and not amount) or (name in counts and not whole):
            kind = "whole number of at least 1" if name in counts else "finite number"
            bound = " above 0" if name in above_zero else "" if name in counts else " of at least 0"
            raise PlanError(
                f"{type(given).__name__}({name}={value!r}): {name} must be a {kind}{bound}", values={name: value}
            )
        if name in counts:  # written as 175e9, say
            object.__setattr__(given, name, int(value))
        elif not isinstance(value, (int, float)):
            object.__setattr__(given, name, int(amount) if amount.is_integer() else amount)


@dataclass(frozen=True, repr=False)
class Option:
    """One way of training, as simulated.

    Attributes:
        kind: without numbers, such as ``"DP × 1F1B"``.
        name: with them, such as ``"2 replicas × 1F1B, 4 stages"``.
        n_replicas, n_stages: replicas, and stages of each.
        n_microbatches: parts in which a replica takes its share of the batch.
        memory: bytes that each rank of the timeline holds at most; with tensor parallelism, each of its devices.
        batch: samples in a step.
        seconds: of one step.
        bubble: the part of the step in which a device does not compute, communication that is waited for included.
        bytes_sent: in a step, by the rank that sends the most; with tensor parallelism, by one of its devices.
        n_tensor: devices of each stage, which share its layers.
        simulate: gives the timeline.
    """

    kind: str
    name: str
    n_replicas: int
    n_stages: int
    n_microbatches: int
    memory: tuple[int, ...]
    batch: int
    seconds: float
    bubble: float
    bytes_sent: int
    n_tensor: int
    simulate: Callable[[], Timeline] = field(compare=False)

    @cached_property
    def timeline(self) -> Timeline:
        """One step, simulated; of a hybrid, that of one replica. Tensor parallelism's all-reduces are in F and B."""
        return self.simulate()

    @property
    def n_devices(self) -> int:
        """Devices in use."""
        return self.n_replicas * self.n_stages * self.n_tensor

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return self.batch / self.seconds

    @property
    def peak_memory(self) -> int:
        """Bytes on the rank that holds the most."""
        return max(self.memory)

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
        if layer > self.machine.memory and self.machine.node_size == 1:
            return (
                f"One layer with one sample needs {bytes_text(layer)}, a device has {bytes_text(self.machine.memory)}: "
                "no pipeline can help, since a stage holds whole layers. Cut the layers themselves (tensor "
                "parallelism), or take larger devices."
            )
        closest = self._refused_kinds[0]
        advice = "or a smaller batch" if self.model.recompute else "a smaller batch, or recompute"
        return f"Closest: {closest.name}, which {closest.why}. Take more devices, {advice}."

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
