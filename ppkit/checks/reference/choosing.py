"""Reference for lab 08: the time of a pipeline's step, and of a ring all-reduce."""

from __future__ import annotations

__all__ = ["all_reduce_seconds", "pipeline_seconds"]


def pipeline_seconds(n_stages: int, n_microbatches: int, forward: float, backward: float, transfer: float) -> float:
    """Seconds of a step of GPipe, whose messages travel while the stages go on with the next micro-batch.

    Args:
        n_stages: how many there are.
        n_microbatches: how many there are.
        forward: seconds of one stage's forward of one micro-batch.
        backward: seconds of its backward.
        transfer: seconds of a message.
    """
    work = (n_microbatches + n_stages - 1) * (forward + backward)
    return work + 2 * (n_stages - 1) * transfer


def all_reduce_seconds(nbytes: float, n_replicas: int, latency: float, bandwidth: float) -> float:
    """Seconds of an all-reduce around a ring.

    Args:
        nbytes: of the tensor.
        n_replicas: ranks in the ring.
        latency: seconds of a message, however small.
        bandwidth: bytes a second of a link.
    """
    hops = 2 * (n_replicas - 1)
    return hops * (latency + nbytes / n_replicas / bandwidth)
