"""Spreads an emulated backward over its parameters, and lets emulated collectives take the link one at a time."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

import torch
from torch import nn

_EARLY = 0.0002  # seconds
_LAST = 0.0007  # likewise, for the last gradient: what its hooks do, such as to start a bucket, is in the stated time


class Pace:
    """When each gradient of the running backward is complete, if its stated duration is spread over the layers.

    A hook before a gradient's accumulation, and so before every other hook on the gradient, waits until as much of
    the stated duration is over as its parameter has of the numbers: the arithmetic of a matrix grows with its size.

    Args:
        is_at: sleeps until a moment, and lets the rank's clock say so, as `Recorder.is_at`.
    """

    def __init__(self, is_at: Callable[[float], float]) -> None:
        self._is_at = is_at
        self.stages: dict[object, int] = {}  # numbers to train, by stage
        self.has_followers = False  # something may go on at the end of a backward: to wait for its gradients' messages
        self._hooked: set[torch.Tensor] = set()
        self._start = 0.0
        self._rate = 0.0  # seconds a number; 0: nothing is spread
        self._done = self._all = 0

    def add(self, stage: object, module: nn.Module, per_layer: bool) -> None:
        """Know a stage that is called for the first time."""
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.stages[stage] = sum(parameter.numel() for parameter in parameters)
        by_torch = isinstance(module, nn.parallel.DistributedDataParallel)
        self.has_followers |= by_torch or any(parameter._post_accumulate_grad_hooks for parameter in parameters)
        if per_layer:
            for parameter in set(parameters) - self._hooked:
                parameter.register_hook(self._hook(parameter.numel()))
            self._hooked.update(parameters)

    def begin(self, start: float, seconds: float, stages: Iterable[object]) -> None:
        """Spread the backward of some stages that began at `start` over `seconds`."""
        total = sum(self.stages[stage] for stage in stages)
        self._rate = seconds / total if total else 0.0
        self._start, self._done, self._all = start, 0, total

    def spread(self, module: nn.Module, start: float, seconds: float) -> None:
        """Spread the backward of a module that an executor runs."""
        if module not in self.stages:
            self.add(module, module, per_layer=True)
        self.begin(start, seconds, [module])

    def end(self) -> None:
        """Spread no more."""
        self._rate = 0.0

    def _hook(self, numbers: int) -> Callable[[torch.Tensor], None]:
        def wait(_gradient: torch.Tensor) -> None:
            if self._rate:
                self._done += numbers
                # A little early, since a sleep ends late: the backward's own end makes up for it.
                early = _EARLY if self._done < self._all else _LAST
                self._is_at(self._start + self._done * self._rate - early)

        return wait


class Ride:
    """One collective on the emulated ring.

    Args:
        wire: the ring.
        seconds: that it takes there.
        last_joined: tells when the last rank came to it, if that is known.
    """

    def __init__(self, wire: Wire, seconds: float, last_joined: Callable[[], float | None]) -> None:
        self.seconds = seconds
        self.joined: float | None = None  # when the last rank had joined it
        self._wire = wire
        self._last_joined = last_joined
        self._begin = self._end = 0.0
        self._known = threading.Event()

    def join(self, now: float) -> None:
        """Note, as gloo has ended it, that all ranks have joined, so that it can begin: with the last, or now."""
        self.joined = self._last_joined() or now
        self._wire.advance()

    def times(self) -> tuple[float, float]:
        """Return when the ring was free for it and when it is over; for one that gloo has ended."""
        self._known.wait()  # the note may come from another thread, a moment later than gloo's word
        return self._begin, self._end

    def run(self, free_at: float) -> float:
        """Take place once the ring is free; return when it is free again."""
        self._begin, self._end = free_at, max(free_at, self.joined or 0.0) + self.seconds
        self._known.set()
        return self._end


class Wire:
    """A rank's place on the emulated ring, which collectives use one at a time, each group's in their order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # asynchronous collectives end in threads of gloo's
        self._free_at = 0.0
        self._waiting: dict[object, deque[Ride]] = defaultdict(deque)

    def ride(self, group: object, seconds: float, last_joined: Callable[[], float | None]) -> Ride:
        """Queue a collective of `group`, as it is called."""
        ride = Ride(self, seconds, last_joined)
        with self._lock:
            self._waiting[group].append(ride)
        return ride

    def advance(self) -> None:
        """Give those their times that all ranks have joined, and that have none of their group before them."""
        with self._lock:
            for queue in self._waiting.values():
                while queue and queue[0].joined is not None:
                    self._free_at = queue.popleft().run(self._free_at)
