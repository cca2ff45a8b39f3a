"""The best contiguous cut of a row of costs in stages: the slowest stage as fast as it can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from ppkit.errors import CostsError
from ppkit.values import listed, real, whole

__all__ = ["equal_sizes", "partition", "partition_by_stage", "stage_sums"]


def partition(costs: Sequence[float], n_stages: int) -> list[int]:
    """Cut layers in contiguous stages so that the most expensive stage costs as little as possible.

    A pipeline is as fast as its slowest stage. Dynamic programming over the prefixes, not greedy: filling each
    stage up to the average can miss the best cut. The linear partition problem: Skiena, "The Algorithm Design
    Manual", section 10.7; PipeDream (arXiv 1806.03377) partitions by the same recurrence::

        costs         2  3  4  9
        equal counts  2  3 | 4  9      stages of 5 and 13
        partition     2  3  4 | 9      stages of 9 and 9

    Args:
        costs: what each layer costs, in any one unit; finite and at least 0.
        n_stages: how many stages, each of at least one layer.

    Returns:
        the number of layers of each stage. Of several cuts with the same slowest stage, one with more even stages.

    Raises:
        CostsError: a cost is negative or not finite, or there are fewer layers than stages.
    """
    given = listed(costs)
    if given is None:
        raise CostsError(f"partition: costs is {costs!r}; give a list with the cost of each layer")
    for layer, cost in enumerate(given):
        if not 0 <= real(cost) < math.inf:
            raise CostsError(f"partition: layer {layer} costs {cost!r}; a cost is a finite number of at least 0")
    count = check_stages(n_stages, len(given))
    return partition_by_stage([[real(cost) for cost in given]] * count)


def partition_by_stage(costs: Sequence[Sequence[float]]) -> list[int]:
    """The same where a layer's cost depends on its stage, as its memory does in 1F1B.

    Args:
        costs: for each stage, what each of the model's layers would cost in it.
    """
    until = [[0.0, *accumulate(row)] for row in costs]
    n_layers = len(costs[0])
    # best[n] cuts the first n layers: (most expensive stage, sum of squares to break ties, sizes).
    best = {n: (until[0][n], until[0][n] ** 2, [n]) for n in range(1, n_layers + 1)}
    for stage, sums in enumerate(until[1:], 1):
        best = {
            n: min(
                (max(most, last := sums[n] - sums[cut]), squares + last**2, [*sizes, n - cut])
                for cut, (most, squares, sizes) in best.items()
                if cut < n
            )
            for n in range(stage + 1, n_layers + 1)
        }
    return best[n_layers][2]


def equal_sizes(n_layers: int, n_stages: int) -> list[int]:
    """As many layers in each stage; the first ones may have one more.

    Raises:
        CostsError: fewer layers than stages.
    """
    count = check_stages(n_stages, n_layers)
    return [n_layers // count + (stage < n_layers % count) for stage in range(count)]


def stage_sums(costs: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """What each stage costs, if the stages have so many layers."""
    ends = list(accumulate(sizes))
    return [sum(costs[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def check_stages(n_stages: int, n_layers: int) -> int:
    """The number of stages as an int; CostsError if the layers cannot fill so many."""
    count = whole(n_stages)
    if count is None or not 1 <= count <= n_layers:
        there = "is 1 layer" if n_layers == 1 else f"are {n_layers or 'no'} layers"
        stages = "1 stage" if n_layers == 1 else f"1..{n_layers} stages"
        use = f"use {stages}, or cut the model in more layers" if n_layers else "give it at least one"
        raise CostsError(
            f"n_stages is {n_stages!r}, but there {there} and each stage needs one; {use}",
            values={"n_stages": n_stages, "n_layers": n_layers},
        )
    return count
