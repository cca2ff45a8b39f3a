"""How far the clocks of several machines are apart, found by messages between their ranks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ppkit.observe.fields import Row

if TYPE_CHECKING:
    from torch import Tensor

_ROUND_TRIPS = 25  # of which the shortest counts


class Reading(NamedTuple):
    """What one rank knows of its clock at one moment.

    Attributes:
        at: seconds of its own clock, `time.perf_counter()`.
        ahead: seconds by which that clock is ahead of rank 0's.
    """

    at: float
    ahead: float


def read_clock(rank: int, n_ranks: int) -> Reading:
    """Compare this rank's clock with rank 0's; collective, unobserved, over the CPU.

    Rank 0 asks the others in turn. A clock was read within the round trip, and most likely in its middle, so that the
    shortest of several tells best and is wrong by half of it at most (F. Cristian, "Probabilistic clock
    synchronization", Distributed Computing 3, 1989): some 0.1 ms in a local network.
    """
    import torch

    ahead = torch.zeros(1, dtype=torch.float64)
    if rank == 0:
        for peer in range(1, n_ranks):
            ahead[0] = min(_ask(peer) for _ in range(_ROUND_TRIPS))[1]
            _send(ahead, peer)
        return Reading(time.perf_counter(), 0.0)
    for _ in range(_ROUND_TRIPS):
        _receive(ahead, 0)
        ahead[0] = time.perf_counter()
        _send(ahead, 0)
    _receive(ahead, 0)
    return Reading(time.perf_counter(), float(ahead[0]))


def _ask(peer: int) -> tuple[float, float]:
    """Return how long a question to a rank took, and by how much its clock was ahead then."""
    import torch

    answer = torch.zeros(1, dtype=torch.float64)
    asked = time.perf_counter()
    _send(answer, peer)
    _receive(answer, peer)
    answered = time.perf_counter()
    return answered - asked, float(answer[0]) - (asked + answered) / 2


def _send(tensor: Tensor, peer: int) -> None:
    _group().send([tensor], peer, 0).wait()


def _receive(tensor: Tensor, peer: int) -> None:
    _group().recv([tensor], peer, 0).wait()


def _group() -> Any:
    """Return the group of all ranks, whose own methods are not observed."""
    import torch.distributed as dist

    return cast(Any, dist.group.WORLD)


def on_first_clock(rows: Iterable[Row], before: Reading, after: Reading | None = None) -> list[Row]:
    """Return a rank's events in times of rank 0's clock.

    Args:
        rows: in times of its own.
        before: its clock before them.
        after: its clock after them, where it is known: two clocks drift apart by some 0.01 ms in a second.
    """
    drift = 0.0
    if after is not None and after.at > before.at:
        drift = (after.ahead - before.ahead) / (after.at - before.at)

    def there(at: float) -> float:
        return at - before.ahead - drift * (at - before.at)

    return [
        replace(
            row,
            start=there(row.start),
            end=there(row.end),
            held_until=None if row.held_until is None else there(row.held_until),
        )
        for row in rows
    ]
