"""What of an order of forwards and backwards is not 1F1B's."""

from __future__ import annotations

from collections.abc import Sequence

from ppkit.builders import one_f_one_b
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.one_f_one_b import BEYOND_THE_LAST, F33, F34, F35, F36, F37, NOT_ONE_F_ONE_B

__all__ = ["Order", "judge_order", "right_orders"]

Order = list[tuple[str, int]]  # of one rank: "F" or "B", and the micro-batch


def right_orders(p: int, m: int) -> list[Order]:
    """1F1B's order on each of p ranks, for m micro-batches."""
    rows = one_f_one_b(p, m).actions
    return [[(action.op.value, action.microbatch or 0) for action in row] for row in rows]


def judge_order(orders: Sequence[Order], m: int) -> tuple[int, str, Mistake] | None:
    """Find the first rank whose order is not 1F1B's.

    Args:
        orders: of all ranks; they may stop early, where a run got stuck.
        m: micro-batches.

    Returns:
        the rank, what is wrong there in words, and the mistake; None if all are right.
    """
    p = len(orders)
    right = right_orders(p, m)
    for rank in reversed(range(p)):
        if any(number >= m for _, number in orders[rank]):
            return rank, f"it uses a micro-batch that does not exist: there are {m}", F34 if m < p else BEYOND_THE_LAST
    ahead = [_ahead(order) for order in orders]
    wanted = [_ahead(order) for order in right]
    for rank in reversed(range(p)):
        if ahead[rank] != wanted[rank] and ("B" in dict(orders[rank]) or ahead[rank] > wanted[rank]):
            same = len(set(ahead)) == 1 and (p > 2 or (p == 2 and ahead[0] > 2))
            text = f"{ahead[rank]} forwards run before the first backward, instead of {wanted[rank]}"
            return rank, text, F35 if same else F33
    for rank in reversed(range(p)):
        backwards = [number for op, number in orders[rank] if op == "B"]
        if backwards != sorted(backwards):
            return rank, f"its backwards go in the order {', '.join(map(str, backwards))}", F36
        if orders[rank] != right[rank][: len(orders[rank])]:
            return rank, "forwards and backwards do not alternate after the warm-up", NOT_ONE_F_ONE_B
    for rank in reversed(range(p)):
        if len(orders[rank]) < len(right[rank]):
            return rank, f"{sum(op == 'B' for op, _ in orders[rank])} backwards run for {m} micro-batches", F37
    return None


def _ahead(order: Order) -> int:
    """How many forwards come before the first backward."""
    ops = [op for op, _ in order]
    return ops.index("B") if "B" in ops else len(ops)
