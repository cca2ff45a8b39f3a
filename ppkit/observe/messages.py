"""Sees the messages and collectives of `torch.distributed`, and delays them on emulated links."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from ppkit.launch.frames import Frame, learner_line
from ppkit.observe.buffers import lend
from ppkit.observe.fields import NEVER_WAITED, Message, Row
from ppkit.observe.recorder import Recorder
from ppkit.observe.work import ObservedCollective, ObservedReceive, ObservedSend


class Pattern(NamedTuple):
    """What a collective of n ranks costs one rank on a ring: bytes it sends as a multiple of its tensor's, and hops.

    Patarasuk & Yuan, "Bandwidth optimal all-reduce algorithms", 2009; the pieces of a broadcast follow each other.
    """

    tensor: str  # name of the parameter whose bytes count
    bytes_factor: Callable[[int], float]
    hops: Callable[[int], int]


COLLECTIVES = {
    "all_reduce": Pattern("tensor", lambda n: 2 * (n - 1) / n, lambda n: 2 * (n - 1)),
    "broadcast": Pattern("tensor", lambda n: (n - 1) / n, lambda n: n - 1),
    "reduce": Pattern("tensor", lambda n: (n - 1) / n, lambda n: n - 1),
    "all_gather": Pattern("tensor", lambda n: n - 1, lambda n: n - 1),
    "all_gather_into_tensor": Pattern("input_tensor", lambda n: n - 1, lambda n: n - 1),
    "reduce_scatter": Pattern("output", lambda n: n - 1, lambda n: n - 1),
    "reduce_scatter_tensor": Pattern("output", lambda n: n - 1, lambda n: n - 1),
    "gather": Pattern("tensor", lambda n: (n - 1) / n, lambda n: n - 1),
    "scatter": Pattern("tensor", lambda n: (n - 1) / n, lambda n: n - 1),
    "all_to_all_single": Pattern("input", lambda n: (n - 1) / n, lambda n: n - 1),
    "barrier": Pattern("", lambda n: 0.0, lambda n: n - 1),
}

# Newer names of the same, under which torch's own fully_shard calls them.
NEWER = {"all_gather_single": "all_gather_into_tensor", "reduce_scatter_single": "reduce_scatter_tensor"}


def message_wrappers(recorder: Recorder) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Return what is to be replaced by what in both modules that hold the functions of `torch.distributed`."""
    observed = {
        "send": _observed_send(recorder, c10d.send),
        "recv": _observed_recv(recorder, c10d.recv),
        "isend": _observed_isend(recorder, c10d.isend),
        "irecv": _observed_irecv(recorder, c10d.irecv),
    }
    for name, pattern in COLLECTIVES.items():
        observed[name] = _observed_collective(recorder, name, pattern, getattr(c10d, name))
    for name, known in NEWER.items():
        if hasattr(c10d, name):
            observed[name] = _observed_collective(recorder, known, COLLECTIVES[known], getattr(c10d, name))
    running = _Running()
    outermost = {name: _outermost(running, call, getattr(c10d, name)) for name, call in observed.items()}
    return [(module, name, call) for name, call in outermost.items() for module in (c10d, dist)]


class _Running(threading.local):
    """Whether a call of the learner's is running in this thread."""

    inside = False


def _outermost(running: _Running, observed: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Observe the learner's own calls alone, with their lines: torch makes a `send` of `isend` and `wait`."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if running.inside:
            return original(*args, **kwargs)
        running.inside = True
        try:
            return observed(learner_line(sys._getframe(1)), *args, **kwargs)
        finally:
            running.inside = False

    return call


def _nbytes(tensor: Any) -> int:
    return tensor.nbytes if isinstance(tensor, torch.Tensor) else 0


def _peer(recorder: Recorder, what: str, rank: int | None, group: Any, group_rank: int | None) -> int | None:
    """Return a peer's global rank, however it was given; None: whoever sends.

    Raises:
        ValueError: if there is no such rank, for which gloo ends the process.
    """
    peer = rank
    if rank is None and group_rank is not None:
        peer = group_rank if group is None else dist.get_global_rank(group, group_rank)
    if peer is not None and not 0 <= peer < recorder.n_ranks:
        last = recorder.n_ranks - 1
        raise ValueError(
            f"rank {recorder.rank} {what} rank {peer}, but there is no such rank: they go from 0 to {last}"
        )
    return peer


def _observed_send(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    def send(
        line: Frame | None,
        tensor: torch.Tensor,
        dst: int | None = None,
        group: Any = None,
        tag: int = 0,
        group_dst: int | None = None,
    ) -> None:
        peer = _peer(recorder, "sends to", dst, group, group_dst)
        start = recorder.now()
        message = _sends(recorder, peer, tag, group, "send", tensor, start, line)
        recorder.wait_begins("send", peer, tag, tensor)
        try:
            original(tensor, dst, group, tag, group_dst)
        finally:
            end = recorder.wait_ends()
        recorder.communicate(Row("SEND", start, end, "send", None, None, peer, tag, _nbytes(tensor), message))

    return send


def _observed_isend(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    def isend(
        line: Frame | None,
        tensor: torch.Tensor,
        dst: int | None = None,
        group: Any = None,
        tag: int = 0,
        group_dst: int | None = None,
    ) -> Any:
        peer = _peer(recorder, "sends to", dst, group, group_dst)
        start = recorder.now()
        message = _sends(recorder, peer, tag, group, "isend", tensor, start, line)
        work = original(tensor, dst, group, tag, group_dst)
        end = recorder.now()
        row = Row("SEND", start, end, "isend", None, None, peer, tag, _nbytes(tensor), message, note=NEVER_WAITED)
        recorder.communicate(row)
        if work is None:
            return None
        return ObservedSend(recorder, work, row, tensor, line, lend(recorder.remarks, tensor, line, receives=False))

    return isend


def _sends(
    recorder: Recorder,
    peer: int | None,
    tag: int,
    group: Any,
    name: str,
    tensor: Any,
    now: float,
    line: Frame | None,
) -> Message | None:
    """Number, stamp and check a message; what gloo is never asked to send is left to torch's own error."""
    if peer is None or peer == recorder.rank or not isinstance(tensor, torch.Tensor) or not tensor.is_contiguous():
        return None
    return recorder.agreement.sends(peer, tag, group, name, tensor, now, line)


def _expects(
    recorder: Recorder, peer: int | None, tag: int, group: Any, name: str, tensor: Any, line: Frame | None
) -> Message | None:
    """The same for a receive from a known rank."""
    if peer is None or peer == recorder.rank or not isinstance(tensor, torch.Tensor):
        return None
    return recorder.agreement.expects(peer, tag, group, name, tensor, line)


def _observed_recv(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    def recv(
        line: Frame | None,
        tensor: torch.Tensor,
        src: int | None = None,
        group: Any = None,
        tag: int = 0,
        group_src: int | None = None,
    ) -> Any:
        peer = _peer(recorder, "receives from", src, group, group_src)
        message = _expects(recorder, peer, tag, group, "recv", tensor, line)
        start = recorder.wait_begins("recv", peer, tag, tensor)
        try:
            sender = original(tensor, src, group, tag, group_src)
        finally:
            recorder.wait_ends()
        source = peer if peer is not None else sender
        if peer is None and source != -1:  # -1: this rank is not in the group
            message = recorder.agreement.received(source, tag, group, "recv", tensor, line)
        nbytes = _nbytes(tensor)
        end = recorder.now() if message is None else recorder.arrived(message, nbytes, start)
        recorder.communicate(Row("RECV", start, end, "recv", None, None, source, tag, nbytes, message))
        return sender

    return recv


def _observed_irecv(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    def irecv(
        line: Frame | None,
        tensor: torch.Tensor,
        src: int | None = None,
        group: Any = None,
        tag: int = 0,
        group_src: int | None = None,
    ) -> Any:
        peer = _peer(recorder, "receives from", src, group, group_src)
        message = _expects(recorder, peer, tag, group, "irecv", tensor, line)
        work = original(tensor, src, group, tag, group_src)
        if work is None:
            return None
        if peer is None:
            recorder.agreement.expects_from_anyone()
        now = recorder.now()
        row = Row("RECV", now, now, "irecv", None, None, peer, tag, _nbytes(tensor), note=NEVER_WAITED)
        recorder.communicate(row)
        loan = lend(recorder.remarks, tensor, line, receives=True)
        return ObservedReceive(recorder, work, row, tensor, line, message, loan)

    return irecv


def _observed_collective(
    recorder: Recorder, name: str, pattern: Pattern, original: Callable[..., Any]
) -> Callable[..., Any]:
    signature = inspect.signature(original)
    summed = signature.parameters["op"].default if "op" in signature.parameters else None

    def collective(line: Frame | None, *args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        tensor = arguments.get(pattern.tensor)
        n = dist.get_world_size(arguments.get("group"))
        if n < 1:  # this rank is not in the group: torch warns and does nothing
            return original(*args, **kwargs)
        nbytes = round(_nbytes(tensor) * pattern.bytes_factor(n))
        link = None if recorder.emulation is None else recorder.emulation.link
        seconds = 0.0 if link is None else link.seconds(nbytes, pattern.hops(n))
        group, reduction = arguments.get("group"), arguments.get("op", summed)
        if not seconds:
            recorder.behind = 0.0  # the others wait for this rank as it is
        start = recorder.now()
        exchange = recorder.agreement.joins(name, tensor, group, _root(arguments), reduction, start, line)
        shown = getattr(tensor, "label", name)  # such as "bucket 0 (1.2 MB)"
        recorder.wait_begins(name, None, None, tensor)
        last_joined = functools.partial(recorder.agreement.last_joined, exchange)
        ride = recorder.wire.ride(group, seconds, last_joined) if seconds else None
        try:
            work = original(*args, **kwargs)
        finally:
            end = recorder.wait_ends()
        if work is not None:
            row = recorder.communicate(Row("COLLECTIVE", start, end, shown, nbytes=nbytes, note=NEVER_WAITED))
            return ObservedCollective(recorder, work, row, tensor, line, ride)
        # Whoever comes last sets the start of the exchange on the emulated ring; the real one is over by now.
        if ride is not None:
            ride.join(end)
            free_at, over = ride.times()
            start, end = max(start, free_at), recorder.is_at(over)
        recorder.communicate(Row("COLLECTIVE", start, end, shown, nbytes=nbytes))
        return None

    return collective


def _root(arguments: dict[str, Any]) -> int:
    """Return the global rank that a collective comes from or goes to; -1: it has none, or torch's default."""
    for name in ("src", "dst"):
        if arguments.get(name) is not None:
            return int(arguments[name])
        if arguments.get(f"group_{name}") is not None:
            group: Any = arguments.get("group") or dist.group.WORLD
            return dist.get_global_rank(group, arguments[f"group_{name}"])
    return -1
