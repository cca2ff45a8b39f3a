"""Interleaved 1F1B: each rank holds several thin slices of the model instead of one thick one."""

from __future__ import annotations

from itertools import pairwise

from ppkit.schedule import Action, Op, Schedule, check_count, check_size

__all__ = ["interleaved_1f1b"]


def interleaved_1f1b(n_ranks: int, n_microbatches: int, n_chunks: int) -> Schedule:
    """Interleaved 1F1B: stage s is a chunk of rank s modulo p (Narayanan et al., arXiv 2104.04473, section 2.2).

    ``interleaved_1f1b(2, 4, 2)``; 2F1 is stage 2, forward, micro-batch 1; time goes right, B drawn as long as F::

        rank 0  0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 .   2B2 .   2B3 0B2 0B3
        rank 1  .   1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3 .

    A rank works through its chunks in rounds: about p micro-batches through its first chunk, the same through
    the next, and so on; backwards likewise from the last chunk. With v chunks a rank, a chunk takes 1/v of a
    rank's F and B, so the bubble is (p−1)(F+B)/v. The price is v times the messages, and more in flight: rank r
    holds (v−1)k + 2(p−1−r) + 1 activations of a chunk, at most m·v, where k is the longest round (p, if p
    divides m).

    Megatron takes multiples of p only. Here any number goes, in max(1, m // p) rounds as equal as can be, the
    longer ones first; a round of p or more keeps every chunk supplied. With m < p there is one round of m, and
    the bubble grows by (p−m)(v−1)(F+B)/v. Where torch's ``ScheduleInterleaved1F1B`` accepts the number, which
    it does if the rounds come out equal, the actions are the same. One chunk is not 1F1B: twice its warm-up,
    the same bubble.

    Args:
        n_ranks: the number of processes, p.
        n_microbatches: parts of the batch, any number from 1, m.
        n_chunks: slices of the model on each rank, v; the model has ``n_ranks * n_chunks`` stages.

    Returns:
        Each rank's warm-up, steady state and cool-down.

    Raises:
        ScheduleError: a count is not a whole number of at least 1.
    """
    p, m = check_count("n_ranks", n_ranks), check_count("n_microbatches", n_microbatches)
    v = check_count("n_chunks", n_chunks)
    check_size(n_ranks=p, n_microbatches=m, n_chunks=v)
    rounds = _rounds(p, m)
    # Every rank goes through the same chunks and micro-batches in the same order.
    turns = [(chunk, i) for part in rounds for chunk in range(v) for i in part]
    rows = []
    for r in range(p):
        forwards = [Action(chunk * p + r, Op.F, i) for chunk, i in turns]
        backwards = [Action((v - 1 - chunk) * p + r, Op.B, i) for chunk, i in turns]
        # The first round up to the last chunk, and twice the ranks after this one: there and back.
        w = min((v - 1) * len(rounds[0]) + 2 * (p - 1 - r), m * v)
        # Warm-up: wF; steady state: (mv-w)(FB); cool-down: wB
        steady = [action for pair in zip(forwards[w:], backwards, strict=False) for action in pair]
        rows.append((*forwards[:w], *steady, *backwards[m * v - w :]))
    return Schedule("interleaved 1F1B", p, p * v, m, tuple(rows), tuple(stage % p for stage in range(p * v)))


def _rounds(p: int, m: int) -> list[range]:
    """The micro-batches in as many rounds of p or more as there can be, of equal length or one apart."""
    count = max(1, m // p)
    bounds = [0]
    for number in range(count):
        bounds.append(bounds[-1] + m // count + (number < m % count))
    return [range(start, end) for start, end in pairwise(bounds)]
