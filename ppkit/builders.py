"""Every schedule of the course, the classic three here: pure functions from counts to a `Schedule`."""

from __future__ import annotations

from ppkit.interleaved import interleaved_1f1b
from ppkit.schedule import Action, Op, Schedule, check_count, check_size
from ppkit.zero_bubble import zero_bubble_h1, zero_bubble_v

__all__ = ["naive", "gpipe", "one_f_one_b", "interleaved_1f1b", "zero_bubble_h1", "zero_bubble_v"]


def naive(n_stages: int, n_microbatches: int = 1) -> Schedule:
    """Naive model parallelism: one stage works, all others wait; micro-batches one after the other.

    ``naive(3, 2)``; 0F1 is stage 0, forward, micro-batch 1; time goes right, B drawn as long as F::

        rank 0  0F0 .   .   .   .   0B0 0F1 .   .   .   .   0B1
        rank 1  .   1F0 .   .   1B0 .   .   1F1 .   .   1B1 .
        rank 2  .   .   2F0 2B0 .   .   .   .   2F1 2B1 .   .

    Of p ranks one is busy: bubble fraction (p−1)/p. One activation is held on each rank.

    Args:
        n_stages: slices of the model, one on each rank.
        n_microbatches: parts of the batch, any number from 1.

    Returns:
        Each rank's F and B in turn.

    Raises:
        ScheduleError: a count is not a whole number of at least 1.
    """
    p, m = _counts(n_stages, n_microbatches)
    rows = []
    for r in range(p):
        # m(FB)
        rows.append([Action(r, op, i) for i in range(m) for op in (Op.F, Op.B)])
    return _schedule("naive", p, m, rows)


def gpipe(n_stages: int, n_microbatches: int) -> Schedule:
    """GPipe: all forwards, then all backwards (Huang et al., arXiv 1811.06965).

    ``gpipe(3, 4)``; 0F1 is stage 0, forward, micro-batch 1; time goes right, B drawn as long as F::

        rank 0  0F0 0F1 0F2 0F3 .   .   .   .   0B0 0B1 0B2 0B3
        rank 1  .   1F0 1F1 1F2 1F3 .   .   1B0 1B1 1B2 1B3 .
        rank 2  .   .   2F0 2F1 2F2 2F3 2B0 2B1 2B2 2B3 .   .

    Bubble (p−1)(F+B): fraction (p−1)/(m+p−1). All m activations are held on each rank. Backwards go in the
    order of the forwards, as in torch's ``ScheduleGPipe``; what matters is that all ranks agree on one.

    Args:
        n_stages: slices of the model, one on each rank.
        n_microbatches: parts of the batch, any number from 1.

    Returns:
        Each rank's m F, then its m B.

    Raises:
        ScheduleError: a count is not a whole number of at least 1.
    """
    p, m = _counts(n_stages, n_microbatches)
    rows = []
    for r in range(p):
        # Fill: mF
        forwards = [Action(r, Op.F, i) for i in range(m)]
        # Drain: mB
        backwards = [Action(r, Op.B, i) for i in range(m)]
        rows.append(forwards + backwards)
    return _schedule("GPipe", p, m, rows)


def one_f_one_b(n_stages: int, n_microbatches: int) -> Schedule:
    """1F1B: after a warm-up, forwards and backwards take turns (Narayanan et al., arXiv 2104.04473).

    ``one_f_one_b(3, 4)``; 0F1 is stage 0, forward, micro-batch 1; time goes right, B drawn as long as F::

        rank 0  0F0 0F1 0F2 .   .   0B0 0F3 0B1 .   0B2 .   0B3
        rank 1  .   1F0 1F1 .   1B0 1F2 1B1 1F3 1B2 .   1B3 .
        rank 2  .   .   2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3 .   .

    The bubble is GPipe's, (p−1)(F+B), fraction (p−1)/(m+p−1); but rank r holds only min(p−r, m) activations.

    Args:
        n_stages: slices of the model, one on each rank.
        n_microbatches: parts of the batch, any number from 1.

    Returns:
        Each rank's warm-up, steady state and cool-down.

    Raises:
        ScheduleError: a count is not a whole number of at least 1.
    """
    p, m = _counts(n_stages, n_microbatches)
    rows = []
    for r in range(p):
        w = min(p - 1 - r, m)  # the ranks after this one, each of which needs a micro-batch to work on
        # Warm-up: wF
        warm_up = [Action(r, Op.F, i) for i in range(w)]
        # Steady state: (m-w)(FB)
        steady = [action for i in range(m - w) for action in (Action(r, Op.F, w + i), Action(r, Op.B, i))]
        # Cool-down: wB
        cool_down = [Action(r, Op.B, i) for i in range(m - w, m)]
        rows.append(warm_up + steady + cool_down)
    return _schedule("1F1B", p, m, rows)


def _counts(n_stages: int, n_microbatches: int) -> tuple[int, int]:
    """The papers' p and m."""
    p, m = check_count("n_stages", n_stages), check_count("n_microbatches", n_microbatches)
    check_size(n_stages=p, n_microbatches=m)
    return p, m


def _schedule(name: str, p: int, m: int, rows: list[list[Action]]) -> Schedule:
    """Stage r on rank r."""
    return Schedule(name, p, p, m, tuple(map(tuple, rows)), tuple(range(p)))
