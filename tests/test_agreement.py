"""What belongs together is compared before gloo does it: both ends of a message, all ranks of a collective."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ppkit.errors import MismatchError, RankError
from ppkit.launch import launch
from ppkit.launch.board import Board
from ppkit.observe.agreement import details_of, fits

pytestmark = pytest.mark.ranks


def _refused(fn: Callable[..., Any], *args: Any, n_ranks: int = 2) -> MismatchError:
    with pytest.raises(MismatchError) as caught:
        launch(fn, *args, n_ranks=n_ranks, show=False)
    return caught.value


# Which tensors go together


@pytest.mark.parametrize(
    ("sent", "wanted", "expected"),
    [
        ([2, 3], [2, 3], True),
        ([2, 3], [6], True),  # flattened on purpose
        ([6], [2, 3], True),
        ([8, 16, 32], [128, 32], True),
        ([4, 1, 5], [4, 5], True),
        ([], [1], True),
        ([0], [0, 3], True),
        ([2, 3], [3, 2], False),
        ([2, 3], [2, 4], False),
        ([10], [3], False),
        ([4, 6], [6, 4], False),
        ([1], [0], False),
    ],
)
def test_a_shape_fits_the_same_rows(sent: list[int], wanted: list[int], expected: bool) -> None:
    assert fits(details_of("send", torch.empty(sent)), details_of("recv", torch.empty(wanted))) is expected


def test_a_dtype_fits_itself() -> None:
    details = [details_of("send", torch.empty(2, dtype=dtype)) for dtype in (torch.float32, torch.int32)]
    assert not fits(*details)
    assert fits(details[0], details_of("recv", torch.empty(2)))


def test_what_cannot_be_compared_fits() -> None:
    seven = details_of("send", torch.empty([1] * 7))
    assert fits(seven, details_of("recv", torch.empty(3)))
    assert fits(details_of("all_to_all_single", torch.empty(3)), details_of("all_to_all_single", torch.empty(5)))
    assert fits(details_of("barrier", None), details_of("barrier", None))


def test_a_stamp_that_is_written_over_is_not_found(tmp_path: Any) -> None:
    board = Board(tmp_path / "board", 2)
    stamp = (1.0, 0, details_of("send", torch.empty(2)))
    board.post_send(0, 1, 0, 0, 0, stamp)
    assert board.send(0, 1, 0, 0, 0) == stamp
    assert board.send(0, 1, 0, 0, 1) is None
    assert board.send(0, 1, 1, 0, 0) is None
    assert board.send(0, 1, 0, 7, 0) is None
    assert board.send(1, 0, 0, 0, 0) is None
    for number in range(1, 5000):
        board.post_send(0, 1, 0, 0, number, stamp)
    assert board.send(0, 1, 0, 0, 0) is None
    assert board.send(0, 1, 0, 0, 4999) == stamp
    board.close()


# Messages


@pytest.mark.parametrize("late", [0, 1], ids=["the sender is late", "the receiver is late"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_buffer_that_does_not_fit_is_refused_alike_whoever_is_late(late: int, asynchronous: bool) -> None:
    def exchange() -> None:
        if dist.get_rank() == late:
            time.sleep(0.3)
        if dist.get_rank() == 0:
            dist.isend(torch.ones(10), 1).wait() if asynchronous else dist.send(torch.ones(10), 1)
        else:
            dist.irecv(torch.empty(3), 0).wait() if asynchronous else dist.recv(torch.empty(3), 0)

    error = _refused(exchange)
    i = "i" * asynchronous
    assert (error.rank, error.kind, error.original_type) == (1, "exception", "MismatchError")
    lines = error.message.splitlines()
    assert lines[0] == (
        "rank 1 receives float32 of shape [3] (12 bytes), but rank 0 sends float32 of shape [10] (40 bytes): "
        "a mismatch in shape, [10] and [3]."
    )
    assert lines[1].startswith(f"  rank 0: {i}send(to rank 1, tag 0, float32 of shape [10]), at ")
    assert lines[1].endswith("dist.send(torch.ones(10), 1)")
    assert "in exchange: dist.i" in lines[2]
    assert "torch.empty(10, dtype=torch.float32)" in lines[3]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("sent", "wanted", "said"),
    [
        (torch.ones(2, 3), torch.empty(3, 2), "a mismatch in shape, [2, 3] and [3, 2]"),
        (torch.ones(4), torch.empty(4, dtype=torch.int32), "different dtypes"),
        (torch.ones(4), torch.empty(8), "a mismatch in shape, [4] and [8]"),
    ],
)
def test_what_gloo_would_fill_in_silently_is_refused(sent: torch.Tensor, wanted: torch.Tensor, said: str) -> None:
    def exchange() -> None:
        dist.send(sent, 1) if dist.get_rank() == 0 else dist.recv(wanted, 0)

    assert said in _refused(exchange).message


def test_the_second_message_of_a_tag_is_compared_with_the_second_receive() -> None:
    def exchange() -> None:
        sizes, tags = (3, 5, 7, 4), (0, 1, 0, 0)
        if dist.get_rank() == 0:
            works = [dist.isend(torch.ones(size), 1, tag=tag) for size, tag in zip(sizes, tags, strict=True)]
        else:
            works = [dist.irecv(torch.empty(size), 0, tag=tag) for size, tag in ((5, 1), (3, 0), (7, 0), (6, 0))]
        for work in works:
            work.wait()

    assert "a mismatch in shape, [4] and [6]" in _refused(exchange).message


def test_from_anyone_is_compared_when_it_is_there() -> None:
    def exchange() -> None:
        if dist.get_rank() == 0:
            dist.recv(torch.empty(8))
        else:
            dist.send(torch.ones(5), 0)

    error = _refused(exchange)
    assert "rank 0 receives float32 of shape [8] (32 bytes), but rank 1 sends float32 of shape [5]" in error.message


def test_a_batch_is_compared() -> None:
    def swap() -> None:
        peer = 1 - dist.get_rank()
        ops = [dist.P2POp(dist.isend, torch.ones(2), peer), dist.P2POp(dist.irecv, torch.empty(2 + peer), peer)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()

    error = _refused(swap)
    assert "rank 0 receives float32 of shape [3] (12 bytes), but rank 1 sends float32 of shape [2]" in error.message


# Collectives


def _by_rank(*values: Any) -> Any:
    return values[min(dist.get_rank(), len(values) - 1)]


COLLECTIVES: dict[str, tuple[Callable[[], Any], int, str]] = {
    # what differs: (call, the rank named first, a part of the first line)
    "all_reduce of other shapes": (lambda: dist.all_reduce(torch.ones(_by_rank(4, 5, 4))), 1, "[4] and [5]"),
    "all_reduce of other dtypes": (
        lambda: dist.all_reduce(torch.ones(4, dtype=_by_rank(torch.float32, torch.float32, torch.float64))),
        2,
        "different dtypes",
    ),
    "all_reduce with other operations": (
        lambda: dist.all_reduce(torch.ones(4), op=_by_rank(dist.ReduceOp.SUM, dist.ReduceOp.MAX)),
        0,
        "different operations in all_reduce: SUM on rank 0, MAX on rank 1, MAX on rank 2",
    ),
    "broadcast of other sizes": (lambda: dist.broadcast(torch.ones(_by_rank(4, 4, 3)), 0), 2, "[4] and [3]"),
    "broadcast from other roots": (
        lambda: dist.broadcast(torch.ones(4), _by_rank(0, 1, 0)),
        1,
        "different roots in broadcast: 0 on rank 0, 1 on rank 1, 0 on rank 2",
    ),
    "reduce to other roots": (lambda: dist.reduce(torch.ones(4), _by_rank(0, 0, 1)), 2, "different roots in reduce"),
    "gather to other roots": (
        lambda: dist.gather(
            torch.ones(1), _by_rank([torch.ones(1)] * 3, None, [torch.ones(1)] * 3), dst=_by_rank(0, 0, 2)
        ),
        2,
        "different roots in gather",
    ),
    "all_gather of other shapes": (
        lambda: dist.all_gather([torch.ones(_by_rank(2, 3)) for _ in range(3)], torch.ones(_by_rank(2, 3))),
        0,
        "[2] and [3]",
    ),
    "reduce_scatter of other shapes": (
        lambda: dist.reduce_scatter(torch.ones(_by_rank(2, 2, 3)), [torch.ones(_by_rank(2, 2, 3))] * 3),
        2,
        "[2] and [3]",
    ),
    "scatter of other dtypes": (
        lambda: dist.scatter(
            torch.ones(2, dtype=_by_rank(torch.float32, torch.float64)), _by_rank([torch.ones(2)] * 3, None), src=0
        ),
        0,
        "different dtypes",
    ),
    "another order": (
        lambda: [call() for call in _by_rank((_sum, _meet), (_meet, _sum))],
        0,
        "different collectives: rank 0 in all_reduce; ranks 1, 2 in barrier. It is collective number 1",
    ),
    "another order, later": (
        lambda: [call() for call in _by_rank((_sum, _meet, _sum), (_sum, _sum, _meet))],
        0,
        "different collectives: rank 0 in barrier; ranks 1, 2 in all_reduce. It is collective number 2",
    ),
}


def _sum() -> None:
    dist.all_reduce(torch.ones(2))


def _meet() -> None:
    dist.barrier()


@pytest.mark.parametrize("what", COLLECTIVES)
def test_ranks_that_disagree_on_a_collective_are_told_at_once(what: str) -> None:
    call, rank, said = COLLECTIVES[what]
    error = _refused(call, n_ranks=3)
    first, *table, advice = error.message.splitlines()
    assert said in first
    assert error.rank == rank
    assert [line.split(":")[0] for line in table] == ["  rank 0", "  rank 1", "  rank 2"]
    assert all("test_agreement.py, line " in line for line in table)
    assert advice.endswith(".")


def test_a_subgroups_collective_is_compared_within_the_group() -> None:
    def work() -> None:
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        dist.all_reduce(torch.ones(1 + dist.get_rank() // 2), group=pairs[dist.get_rank() // 2])
        dist.all_reduce(torch.ones(4 + dist.get_rank() // 3), group=pairs[dist.get_rank() // 2])

    error = _refused(work, n_ranks=4)
    assert "[4] and [5]. It is collective number 2" in error.message
    assert "rank 0" not in error.message
    assert error.rank == 3


# No false alarm


def _everything() -> float:
    rank, n = dist.get_rank(), dist.get_world_size()
    left, right = (rank - 1) % n, (rank + 1) % n
    total = torch.zeros(1)
    for step in range(50):
        box = torch.empty(2, 3)
        request = dist.isend(torch.full((6,), float(rank)), right, tag=step % 3)
        dist.recv(box, left, tag=step % 3)
        request.wait()
        total += box[0, 0]
        dist.all_reduce(total, async_op=True).wait()
    groups = [dist.new_group([i, (i + 1) % n]) for i in range(n)]
    for i in (rank, left) if rank else (left, rank):
        dist.all_reduce(torch.ones(1 + i), group=groups[i])
        if rank == i:
            dist.send(torch.ones(i + 2), right, group=groups[i])
        else:
            dist.recv(torch.ones(i + 2), left, group=groups[i])
    for root in range(n):
        dist.broadcast(torch.ones(root + 1), root)
        parts = [torch.ones(2)] * n if rank == root else None
        dist.gather(torch.ones(2), [torch.ones(2) for _ in range(n)] if rank == root else None, dst=root)
        dist.scatter(torch.ones(2), parts, src=root)
    found: list[Any] = [None] * n
    dist.all_gather_object(found, {"rank": rank, "long": "x" * 100 * rank})
    dist.gather_object("y" * rank, [None] * n if rank == 1 else None, dst=1)
    dist.broadcast_object_list([rank, "z"] if rank == 0 else [None, None], src=0)
    dist.scatter_object_list([None], list(range(n)) if rank == 0 else None, src=0)
    sizes = [rank + 1] * n
    dist.all_to_all_single(torch.empty(sum(range(1, n + 1))), torch.ones(sum(sizes)), list(range(1, n + 1)), sizes)
    if rank == 0:
        for _ in range(n - 1):
            dist.recv(torch.empty(4))
        dist.barrier()
        dist.recv(torch.empty(5), 1)  # the second one of rank 1, although the first came from "anyone"
        dist.send(torch.ones(3), 1)
    else:
        dist.send(torch.ones(4), 0)
        dist.barrier()
        if rank == 1:
            dist.send(torch.ones(5), 0)
            dist.recv(torch.empty(3), 0)
    dist.barrier()
    return total.item()


@pytest.mark.parametrize("n_ranks", [3, 4])
def test_what_agrees_is_left_alone(n_ranks: int) -> None:
    run = launch(_everything, n_ranks=n_ranks)
    assert len(set(run.results)) == 1
    assert len(run.timeline) > 50 * 4 * n_ranks


def test_an_irecv_from_anyone_ends_the_comparison_but_not_the_run() -> None:
    def work() -> float:
        if dist.get_rank() == 0:
            boxes = [torch.zeros(1), torch.zeros(2), torch.zeros(2)]
            waiting = [dist.irecv(boxes[0])]
            time.sleep(0.2)  # so that it has taken the first message
            waiting += [dist.irecv(boxes[1], 1), dist.irecv(boxes[2], 1)]
            for work in waiting:
                work.wait()
            return sum(box.sum().item() for box in boxes)
        for size in (1, 2, 2):
            dist.send(torch.ones(size), 0)
        return 0.0

    assert launch(work).results[0] == 5.0


def test_without_observation_nothing_is_compared() -> None:
    def exchange() -> list[float]:
        box = torch.zeros(3, 2)
        dist.send(torch.ones(2, 3), 1) if dist.get_rank() == 0 else dist.recv(box, 0)
        return box.tolist()

    assert launch(exchange, observe=False).results[1] == [[1.0, 1.0]] * 3


def test_a_refusal_can_be_caught_on_the_rank() -> None:
    def exchange() -> str:
        dist.barrier()
        if dist.get_rank() == 1:
            time.sleep(0.2)
            try:
                dist.recv(torch.empty(1), 0)
            except RankError as error:
                return error.message
        else:
            dist.isend(torch.ones(2), 1)
            time.sleep(0.5)
        return ""

    assert "rank 1 receives float32 of shape [1]" in launch(exchange).results[1]
