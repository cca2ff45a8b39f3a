"""Why ranks idle, and which chain of events explains the makespan."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from random_schedules import random_costs, random_schedule

from ppkit.builders import gpipe, interleaved_1f1b, one_f_one_b, zero_bubble_v
from ppkit.causes import IdleCauses
from ppkit.costs import Costs
from ppkit.schedule import Schedule
from ppkit.simulate import simulate
from ppkit.timeline import Event, Timeline


def labels(path: tuple[Event, ...]) -> str:
    return " ".join(f"{e.rank}:{e.label}" for e in path)


# Idle causes


def test_gpipe_fills_waits_and_drains() -> None:
    timeline = simulate(gpipe(3, 4), Costs(forward=1, backward=2))
    assert timeline.idle_causes() == (
        IdleCauses(waiting=2 * 3),
        IdleCauses(fill=1, waiting=3, drain=2),
        IdleCauses(fill=2, drain=4),
    )


def test_rounding_is_no_idle_time() -> None:
    timeline = simulate(one_f_one_b(4, 12), Costs(forward=0.02, backward=0.04))
    assert timeline.idle_causes()[3].waiting == 0.0
    assert "ns" not in repr(timeline.idle_causes())


def test_a_message_on_its_way_is_communication() -> None:
    # 0F0 0-1, there at 3; 1F0 3-4, 1B0 4-6, its gradient there at 8; 0B0 8-10. Rank 0 waits from 1 on.
    timeline = simulate(gpipe(2, 1), Costs(forward=1, backward=2, latency=2))
    assert timeline.idle_causes() == (IdleCauses(waiting=5, communication=2), IdleCauses(fill=3, drain=4))


def test_an_exposed_all_reduce_is_communication() -> None:
    timeline = simulate(gpipe(2, 1).with_reduce(), Costs(forward=1, backward=2, reduce_seconds=[1, 4]))
    # Rank 1: all-reduce 4-8; rank 0: 0B0 4-6, all-reduce 6-7.
    assert timeline.idle_causes() == (
        IdleCauses(waiting=3, communication=1, drain=1),
        IdleCauses(fill=1, communication=4),
    )


def test_a_rank_that_never_computes_only_fills() -> None:
    schedule = Schedule("mine", 2, 1, 1, ["0F0 0B0", ""])  # type: ignore[arg-type]
    assert simulate(schedule).idle_causes() == (IdleCauses(), IdleCauses(fill=3))
    assert Timeline((), "simulated", 1).idle_causes() == (IdleCauses(),)


@pytest.mark.parametrize("seed", range(60))
def test_causes_add_up_to_the_idle_time(seed: int) -> None:
    rng = random.Random(seed)
    schedule = random_schedule(rng)
    if seed % 2:
        schedule = schedule.with_comms()
    costs = random_costs(rng, schedule.n_stages)
    timeline = simulate(schedule, costs)
    for causes, idle in zip(timeline.idle_causes(), timeline.idle, strict=True):
        assert causes.total == pytest.approx(idle, abs=1e-9)
        assert min(causes) >= 0
        assert causes.overhead == 0
        if not costs.latency and not costs.bandwidth:
            assert causes.communication == 0


MEASURED = Timeline(
    (
        Event(0, "F", 0, 2, 0, 0),
        Event(0, "SEND", 3, 6, name="send", peer=1, tag=0, message=0),  # rank 1 takes it from 5 on
        Event(0, "RECV", 6, 12, name="recv", peer=1, tag=0, message=1),  # rank 1 sends from 10 on
        Event(0, "B", 13, 15, 0, 0),
        Event(0, "COLLECTIVE", 15, 19, name="all_reduce", nbytes=8),  # rank 1 comes at 18
        Event(0, "OPTIM", 20, 21),
        Event(1, "COMPUTE", 0, 4),
        Event(1, "RECV", 5, 6, name="recv", peer=0, tag=0, message=0),
        Event(1, "F", 6, 8, 1, 0),
        Event(1, "B", 8, 10, 1, 0),
        Event(1, "SEND", 10, 12, name="send", peer=0, tag=0, message=1),
        Event(1, "COMPUTE", 12, 18),
        Event(1, "COLLECTIVE", 18, 19, name="all_reduce", nbytes=8),
        Event(1, "OPTIM", 19, 22),
    ),
    "measured",
    2,
    "mine",
)


def test_causes_of_a_measured_timeline() -> None:
    zero, one = MEASURED.idle_causes()
    # 2-3 overhead, 3-5 its peer is late, 5-6 sends; 6-10 its peer is late, 10-12 receives, 12-13 overhead;
    # 15-18 its peer is late, 18-19 reduces, 19-20 overhead; 21-22 drains.
    assert zero == IdleCauses(fill=0, waiting=2 + 4 + 3, communication=1 + 2 + 1, overhead=1 + 1 + 1, drain=1)
    # 4-5 overhead, 5-6 receives what was sent at 3; 10-12 sends to a rank that waits; 18-19 reduces.
    assert one == IdleCauses(communication=1 + 2 + 1, overhead=1)
    for causes, idle in zip((zero, one), MEASURED.idle, strict=True):
        assert causes.total == idle


def test_waiting_for_an_isend_is_waiting_for_its_receiver() -> None:
    events = (
        Event(0, "F", 0, 1, 0, 0),
        Event(0, "SEND", 1, 1, name="isend", peer=1, tag=5, message=0),
        Event(0, "WAIT", 1, 6, name="wait for isend", peer=1, tag=5),
        Event(0, "F", 6, 7, 0, 1),
        Event(1, "COMPUTE", 0, 4),
        Event(1, "RECV", 4, 6, name="recv", peer=0, tag=5, message=0),
        Event(1, "F", 6, 7, 1, 0),
    )
    timeline = Timeline(events, "measured", 2)
    assert timeline.idle_causes() == (IdleCauses(waiting=3, communication=2), IdleCauses(communication=2))
    assert labels(timeline.critical_path()) == "1:compute 0:wait for isend 0:F1"


def test_collectives_of_other_times_are_others() -> None:
    # Two groups of one rank each, say; their collectives never overlap.
    events = (
        Event(0, "F", 0, 1, 0, 0),
        Event(0, "COLLECTIVE", 1, 2, name="all_reduce"),
        Event(0, "OPTIM", 2, 3),
        Event(1, "F", 0, 5, 1, 0),
        Event(1, "COLLECTIVE", 5, 6, name="all_reduce"),
        Event(1, "OPTIM", 6, 7),
    )
    zero, one = Timeline(events, "measured", 2).idle_causes()
    assert (zero, one) == (IdleCauses(communication=1, drain=4), IdleCauses(communication=1))


def test_without_communication_a_gap_waits() -> None:
    events = (Event(0, "F", 0, 1, 0, 0), Event(0, "B", 3, 4, 0, 0))
    assert Timeline(events, "torch", 1).idle_causes() == (IdleCauses(waiting=2),)


def test_table() -> None:
    table = simulate(gpipe(2, 1), Costs(forward=1, backward=2, latency=0.5)).idle_causes()
    assert repr(table).splitlines() == [
        "idle                 fill        waiting  communication       overhead          drain          total",
        "rank 0                0 s          3.5 s         500 ms            0 s            0 s            4 s",
        "rank 1              1.5 s            0 s            0 s            0 s          2.5 s            4 s",
        "all ranks           1.5 s          3.5 s         500 ms            0 s          2.5 s            8 s",
    ]
    assert table.total == IdleCauses(1.5, 3.5, 0.5, 0, 2.5)


# Critical path


def test_path_of_gpipe_goes_down_through_the_slow_stage_and_up() -> None:
    timeline = simulate(gpipe(3, 3), Costs(forward=[1, 2, 1], backward=[2, 4, 2]))
    assert labels(timeline.critical_path()) == "0:F0 1:F0 1:F1 1:F2 2:F2 2:B0 1:B0 1:B1 1:B2 0:B2"


def test_messages_that_take_time_are_on_it() -> None:
    timeline = simulate(gpipe(2, 1), Costs(latency=0.5))
    assert labels(timeline.critical_path()) == "0:F0 0:send→1 1:F0 1:B0 1:send→0 0:B0"


def test_the_last_all_reduce_may_end_it() -> None:
    timeline = simulate(interleaved_1f1b(1, 2, 2).with_reduce(), Costs(forward=1, backward=2, reduce_seconds=[3, 7]))
    assert labels(timeline.critical_path()).endswith("0:B1 0:all_reduce 0:all_reduce")


@pytest.mark.parametrize("seed", range(120))
def test_path_is_a_chain_without_a_gap_over_the_whole_makespan(seed: int) -> None:
    rng = random.Random(seed)
    schedule = random_schedule(rng)
    costs = random_costs(rng, schedule.n_stages)
    if seed % 2:
        schedule = schedule.with_comms()
    if seed % 3 == 0:
        schedule = schedule.with_reduce()
    timeline = simulate(schedule, costs)
    path = timeline.critical_path()
    assert len(set(map(id, path))) == len(path)
    assert path[0].start == 0
    assert path[-1].end == timeline.makespan
    assert sum(e.duration for e in path) == pytest.approx(timeline.makespan)
    for one, other in pairwise(path):
        assert one.end == pytest.approx(other.start, abs=1e-9)
        # By rank order; or by a message, or the computation that it carries.
        assert one.rank == other.rank or one.peer == other.rank or abs((one.stage or 0) - (other.stage or 0)) == 1


@pytest.mark.parametrize("schedule", [one_f_one_b(4, 8), zero_bubble_v(3, 8)], ids=lambda s: s.name)
def test_only_what_is_on_it_shortens_the_step(schedule: Schedule) -> None:
    # One operation at a time made shorter, by an own stage: nothing off every longest chain matters.
    costs = Costs(forward=1, input_grad=1, weight_grad=1)
    timeline = simulate(schedule, costs)
    stages = {e.stage for e in timeline.critical_path()}
    assert stages
    for stage in range(schedule.n_stages):
        forward = [1.0] * schedule.n_stages
        forward[stage] = 0.5
        quicker = simulate(schedule, Costs(forward=forward, input_grad=1, weight_grad=1))
        if quicker.makespan < timeline.makespan:
            assert stage in stages


def test_path_of_a_measured_timeline() -> None:
    # Rank 1 is never waited for by itself: it came last to the all-reduce, and ends last.
    assert labels(MEASURED.critical_path()) == "1:compute 1:F0 1:B0 1:compute 1:all_reduce 1:step"


def test_path_crosses_to_the_rank_that_was_waited_for() -> None:
    short = Timeline(tuple(e for e in MEASURED if e.end <= 15 and (e.rank, e.start) != (1, 12)), "measured", 2)
    assert labels(short.critical_path()) == "1:compute 1:F0 1:B0 1:send→0 0:B0"


def test_path_of_nothing() -> None:
    assert Timeline((), "measured", 1).critical_path() == ()
