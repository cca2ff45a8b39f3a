"""What of a schedule's rows is not interleaved 1F1B's, or not ZB-H1's."""

from __future__ import annotations

from collections.abc import Sequence

from ppkit.builders import interleaved_1f1b, zero_bubble_h1
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.zero_bubble import (
    NOT_INTERLEAVED,
    NOT_PLACED,
    NOT_ZB_H1,
    TOO_FEW,
    Z70,
    Z73,
    Z74,
    Z75,
    Z76,
    Z85,
    Z86,
    Z87,
    Z88,
    Z89,
    Z90,
    Z91,
)
from ppkit.schedule import Action, Op

__all__ = ["explain_interleaved", "explain_zb_h1"]

Rows = Sequence[Sequence[Action]]


def explain_interleaved(rows: Rows, p: int, m: int, v: int) -> Mistake | None:
    """The mistake in rows that are not interleaved 1F1B's; None if they are not even a schedule of this size."""
    if len(rows) != p:
        return None
    if any(action.stage % p != rank for rank, row in enumerate(rows) for action in row):
        thick = all(action.stage // v == rank for rank, row in enumerate(rows) for action in row)
        return Z70 if thick else NOT_PLACED
    right = interleaved_1f1b(p, m, v).actions
    for ours, theirs in zip(right, rows, strict=True):
        if set(ours) != set(theirs):
            return TOO_FEW if (v - 1) * p + 2 * (p - 1) > m * v else None
    if all(_ahead(row, Op.B) == m * v for row in rows):
        return Z73
    for op, mistake in ((Op.F, Z74), (Op.B, Z75)):
        if any(_only(ours, op) != _only(theirs, op) for ours, theirs in zip(right, rows, strict=True)):
            return mistake
    if [_ahead(row, Op.B) for row in rows] != [_ahead(row, Op.B) for row in right]:
        return Z76
    return NOT_INTERLEAVED


def explain_zb_h1(rows: Rows, p: int, m: int) -> Mistake | None:
    """The mistake in rows that are not ZB-H1's; None if they are not even a schedule of this size."""
    if len(rows) != p or any(action.stage != rank for rank, row in enumerate(rows) for action in row):
        return None
    if any(action.op is Op.B for row in rows for action in row):
        return Z85
    if any(_weights_first(row) for row in rows):
        return Z86
    if any(len(_only(row, Op.W)) < len(_only(row, Op.I)) for row in rows):
        return Z91
    right = zero_bubble_h1(p, m).actions
    if [_ahead(row, Op.I) for row in rows] != [_ahead(row, Op.I) for row in right]:
        return Z90
    put_off = [_put_off(row) for row in rows]
    if put_off[0] == m > 1:
        return Z87 if put_off[-1] == m else Z89
    if max(put_off) == 1:
        return Z88
    return Z89 if put_off[0] > put_off[-1] else NOT_ZB_H1


def _only(row: Sequence[Action], op: Op) -> list[Action]:
    return [action for action in row if action.op is op]


def _ahead(row: Sequence[Action], op: Op) -> int:
    """How many forwards come before the first backward, or input gradient."""
    ops = [action.op for action in row]
    return ops[: ops.index(op)].count(Op.F) if op in ops else len(ops)


def _weights_first(row: Sequence[Action]) -> bool:
    """Whether a W comes before the I of its micro-batch, or without it."""
    done: set[int | None] = set()
    for action in row:
        if action.op is Op.I:
            done.add(action.microbatch)
        elif action.op is Op.W and action.microbatch not in done:
            return True
    return False


def _put_off(row: Sequence[Action]) -> int:
    """The most weight gradients that are due at once."""
    most = due = 0
    for action in row:
        due += (action.op is Op.I) - (action.op is Op.W)
        most = max(most, due)
    return most
