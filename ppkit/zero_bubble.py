"""Zero-bubble schedules: the backward in two halves, of which the second fills what would be idle."""

from __future__ import annotations

from ppkit.schedule import Action, Op, Schedule, check_count, check_size

__all__ = ["zero_bubble_h1", "zero_bubble_v"]


def zero_bubble_h1(n_stages: int, n_microbatches: int) -> Schedule:
    """ZB-H1: 1F1B whose weight gradients wait for the cool-down (Qi et al., arXiv 2401.10241, section 2.1).

    ``zero_bubble_h1(3, 4)``; I is the gradient of the input, which the rank before waits for, W the gradient of
    the weights, for which nobody waits; time goes right, all drawn as long as F::

        rank 0  0F0 0F1 0F2 .   .   0I0 0W0 0F3 0I1 0W1 0I2 0W2 0I3 0W3
        rank 1  .   1F0 1F1 .   1I0 1F2 1I1 1W0 1F3 1I2 1W1 1I3 1W2 1W3
        rank 2  .   .   2F0 2I0 2F1 2I1 2F2 2I2 2W0 2F3 2I3 2W1 2W2 2W3

    Forwards and input gradients go in 1F1B's order, and on rank r the W lags r micro-batches behind the I. The
    bubble shrinks to (p−1)(F+I−W) where W is neither longer than F nor longer than I, and m is at least p. Rank r
    holds p−r activations, as in 1F1B, and beside them what r of its W still need.

    The same as torch's ``ScheduleInterleavedZeroBubble`` with one stage a rank, for every m.

    Args:
        n_stages: slices of the model, one on each rank, p.
        n_microbatches: parts of the batch, any number from 1, m.

    Returns:
        Each rank's warm-up, steady state and cool-down.

    Raises:
        ScheduleError: a count is not a whole number of at least 1.
    """
    p, m = check_count("n_stages", n_stages), check_count("n_microbatches", n_microbatches)
    check_size(n_stages=p, n_microbatches=m)
    rows = []
    for r in range(p):
        w = min(p - 1 - r, m)  # as in 1F1B
        # Warm-up: wF
        row = [Action(r, Op.F, i) for i in range(w)]
        for i in range(m):
            # Steady state: r(FI), then (m-w-r)(FIW); cool-down: w(IW)
            if w + i < m:
                row.append(Action(r, Op.F, w + i))
            row.append(Action(r, Op.I, i))
            if i >= r:
                row.append(Action(r, Op.W, i - r))
        # The rest: rW
        row += [Action(r, Op.W, i) for i in range(max(0, m - r), m)]
        rows.append(tuple(row))
    return Schedule("ZB-H1", p, p, m, tuple(rows), tuple(range(p)))


def zero_bubble_v(n_ranks: int, n_microbatches: int) -> Schedule:
    """ZB-V: two chunks a rank, placed like a V (Qi et al., arXiv 2401.10241, section 6).

    ``zero_bubble_v(2, 4)``; stages go down the ranks and up again, so rank 0 has the first and the last;
    time goes right, all drawn as long as F::

        rank 0  0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 3W3 0I2 0W2 0I3 0W3 .
        rank 1  .   1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 2W2 1I2 2I3 1I3 1W2 2W3 1W3

    Where F = I = W no rank is idle from its first action to its last, and only the (p−1) steps, each of half a
    rank's F, by which the others start later than rank 0 remain. No rank holds more than p micro-batches'
    activations (2p chunks): as much as 1F1B's first rank.

    The pattern needs 2p−1 micro-batches; with fewer it is the same without those that aren't there, and not
    free of bubbles. The same as torch's ``ScheduleZBVZeroBubble``, for every m. The paper's own search places
    every action by its cost; this is its pattern for equal ones.

    Args:
        n_ranks: the number of processes, p; the model has twice as many stages.
        n_microbatches: parts of the batch, any number from 1, m.

    Returns:
        Each rank's warm-up, steady state and cool-down.

    Raises:
        ScheduleError: a count is not a whole number of at least 1.
    """
    p, m = check_count("n_ranks", n_ranks), check_count("n_microbatches", n_microbatches)
    check_size(n_stages=2 * p, n_microbatches=max(m, 2 * p - 1))  # what the pattern takes
    last = 2 * p - 1
    rows = tuple(_numbered(_v_pattern(p, r, max(m, last)), (r, last - r), m) for r in range(p))
    return Schedule("ZB-V", p, 2 * p, m, rows, tuple(min(stage, last - stage) for stage in range(2 * p)))


_Step = tuple[int, Op]  # 0: the chunk on the way down the V, 1: the one on the way up
_F0, _I0, _W0 = ((0, op) for op in (Op.F, Op.I, Op.W))
_F1, _I1, _W1 = ((1, op) for op in (Op.F, Op.I, Op.W))


def _v_pattern(p: int, r: int, n: int) -> list[_Step]:
    """What rank r does with n >= 2p-1 micro-batches, each operation taking them in turn."""
    down, up = [_F0, _I0, _W0], [_F1, _I1, _W1]
    return [
        # Warm-up: (2(p-r)-1)F0, until the first has been down the V and up again; then r(F1F0), (p-r)(F1I1W1)
        *[_F0] * (2 * (p - r) - 1),
        *[_F1, _F0] * r,
        *up * (p - r),
        # Steady state: (n-2p+r+1)(F0I0W0F1I1W1), then, with no F0 left, (p-r-1)(I0W0F1I1W1)
        *(down + up) * (n - 2 * p + r + 1),
        *[_I0, _W0, *up] * (p - r - 1),
        # Cool-down: r(I0I1), (p-r)(I0W0), rW1, rW0
        *[_I0, _I1] * r,
        *[_I0, _W0] * (p - r),
        *[_W1] * r,
        *[_W0] * r,
    ]


def _numbered(steps: list[_Step], stages: tuple[int, int], m: int) -> tuple[Action, ...]:
    """The steps as actions on micro-batches 0, 1, ... of their own; those from m on are left out."""
    done = dict.fromkeys(steps, 0)
    row = []
    for step in steps:
        if done[step] < m:
            row.append(Action(stages[step[0]], step[1], done[step]))
        done[step] += 1
    return tuple(row)
