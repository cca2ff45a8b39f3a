"""What a data-parallel step would take on ideal devices, with its all-reduces under the backward or after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple

from ppkit.errors import CostsError
from ppkit.event import Event
from ppkit.timeline import Timeline
from ppkit.units import bytes_text
from ppkit.values import whole

__all__ = ["bucket_label", "data_parallel_step", "fill_buckets", "ring_seconds", "simulate_data_parallel"]


def ring_seconds(nbytes: float, n_replicas: int, latency: float = 0.0, bandwidth: float | None = None) -> float:
    """How long an all-reduce over a ring takes: 2 (n - 1) hops, in each of which a rank sends 1/n of the tensor.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.

    Args:
        nbytes: of the tensor.
        n_replicas: ranks in the ring; one needs no time.
        latency: seconds of a hop.
        bandwidth: bytes a second of a link; None: without limit.
    """
    hops = 2 * (n_replicas - 1)
    return hops * latency + (hops / n_replicas * nbytes / bandwidth if bandwidth else 0.0)


def fill_buckets(nbytes: Sequence[float], bucket_bytes: float) -> list[list[int]]:
    """Put items in buckets, in their order; a bucket is full when it holds `bucket_bytes` or more.

    Args:
        nbytes: of each item.
        bucket_bytes: 0 gives each item a bucket of its own.

    Returns:
        for each bucket, the indices of its items.

    Raises:
        CostsError: `bucket_bytes` is no number of bytes.
    """
    _check("bucket_bytes", bucket_bytes)
    buckets: list[list[int]] = []
    room = 0.0
    for i, size in enumerate(nbytes):
        if room <= 0:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(i)
        room -= size
    return buckets


def bucket_label(index: int, nbytes: float, of: str = "") -> str:
    """The name of a bucket on a timeline: "bucket 0 (1.2 MB)", or "bucket 0 of stage 3 (1.2 MB)"."""
    return f"bucket {index}{' of ' * bool(of)}{of} ({bytes_text(nbytes)})"


def simulate_data_parallel(
    backward: Sequence[float],
    gradient_bytes: Sequence[int],
    n_replicas: int = 2,
    bucket_bytes: float = 25 * 2**20,
    *,
    forward: float | None = None,
    optimizer: float = 0.0,
    latency: float = 0.0,
    bandwidth: float | None = None,
    overlap: bool = True,
) -> Timeline:
    """One training step of data parallelism on identical devices, one replica each.

    The backward goes from the last layer to the first. A bucket whose gradients are all there is all-reduced over a
    ring, one bucket at a time: with overlap while the backward goes on, else after it.

    Args:
        backward: seconds of each layer's backward, the first layer first.
        gradient_bytes: bytes of each layer's gradients.
        n_replicas: number of ranks.
        bucket_bytes: a bucket is full when it holds as many bytes; 0: a bucket for each layer.
        forward: seconds of the whole forward; None: half of the whole backward.
        optimizer: seconds of the optimizer's step.
        latency: seconds of one hop of the ring.
        bandwidth: bytes a second of a link; None: without limit.
        overlap: all-reduce while the backward still computes.

    Returns:
        a timeline from second 0, its source ``"simulated"``.

    Raises:
        CostsError: durations and bytes that don't pair, or are no finite numbers of at least 0.
    """
    own, reduces = _parts(
        backward, gradient_bytes, n_replicas, bucket_bytes, forward, optimizer, latency, bandwidth, overlap
    )
    events = [event for rank in range(n_replicas) for event in _events(rank, own, reduces)]
    counts = ((int(n_replicas), "replica"), (len(reduces), "bucket"))
    ranks, buckets = (f"{n} {what}{'s' * (n != 1)}" for n, what in counts)
    name = f"data parallel, {ranks}, {buckets}, {'with' if overlap else 'without'} overlap"
    return Timeline(tuple(events), "simulated", n_replicas, name)


def data_parallel_step(
    backward: Sequence[float],
    gradient_bytes: Sequence[int],
    n_replicas: int,
    *,
    forward: float,
    latency: float,
    bandwidth: float | None,
) -> tuple[float, int]:
    """The makespan of ``simulate_data_parallel`` with these arguments, and the bytes that a rank sends."""
    bucket_bytes = 25 * 2**20
    own, reduces = _parts(
        backward, gradient_bytes, n_replicas, bucket_bytes, forward, 0.0, latency, bandwidth, overlap=True
    )
    return own[-1].end, sum(part.nbytes for part in reduces)


class _Part(NamedTuple):
    name: str
    start: float
    end: float
    nbytes: int = 0


def _parts(
    backward: Sequence[float],
    gradient_bytes: Sequence[int],
    n_replicas: int,
    bucket_bytes: float,
    forward: float | None,
    optimizer: float,
    latency: float,
    bandwidth: float | None,
    overlap: bool,
) -> tuple[list[_Part], list[_Part]]:
    """What each rank computes, the optimizer's step last, and its all-reduces."""
    for name, values in (("backward", backward), ("gradient_bytes", gradient_bytes)):
        if not isinstance(values, Iterable):
            raise CostsError(f"{name}={values!r}: give one for each layer, such as [{values!r}]", values={name: values})
    seconds = [_check("backward", value) for value in backward]
    sizes = [_check("gradient_bytes", value) for value in gradient_bytes]
    if not seconds or len(seconds) != len(sizes):
        raise CostsError(
            f"backward has {len(seconds)} durations and gradient_bytes {len(sizes)} sizes: give one of each a layer"
        )
    if (whole(n_replicas) or 0) < 1:
        raise CostsError(f"n_replicas={n_replicas!r}: a whole number of at least 1")
    if bandwidth is not None and not _check("bandwidth", bandwidth):
        raise CostsError("bandwidth=0: bytes a second above 0, or None for no limit")
    _check("latency", latency)
    ahead = sum(seconds) / 2 if forward is None else _check("forward", forward)
    layers = _backward(seconds, ahead)
    reduces = _reduces(layers, sizes, fill_buckets(sizes[::-1], bucket_bytes), n_replicas, latency, bandwidth, overlap)
    end = max([layers[-1].end, *(part.end for part in reduces)])
    own = [_Part("forward", 0.0, ahead), *layers, _Part("optimizer", end, end + _check("optimizer", optimizer))]
    return own, reduces


def _backward(seconds: Sequence[float], start: float) -> list[_Part]:
    """Return the layers' backwards, the last layer first."""
    parts = []
    for layer in reversed(range(len(seconds))):
        parts.append(_Part(f"backward of layer {layer}", start, start + seconds[layer]))
        start = parts[-1].end
    return parts


def _reduces(
    layers: Sequence[_Part],
    sizes: Sequence[float],
    buckets: Sequence[Sequence[int]],
    n: int,
    latency: float,
    bandwidth: float | None,
    overlap: bool,
) -> list[_Part]:
    """Return the all-reduces of the buckets, whose items count from the last layer."""
    parts: list[_Part] = []
    free = 0.0
    for index, items in enumerate(buckets if n > 1 else ()):
        nbytes = sum(sizes[-1 - i] for i in items)
        start = max(free, layers[items[-1]].end if overlap else layers[-1].end)
        free = start + ring_seconds(nbytes, n, latency, bandwidth)
        sent = round(2 * (n - 1) / n * nbytes)
        parts.append(_Part(bucket_label(index, nbytes), start, free, sent))
    return parts


def _events(rank: int, own: Sequence[_Part], reduces: Sequence[_Part]) -> Iterator[Event]:
    forward, *layers, optimizer = own
    if forward.end:
        yield Event(rank, "F", 0.0, forward.end, rank, 0, forward.name, held_until=layers[-1].end)
    for part in layers:
        yield Event(rank, "B", part.start, part.end, rank, None, part.name)
    for part in reduces:
        yield Event(rank, "COLLECTIVE", part.start, part.end, name=part.name, nbytes=part.nbytes)
    yield Event(rank, "OPTIM", optimizer.start, optimizer.end, name=optimizer.name)


def _check(name: str, value: Any) -> float:
    known = isinstance(value, Real) and not isinstance(value, bool)  # NumPy's numbers are Real too
    number = float(value) if known else math.nan
    if not 0 <= number < math.inf:
        raise CostsError(f"{name}: {value!r} is no finite number of at least 0", values={name: value})
    return number
