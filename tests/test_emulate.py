"""Emulated devices keep their stated durations without touching values, order or messages."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import nn

from ppkit.emulate import Emulation, Link
from ppkit.errors import LaunchError
from ppkit.launch import launch
from ppkit.observe import operations
from ppkit.observe.recorder import MADE_UP, Recorder

pytestmark = pytest.mark.ranks

SLACK = 1.0  # seconds; a shared machine may be late, but never early


def _train() -> list[float]:
    """Two naive stages, one step."""
    torch.manual_seed(0)
    rank, stage = dist.get_rank(), nn.Linear(4, 4)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    x, gradient = torch.ones(2, 4), torch.empty(2, 4)
    if rank == 0:
        y = stage(x)
        dist.send(y.detach(), 1)
        dist.recv(gradient, 1)
        y.backward(gradient)
    else:
        dist.recv(x, 0)
        x.requires_grad_()
        stage(x).square().sum().backward()
        dist.send(x.grad, 0)
    optimizer.step()
    return [p.sum().item() for p in stage.parameters()]


def test_operations_take_their_stated_time_and_compute_the_same() -> None:
    emulation = Emulation(forward=0.03, backward=[0.06, 0.04], optimizer=0.02)
    run = launch(_train, emulate=emulation)
    assert run.results == launch(_train).results
    assert run.timeline.source == "measured, emulated"
    stated = {("F", 0): 0.03, ("F", 1): 0.03, ("B", 0): 0.06, ("B", 1): 0.04, ("OPTIM", 0): 0.02, ("OPTIM", 1): 0.02}
    for event in run.timeline:
        if event.lane == "compute":
            seconds = stated[event.kind, event.rank]
            assert seconds - 1e-5 <= event.end - event.start < seconds + SLACK


def test_a_title_states_the_emulation() -> None:
    emulation = Emulation(forward=0.02, backward=0.04, link=Link(latency=0.001, bandwidth=1e9))
    assert "F 20 ms, B 40 ms, link 1 ms + 1 GB/s" in launch(_train, emulate=emulation).timeline.title


def test_a_message_arrives_no_earlier_than_its_link_allows() -> None:
    def exchange() -> None:
        x = torch.ones(25_000)  # 100 kB: 0.1 s at 1 MB/s
        if dist.get_rank() == 0:
            dist.send(x, 1)
        else:
            dist.recv(x, 0)

    run = launch(exchange, emulate=Emulation(link=Link(latency=0.05, bandwidth=1e6)))
    ((sent, received),) = run.timeline.messages
    assert 0.15 - 1e-5 <= received.end - sent.start < 0.15 + SLACK
    assert sent.end < received.end  # the sender goes on before


def _compute_in_turn() -> list[float]:
    """Four times a forward on rank 0, then one on rank 1."""
    stage, x = nn.Linear(4, 4), torch.ones(2, 4)
    for _ in range(4):
        if dist.get_rank() == 0:
            work = dist.isend(stage(x).detach(), 1)
            dist.recv(x, 1)
            work.wait()
        else:
            dist.irecv(x, 0).wait()
            dist.isend(stage(x).detach(), 0).wait()
    return [recorder.behind for recorder in [operations.recorder] if recorder is not None]


def test_what_gloo_and_the_system_are_late_is_made_up_for_by_the_next_operation() -> None:
    run = launch(_compute_in_turn, emulate=Emulation(forward=0.02, link=Link(latency=0.001)))
    assert all(0 <= behind < MADE_UP for (behind,) in run.results)
    for sent, received in run.timeline.messages:
        due = max(received.start, sent.start + 0.001)
        assert received.end == pytest.approx(due, abs=1e-9) or received.end >= due + MADE_UP
    for event in run.timeline:
        if event.kind == "F":
            late = event.end - event.start - 0.02
            assert late == pytest.approx(0, abs=1e-9) or late >= MADE_UP or event.note.startswith("overran")
    for rank in (0, 1):
        events = [event for event in run.timeline if event.rank == rank and event.kind in ("F", "RECV")]
        assert all(one.end <= next.start for one, next in pairwise(events))


def test_a_rank_is_never_further_behind_its_clock_than_it_can_make_up_for() -> None:
    recorder = Recorder()
    now = time.perf_counter()
    recorder.behind = 0.0
    assert recorder.is_at(now - 0.003) in (now - 0.003, pytest.approx(time.perf_counter(), abs=SLACK))
    assert 0 <= recorder.behind < MADE_UP
    assert recorder.is_at(now - 1.0) >= now
    assert recorder.behind == 0.0
    assert recorder.is_at(when := time.perf_counter() + 0.01) >= when


def test_an_isend_is_on_its_way_while_both_sides_compute() -> None:
    def overlap() -> None:
        stage, x = nn.Linear(4, 4), torch.ones(2, 4)
        if dist.get_rank() == 0:
            work = dist.isend(x, 1)
            stage(x)
            work.wait()
        else:
            work = dist.irecv(x, 0)
            assert not work.is_completed()
            stage(x.clone())
            work.wait()
            assert work.is_completed()

    run = launch(overlap, emulate=Emulation(forward=0.5, link=Link(latency=0.4)))
    (receipt,) = [event for event in run.timeline.of_rank(1) if event.kind == "RECV"]
    assert receipt.end - receipt.start < 0.4  # it had arrived by the time it was waited for
    (sent,) = [event for event in run.timeline.of_rank(0) if event.kind == "SEND"]
    assert 0.4 - 1e-5 <= sent.end - sent.start < 0.4 + SLACK


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_collective_takes_the_time_of_a_ring(asynchronous: bool) -> None:
    def reduce() -> float:
        x = torch.ones(25_000)
        work = dist.all_reduce(x, async_op=asynchronous)
        if work is not None:
            work.wait()
        return x[0].item()

    # A ring of two: 2 (n - 1) = 2 hops of 10 ms, and 2 (n - 1) / n = 1 times 100 kB at 1 MB/s.
    run = launch(reduce, emulate=Emulation(link=Link(latency=0.01, bandwidth=1e6)))
    assert run.results == (2.0, 2.0)
    for event in run.timeline:
        if event.kind == "COLLECTIVE":
            assert 0.12 - 1e-5 <= event.end - event.start < 0.12 + SLACK


def test_collectives_in_a_row_take_what_the_ring_takes_and_not_what_gloo_takes_beside_it() -> None:
    def reduce_often() -> None:
        x = torch.ones(1000)
        for _ in range(12):
            dist.all_reduce(x)

    run = launch(reduce_often, n_ranks=4, emulate=Emulation(link=Link(latency=0.002)))
    rows = [[event for event in run.timeline.of_rank(rank) if event.kind == "COLLECTIVE"] for rank in range(4)]
    assert [len(row) for row in rows] == [12] * 4
    for events in zip(*rows, strict=True):
        due = max(event.start for event in events) + 6 * 0.002
        assert all(event.end == pytest.approx(due, abs=1e-3) or event.end >= due + MADE_UP - 1e-3 for event in events)


def test_an_operation_that_overruns_is_marked_and_counted() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return self.linear(x)  # type: ignore[no-any-return]

    timeline = launch(lambda: Slow()(torch.ones(1, 4)), n_ranks=1, emulate=Emulation(forward=0.01)).timeline
    assert timeline.events[0].note.startswith("overran 10 ms by ")
    assert "1 of 1 operations overran" in timeline.notes["overrun"]
    assert "overran" in timeline.title


def test_what_is_not_stated_takes_as_long_as_it_takes() -> None:
    timeline = launch(lambda: nn.Linear(2, 2)(torch.ones(1, 2)), n_ranks=1, emulate=Emulation(backward=10)).timeline
    assert timeline.makespan < 5


def test_input_and_weight_gradients_are_half_of_the_backward_unless_stated() -> None:
    assert Emulation(backward=[2, 4]).seconds("I", 1) == 2
    assert Emulation(backward=4, input_grad=1).seconds("I", 0) == 1
    assert Emulation(backward=4, input_grad=1).seconds("W", 0) == 2
    assert Emulation(forward=1).seconds("W", 0) is None


def test_the_full_backward_is_both_halves_unless_stated() -> None:
    halves = {"input_grad": [1, 2], "weight_grad": 3}
    assert Emulation(**halves).seconds("B", 1) == 5
    assert Emulation(**halves, backward=4).seconds("B", 1) == 4
    assert Emulation(input_grad=1).seconds("B", 0) is None
    run = launch(_forward_and_backward, n_ranks=1, emulate=Emulation(input_grad=0.02, weight_grad=0.03))
    (backward,) = (event for event in run.timeline if event.kind == "B")
    assert backward.duration == pytest.approx(0.05, rel=0.2)


def _forward_and_backward() -> None:
    nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True, [0.1, -0.1]])
def test_durations_that_cannot_be(value: object) -> None:
    with pytest.raises(LaunchError, match=r"forward=.*number of seconds, 0 or more"):
        Emulation(forward=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("bandwidth", [0, -1, float("nan"), "fast"])
def test_bandwidths_that_cannot_be(bandwidth: object) -> None:
    with pytest.raises(LaunchError, match="bytes a second"):
        Link(bandwidth=bandwidth)  # type: ignore[arg-type]


def test_a_link_that_is_none() -> None:
    with pytest.raises(LaunchError, match=r"link is a ppkit\.Link"):
        Emulation(link=0.1)  # type: ignore[arg-type]


def test_too_few_durations_for_the_ranks() -> None:
    with pytest.raises(LaunchError, match="gives 2 durations for 3 ranks"):
        launch(_train, n_ranks=3, emulate=Emulation(forward=[0.1, 0.2]))


def test_what_is_no_emulation() -> None:
    with pytest.raises(LaunchError, match=r"a ppkit\.Emulation, or None"):
        launch(_train, emulate=0.1)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_torch_as_durations() -> None:
    emulation = Emulation(forward=numpy.array([0.01, 0.02]), backward=numpy.float32(0.5), optimizer=torch.tensor(0.25))
    assert emulation.forward == (0.01, 0.02)
    assert (type(emulation.backward), emulation.backward, emulation.optimizer) == (float, 0.5, 0.25)
    assert Link(latency=numpy.float32(0.5), bandwidth=numpy.int64(8)) == Link(0.5, 8.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Emulation(forward=[]), "give one number, or one for each stage"),
        (lambda: Emulation(forward=10**400), "a duration is a number of seconds"),
        (lambda: Emulation(forward={0: 0.1}), "a duration is a number of seconds"),
        (lambda: Link(bandwidth=10**400), "bandwidth is bytes a second"),
    ],
)
def test_durations_that_no_device_has(make: Any, says: str) -> None:
    with pytest.raises(LaunchError, match=says):
        make()
