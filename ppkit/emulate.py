"""Emulated devices and links: real arithmetic and real messages, at stated durations."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppkit.errors import LaunchError
from ppkit.units import duration
from ppkit.values import listed, real


@dataclass(frozen=True)
class Link:
    """A connection between two ranks: a message is there `latency + bytes / bandwidth` after it was sent.

    Messages of one link do not queue behind each other, as in `ppkit.simulate`.

    Args:
        latency: seconds.
        bandwidth: bytes a second; None for no limit.

    Raises:
        LaunchError: for a negative latency, a bandwidth that is not positive, or one that is no number.
    """

    latency: float = 0.0
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "latency", _seconds("latency", self.latency))
        if self.bandwidth is None:
            return
        if not 0 < real(self.bandwidth) < math.inf:
            raise LaunchError(
                f"Link(bandwidth={self.bandwidth!r}): bandwidth is bytes a second, a number above 0, or None",
                values={"bandwidth": self.bandwidth},
            )
        object.__setattr__(self, "bandwidth", real(self.bandwidth))

    def seconds(self, nbytes: float, hops: int = 1) -> float:
        """Return how long `nbytes` take over `hops` such links, one behind the other, sent in pieces."""
        return hops * self.latency + (nbytes / self.bandwidth if self.bandwidth else 0.0)

    def __str__(self) -> str:
        if not self.latency and not self.bandwidth:
            return "link without delay"
        parts = [duration(self.latency)] if self.latency else []
        parts += [f"{self.bandwidth / 1e9:g} GB/s"] if self.bandwidth else []
        return "link " + " + ".join(parts)


@dataclass(frozen=True)
class Emulation:
    """How long the operations of an emulated device take.

    Four ranks on two cores cannot show parallel speed. With `launch(..., emulate=Emulation(...))` every outermost
    forward or backward does its real arithmetic and then sleeps until its stated duration is over, and every
    message arrives as late as `link` says. Values, gradients and the order of things stay real. An operation that
    takes longer than stated is marked, and the timeline's title says how many were. Where a real message, or the
    system that wakes a sleeping rank, is late by up to 5 ms, the rank's next sleep is shorter by as much: a rank's
    times are those at which what is stated is over. What the code between operations takes is not made up for.

    Args:
        forward: seconds of a stage's forward; a number, or one for each stage; None leaves it as long as it takes.
        backward: seconds of a full backward, likewise; left out: the sum of the next two, where both are given.
        input_grad, weight_grad: seconds of a backward for the inputs alone or the weights alone; half of
            `backward` where they are not given.
        optimizer: seconds of an optimizer's step, likewise.
        link: the connection between any two ranks. Collectives go over it one at a time, in a ring.
        per_layer: spread a backward's duration over its parameters, by their size, so that the gradients come one
            after the other as on a device, and hooks on them run when they would; else all come at the beginning.

    Raises:
        LaunchError: for a duration that is negative, NaN, infinite or no number.
    """

    forward: float | Sequence[float] | None = None
    backward: float | Sequence[float] | None = None
    input_grad: float | Sequence[float] | None = None
    weight_grad: float | Sequence[float] | None = None
    optimizer: float | Sequence[float] | None = None
    link: Link = field(default_factory=Link)
    per_layer: bool = False

    def __post_init__(self) -> None:
        for name in ("forward", "backward", "input_grad", "weight_grad", "optimizer"):
            value = getattr(self, name)
            several = listed(value)
            if several == []:
                raise LaunchError(f"Emulation({name}=[]): give one number, or one for each stage", values={name: value})
            if value is not None:
                plain = _seconds(name, value) if several is None else tuple(_seconds(name, item) for item in several)
                object.__setattr__(self, name, plain)
        if not isinstance(self.link, Link):
            raise LaunchError(f"Emulation(link={self.link!r}): link is a ppkit.Link", values={"link": self.link})

    def check_stages(self, n_ranks: int) -> None:
        """Raise `LaunchError` if a duration is given for each stage, but not for every rank's first one."""
        for name in ("forward", "backward", "input_grad", "weight_grad", "optimizer"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) < n_ranks:
                raise LaunchError(
                    f"Emulation({name}={list(value)}) gives {len(value)} durations for {n_ranks} ranks; "
                    f"give one number, or one for each stage ({n_ranks} or more)",
                    values={name: value, "n_ranks": n_ranks},
                )

    def seconds(self, kind: str, stage: int) -> float | None:
        """Return the stated duration of an event of `kind` ("F", "B", "I", "W", "OPTIM") on `stage`, or None."""
        if kind in ("I", "W"):
            own = self._of_stage("input_grad" if kind == "I" else "weight_grad", stage)
            full = self._of_stage("backward", stage)
            return own if own is not None or full is None else full / 2
        if kind == "B" and self.backward is None:
            own, other = self._of_stage("input_grad", stage), self._of_stage("weight_grad", stage)
            return None if own is None or other is None else own + other
        return self._of_stage({"F": "forward", "B": "backward", "OPTIM": "optimizer"}[kind], stage)

    def _of_stage(self, name: str, stage: int) -> float | None:
        value: float | Sequence[float] | None = getattr(self, name)
        if isinstance(value, Sequence):
            return value[stage] if stage < len(value) else None
        return value

    def __str__(self) -> str:
        names = {"forward": "F", "backward": "B", "input_grad": "I", "weight_grad": "W", "optimizer": "step"}
        parts = [
            f"{label} {_durations(getattr(self, name))}"
            for name, label in names.items()
            if getattr(self, name) is not None
        ]
        parts += ["layer by layer"] * (self.per_layer and self.seconds("B", 0) is not None)
        return ", ".join(parts + [str(self.link)] * (self.link != Link()) or ["nothing slowed down"])


def sleep_until(deadline: float) -> None:
    """Return at `deadline`, a time of `time.perf_counter()`, or some 0.1 ms later on a machine that has time.

    Nothing waits awake for it: that would take the core from a rank that has something to do.
    """
    while (remaining := deadline - time.perf_counter()) > 0:
        time.sleep(remaining)


def _durations(value: float | Sequence[float]) -> str:
    return "/".join(map(duration, value)) if isinstance(value, Sequence) else duration(value)


def _seconds(name: str, value: object) -> float:
    if not 0 <= real(value) < math.inf:
        raise LaunchError(f"{name}={value!r}: a duration is a number of seconds, 0 or more", values={name: value})
    return real(value)
