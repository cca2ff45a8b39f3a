"""Gradient all-reduces in schedules and simulations, and schedules without a backward."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest

from ppkit.builders import gpipe, interleaved_1f1b, naive, one_f_one_b, zero_bubble_h1, zero_bubble_v
from ppkit.costs import Costs
from ppkit.errors import CostsError, ScheduleError
from ppkit.event import Event
from ppkit.reduce import completed_by
from ppkit.schedule import Action, Op, Schedule
from ppkit.simulate import simulate

ALL = [
    naive(3, 2),
    gpipe(4, 3),
    one_f_one_b(4, 8),
    interleaved_1f1b(2, 4, 3),
    zero_bubble_h1(4, 6),
    zero_bubble_v(3, 7),
]
by_name = pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.name)


def texts(row: Any) -> list[str]:
    return [str(action) for action in row]


# Where a REDUCE stands


def test_reduce_comes_right_after_the_last_gradient_of_its_stage() -> None:
    assert [" ".join(texts(row)) for row in interleaved_1f1b(1, 2, 2).with_reduce().actions] == [
        "0F0 1F0 1B0 0F1 0B0 1F1 1B1 1REDUCE 0B1 0REDUCE"
    ]
    row = zero_bubble_h1(2, 2).with_reduce().actions[1]
    assert " ".join(texts(row)) == "1F0 1I0 1F1 1I1 1W0 1W1 1REDUCE"


@by_name
def test_reduce_stands_where_torch_puts_it(schedule: Schedule) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    if not hasattr(schedules, "_add_reduce_grad"):
        pytest.skip("this torch has no reductions in its schedules")
    for row, reduced in zip(schedule.actions, schedule.with_reduce().actions, strict=True):
        actions = [schedules._Action.from_str(str(action)) for action in row]
        theirs = [str(action) for action in schedules._add_reduce_grad(actions, schedule.n_microbatches)]
        assert theirs == [text.replace("REDUCE", "REDUCE_GRAD") for text in texts(reduced)]


@by_name
def test_reduced_schedules_are_valid_and_go_through_csv(schedule: Schedule) -> None:
    reduced = schedule.with_reduce()
    assert reduced.validate() is reduced
    assert reduced.with_reduce() is reduced
    assert reduced.compute_only() == schedule
    assert sum(action.op is Op.REDUCE for row in reduced.actions for action in row) == schedule.n_stages
    full = reduced.with_comms()
    assert full.validate() is full
    assert Schedule.from_csv(full.to_csv(comms=True), schedule.name) == full


def test_a_message_that_another_rank_waits_for_goes_before_the_reduction() -> None:
    row = gpipe(2, 1).with_comms().with_reduce().actions[1]
    assert texts(row) == ["1RECV_F0", "1F0", "1B0", "1SEND_B0", "1REDUCE"]


def test_only_a_valid_schedule_can_be_reduced() -> None:
    with pytest.raises(ScheduleError, match=r"0B1 .* is missing"):
        Schedule("mine", 1, 1, 2, ["0F0 0F1 0B0"]).with_reduce()  # type: ignore[arg-type]


def test_buckets_may_start_in_a_backward_that_only_messages_part_from_the_reduce() -> None:
    def under(*texts: str) -> dict[int, int]:
        return completed_by([Action.parse(text) for row in texts for text in row.split()])

    assert under("0F0 0F1 0B0 0B1 0SEND_B1 0REDUCE") == {0: 3}
    assert under("0F0 0F1 0I0 0I1 0W0 0W1 0REDUCE") == {0: 5}
    assert under("1F0 0F0 1B0 0B0 1REDUCE 0REDUCE") == {}  # stage 1's came before stage 0's backward
    assert under("1F0 0F0 1B0 1REDUCE 0B0 0RECV_F1 0REDUCE") == {1: 2, 0: 4}
    assert under("0F0 0B0") == {}


@by_name
def test_buckets_may_start_in_the_last_backward_of_every_stage(schedule: Schedule) -> None:
    for full in (schedule.with_reduce(), schedule.with_comms().with_reduce()):
        for row in full.actions:
            last = {a.stage: at for at, a in enumerate(row) if a.op in (Op.B, Op.W)}
            assert completed_by(row) == last


# What it takes


def reduces(schedule: Schedule, costs: Costs) -> list[Event]:
    return [e for e in simulate(schedule.with_reduce(), costs) if e.kind == "COLLECTIVE"]


def test_a_ring_takes_2_n_minus_1_steps_of_an_nth_each() -> None:
    costs = Costs(n_replicas=4, parameter_bytes=800, bandwidth=100, latency=0.5)
    assert costs.reduce(2) == ((2 * 3 * (0.5 + 200 / 100), 1200),) * 2
    assert Costs(n_replicas=4, parameter_bytes=800, gradient_bytes=[400, 0], bandwidth=100).reduce(2) == (
        (6.0, 600),
        (0.0, 0),
    )
    assert Costs(n_replicas=1, parameter_bytes=800, bandwidth=100, latency=9).reduce(1) == ((0.0, 0),)
    assert Costs(n_replicas=4, parameter_bytes=8, latency=0.5).reduce(1) == ((3.0, 12),)
    assert Costs(n_replicas=4, parameter_bytes=800, reduce_seconds=[7, 8], bandwidth=1).reduce(2) == (
        (7.0, 1200),
        (8.0, 1200),
    )


def test_reductions_run_beside_the_computation_one_at_a_time() -> None:
    # Chunk 1's gradients are complete at 10, chunk 0's at 12; chunk 1's reduction lasts until 17.
    schedule = interleaved_1f1b(1, 2, 2)
    costs = Costs(forward=1, backward=2, reduce_seconds=[3, 7])
    assert [(e.stage, e.start, e.end) for e in reduces(schedule, costs)] == [(1, 10, 17), (0, 17, 20)]
    timeline = simulate(schedule.with_reduce(), costs)
    assert timeline.busy == (12,)
    assert timeline.makespan == 20
    assert simulate(schedule.with_reduce(), Costs(forward=1, backward=2, reduce_seconds=[0, 2])).makespan == 12


def test_buckets_start_under_the_last_backward_one_at_a_time() -> None:
    # 100 bytes a stage in buckets of 40, 40 and 20. Chunk 1's last backward goes from 8 to 10, chunk 0's from 10 to 12.
    schedule = interleaved_1f1b(1, 2, 2)
    costs = Costs(1, 2, n_replicas=2, parameter_bytes=100, bandwidth=100, bucket_bytes=40)
    found = [(e.name, e.start, e.end, e.nbytes) for e in reduces(schedule, costs)]
    full = [8 + 0.4 * 2, 8 + 0.8 * 2, 10, 10 + 0.4 * 2, 10 + 0.8 * 2, 12]
    names = [f"bucket {i} of stage {stage} ({40 if i < 2 else 20} B)" for stage in (1, 0) for i in range(3)]
    assert [name for name, *_ in found] == names
    assert [start for _, start, _, _ in found] == pytest.approx(full)
    assert [end - start for _, start, end, _ in found] == pytest.approx([0.4, 0.4, 0.2] * 2)
    assert [nbytes for *_, nbytes in found] == [40, 40, 20] * 2

    queue = [e.end for e in reduces(schedule, dataclasses.replace(costs, latency=1))]  # 2.4 s each, not in 1 s
    assert queue == pytest.approx([8.8 + 2.4, 8.8 + 4.8, 8.8 + 7.0, 8.8 + 9.4, 8.8 + 11.8, 8.8 + 14.0])
    given = reduces(schedule, dataclasses.replace(costs, reduce_seconds=[1, 3]))
    assert [e.duration for e in given] == pytest.approx([1.2, 1.2, 0.6, 0.4, 0.4, 0.2])


@by_name
def test_one_bucket_is_the_whole_stage_and_more_end_no_later(schedule: Schedule) -> None:
    costs = Costs(n_replicas=2, parameter_bytes=40, bandwidth=10)
    whole = simulate(schedule.with_reduce(), costs)
    one = simulate(schedule.with_reduce(), dataclasses.replace(costs, bucket_bytes=40))
    assert [e._replace(name="") for e in one] == [e._replace(name="") for e in whole]
    many = simulate(schedule.with_reduce(), dataclasses.replace(costs, bucket_bytes=8))
    assert many.makespan <= whole.makespan
    assert many.bytes_sent == whole.bytes_sent


def test_a_reduce_that_stands_apart_starts_all_buckets_there() -> None:
    late = Schedule("mine", 1, 2, 1, ["0F0 1F0 1B0 0B0 1REDUCE 0REDUCE"], (0, 0))  # type: ignore[arg-type]
    costs = Costs(n_replicas=2, parameter_bytes=100, bandwidth=100, bucket_bytes=50)
    assert [e.start for e in simulate(late, costs) if e.kind == "COLLECTIVE"] == [6, 6.5, 7, 7.5]


@by_name
def test_a_step_ends_with_its_last_reduction_and_computes_as_without(schedule: Schedule) -> None:
    costs = Costs(n_replicas=2, parameter_bytes=40, bandwidth=10, latency=0.25)
    plain, reduced = simulate(schedule, costs), simulate(schedule.with_reduce(), costs)
    without = [e for e in reduced if e.kind != "COLLECTIVE"]
    assert without == list(plain.events)
    found = [e for e in reduced if e.kind == "COLLECTIVE"]
    assert reduced.makespan == max(plain.makespan, max(e.end for e in found))
    assert {(e.name, e.nbytes, e.duration) for e in found} == {("all_reduce", 40, 2 * 0.25 + 4)}
    for rank in range(schedule.n_ranks):
        mine = [e for e in found if e.rank == rank]
        assert all(one.end <= other.start for one, other in pairwise(mine))
        for event in mine:
            gradients = [e.end for e in plain.of_rank(rank) if e.kind in ("B", "W") and e.stage == event.stage]
            assert event.start >= max(gradients)
    sent = sum(plain.bytes_sent) + 40 * schedule.n_stages
    assert sum(reduced.bytes_sent) == sent


@pytest.mark.parametrize("bad", [0, 0.5, -1, True, "2", [2]])
def test_bad_number_of_replicas(bad: Any) -> None:
    with pytest.raises(CostsError, match="n_replicas must be"):
        Costs(n_replicas=bad)


@pytest.mark.parametrize("bad", [0, 0.5, -1, True, "2", [2]])
def test_bad_size_of_buckets(bad: Any) -> None:
    with pytest.raises(CostsError, match="bucket_bytes must be"):
        Costs(bucket_bytes=bad)


@pytest.mark.parametrize("name", ["parameter_bytes", "gradient_bytes", "optimizer_bytes", "stored_bytes"])
def test_bad_sizes(name: str) -> None:
    with pytest.raises(CostsError, match=rf"{name} must be a whole number of at least 0; got 1\.5"):
        Costs(**{name: 1.5})  # type: ignore[arg-type]
    with pytest.raises(CostsError, match=f"{name} needs one value, or one for each of the 3 stages; got 2"):
        Costs(**{name: [1, 2]}).sizes(name, 3)  # type: ignore[arg-type]


def test_a_size_left_out_is_like_another() -> None:
    costs = Costs(activation_bytes=[1, 2], parameter_bytes=5)
    sizes = {name: costs.sizes(name, 2) for name in ("stored_bytes", "leftover_bytes", "gradient_bytes")}
    assert sizes == {"stored_bytes": (1, 2), "leftover_bytes": (1, 2), "gradient_bytes": (5, 5)}
    assert Costs(stored_bytes=9).sizes("leftover_bytes", 1) == (9,)


def test_costs_show_what_is_not_the_default() -> None:
    assert repr(Costs()) == "Costs(forward=1.0, backward=2.0)"
    shown = repr(Costs(2, latency=0.5, parameter_bytes=[1, 2]))
    assert shown == "Costs(forward=2.0, backward=2.0, latency=0.5, parameter_bytes=(1.0, 2.0))"
    assert eval(shown) == Costs(2, latency=0.5, parameter_bytes=[1, 2])


# Forward only


@by_name
def test_forward_part(schedule: Schedule) -> None:
    part = schedule.with_comms().forward_part()
    assert part.forward_only
    assert part.validate() is part
    again = part.compute_only().with_comms()
    assert [sorted(map(str, row)) for row in again.actions] == [sorted(map(str, row)) for row in part.actions]
    timeline = simulate(part, Costs(latency=0.5))
    assert {e.kind for e in timeline} == {"F"} | ({"SEND", "RECV"} if timeline.messages else set())
    assert max(timeline.peak_in_flight) == 1  # nothing is kept for a backward
    assert str(part).splitlines()[0].endswith(", forward only")
    text = part.to_csv(comms=True)
    assert Schedule.from_csv(text, schedule.name, forward_only=True) == part


def test_without_saying_so_a_backward_is_missing() -> None:
    part = gpipe(2, 2).forward_part()
    with pytest.raises(ScheduleError, match=r"0B0 .* is missing"):
        dataclasses.replace(part, forward_only=False).validate()


def test_forward_only_takes_nothing_else() -> None:
    for text, action in (("0F0 0B0", "0B0"), ("0F0 0I0 0W0", "0I0"), ("0F0 0REDUCE", "0REDUCE")):
        with pytest.raises(ScheduleError, match=f"position 1: {action} has no place in a schedule that is forward"):
            Schedule("mine", 1, 1, 1, [text], forward_only=True).validate()  # type: ignore[arg-type]
    with pytest.raises(ScheduleError, match="0F1 is missing"):
        Schedule("mine", 1, 1, 2, ["0F0"], forward_only=True).validate()  # type: ignore[arg-type]
    with pytest.raises(ScheduleError, match="forward only: it has no gradients to reduce"):
        gpipe(2, 2).forward_part().with_reduce()
