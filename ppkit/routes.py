"""How values get from one stage to another and gradients back: over the network, or by hand within a rank."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ppkit.handshake import Spec, empty_specs, pack_specs, receive_quietly, send_quietly, unpack_specs
from ppkit.stage import Gradients, PipelineError, Tensors

__all__ = ["TAGS", "Link", "Net", "RemoteRoute", "Route"]

TAGS = 64  # for each line: one for the handshake, the others for the tensors of a tuple
# Receives of a line that are posted when a rank waits for the first of them, as a message that finds its buffer ready
# comes sooner and costs both ends less: always so many, and more while all their buffers take up to so many bytes.
_AHEAD = 2
_AHEAD_BYTES = 1 << 20


class Sent(NamedTuple):
    """A message on its way, and the buffer that must live until it is there."""

    work: Any
    buffer: Tensor


class Route:
    """From a stage to a later one on the same rank: values are handed over as they are."""

    remote = False

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self._values: dict[int, Tensors] = {}
        self._gradients: dict[int, Gradients] = {}

    def begin(self, changed: bool) -> None:
        """Prepare for a step."""

    def send(self, microbatch: int, tensors: Tensors) -> list[Sent]:
        """Bring the results of `source` on their way."""
        self._values[microbatch] = tensors
        return []

    def receive(self, microbatch: int) -> Tensors:
        """What `target` takes: leaves, which need a gradient where `source` wants one."""
        return self._values.pop(microbatch)

    def send_back(self, microbatch: int, gradients: Gradients) -> list[Sent]:
        """Bring the gradients of what `receive` gave on their way."""
        self._gradients[microbatch] = gradients
        return []

    def receive_back(self, microbatch: int) -> Gradients:
        """The gradients of what `send` sent."""
        return self._gradients.pop(microbatch)


@dataclass(frozen=True)
class Net:
    """What all messages of a pipeline have in common.

    Attributes:
        group: the process group; None for the default one.
        device: where stages compute.
        wire: where the backend takes tensors from: the CPU for gloo.
    """

    group: Any
    device: torch.device
    wire: torch.device


@dataclass(frozen=True)
class Link:
    """One direction between two stages on different ranks.

    Attributes:
        peer: the rank at the other end, in the group.
        number: among all of the pipeline's lines; tells its messages from those of others.
        order: micro-batches, in the order in which they are sent.
        group: where this direction has a process group of its own.
    """

    peer: int
    number: int
    order: Sequence[int]
    group: Any = None


class _Line:
    """One direction at one of its ends."""

    def __init__(self, net: Net, link: Link) -> None:
        self._net = net
        self._peer = link.peer
        self._group = link.group or net.group
        self.tag = link.number * TAGS
        self._order = link.order
        self._next = 0  # the position in the order of the next receive to post
        self._posted: deque[tuple[int, list[tuple[Any, Tensor]]]] = deque()
        self._posted_bytes = 0
        self._arrived: dict[int, list[Tensor]] = {}

    def send(self, tensors: Sequence[Tensor]) -> list[Sent]:
        sent = []
        for number, tensor in enumerate(tensors, start=1):
            buffer = tensor.detach().to(self._net.wire).contiguous()
            work = dist.isend(buffer, group=self._group, group_dst=self._peer, tag=self.tag + number)
            sent.append(Sent(work, buffer))
        return sent

    def begin(self) -> None:
        """Prepare for a step."""
        self._next = 0

    def receive(self, microbatch: int, specs: dict[int, tuple[Spec, ...]]) -> list[Tensor]:
        while microbatch not in self._arrived:
            self._post_ahead(specs)
            arriving, posted = self._posted.popleft()
            self._arrived[arriving] = [_arrival(work, buffer, self._net.device) for work, buffer in posted]
            self._posted_bytes -= sum(buffer.nbytes for _, buffer in posted)
        return self._arrived.pop(microbatch)

    def next_new(self, specs: dict[int, tuple[Spec, ...]]) -> int:
        """The first micro-batch, in the order they are sent, whose specs have not come yet."""
        return next(microbatch for microbatch in self._order if microbatch not in specs)

    def _post_ahead(self, specs: dict[int, tuple[Spec, ...]]) -> None:
        """Post the receives of the next micro-batches, as far as their specs are known."""
        while self._next < len(self._order) and (microbatch := self._order[self._next]) in specs:
            nbytes = sum(spec.nbytes for spec in specs[microbatch])
            if len(self._posted) >= _AHEAD and self._posted_bytes + nbytes > _AHEAD_BYTES:
                return
            self._posted.append((microbatch, [self._post(*each) for each in enumerate(specs[microbatch], start=1)]))
            self._posted_bytes += nbytes
            self._next += 1

    def _post(self, number: int, spec: Spec) -> tuple[Any, Tensor]:
        buffer = torch.empty(spec.shape, dtype=spec.dtype, device=self._net.wire)
        return dist.irecv(buffer, group=self._group, group_src=self._peer, tag=self.tag + number), buffer

    def send_specs(self, specs: Sequence[Spec]) -> Sent:
        if len(specs) >= TAGS:
            raise PipelineError(f"a stage hands on {len(specs)} tensors; at most {TAGS - 1} can be sent singly")
        message = pack_specs(specs, self._net.wire)
        return Sent(send_quietly(message, self._group, self._peer, self.tag), message)

    def receive_specs(self) -> tuple[Spec, ...]:
        return unpack_specs(receive_quietly(empty_specs(self._net.wire), self._group, self._peer, self.tag))


def _arrival(work: Any, buffer: Tensor, device: torch.device) -> Tensor:
    work.wait()
    return buffer.to(device)


class RemoteRoute(Route):
    """From a stage to a later one on another rank, seen from either end.

    In a step whose shapes are new, each message is preceded by one that says what comes. Later steps rely on it: they
    post receives before the values are needed.

    Args:
        source: the stage that sends values.
        target: the stage that sends gradients back.
        net: common to all messages.
        onward: the values' direction.
        back: the gradients' direction.
    """

    remote = True

    def __init__(self, source: int, target: int, net: Net, onward: Link, back: Link) -> None:
        super().__init__(source, target)
        self._onward = _Line(net, onward)
        self._back = _Line(net, back)
        self._specs: dict[int, tuple[Spec, ...]] = {}  # of the values, by micro-batch
        self._back_specs: dict[int, tuple[Spec, ...]] = {}
        self._changed = True

    def begin(self, changed: bool) -> None:
        """Prepare for a step; forget what was agreed, if it has changed."""
        self._changed = changed
        if changed:
            self._specs.clear()
            self._back_specs.clear()
        self._onward.begin()
        self._back.begin()

    def send(self, microbatch: int, tensors: Tensors) -> list[Sent]:
        """As `Route.send`; raises PipelineError for other shapes than were agreed on."""
        specs = tuple(map(Spec.of, tensors))
        sent = []
        if self._changed:
            self._agree(microbatch, specs)
            sent.append(self._onward.send_specs(specs))
        elif specs != self._specs[microbatch]:
            was, now = (", ".join(map(str, each)) for each in (self._specs[microbatch], specs))
            raise PipelineError(
                f"stage {self.source} hands on {now}, but for inputs of the same shape it handed on {was} before, and "
                f"stage {self.target} waits for that. After such a change call forget_shapes() on every rank",
                stage=self.source,
                values={"was": was, "now": now},
            )
        return sent + self._onward.send(tensors)

    def receive(self, microbatch: int) -> Tensors:
        """As `Route.receive`; waits."""
        while self._changed and microbatch not in self._specs:
            self._agree(self._onward.next_new(self._specs), self._onward.receive_specs())
        found = self._onward.receive(microbatch, self._specs)
        specs = self._specs[microbatch]
        return tuple(x.requires_grad_(spec.requires_grad) for x, spec in zip(found, specs, strict=True))

    def send_back(self, microbatch: int, gradients: Gradients) -> list[Sent]:
        """As `Route.send_back`."""
        return self._back.send([gradient for gradient in gradients if gradient is not None])

    def receive_back(self, microbatch: int) -> Gradients:
        """As `Route.receive_back`; waits."""
        found = iter(self._back.receive(microbatch, self._back_specs))
        return [next(found) if spec.requires_grad else None for spec in self._specs[microbatch]]

    def _agree(self, microbatch: int, specs: tuple[Spec, ...]) -> None:
        self._specs[microbatch] = specs
        self._back_specs[microbatch] = tuple(spec for spec in specs if spec.requires_grad)
