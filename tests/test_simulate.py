"""Simulated times against the field's numbers, and against a slow simulator written another way."""

from __future__ import annotations

import math
import pickle
import random
from fractions import Fraction
from typing import Any

import pytest
from random_schedules import random_costs, random_schedule

from ppkit.builders import gpipe, naive, one_f_one_b
from ppkit.errors import CostsError, ScheduleError
from ppkit.schedule import Action, Op, Schedule
from ppkit.simulate import Costs, simulate
from ppkit.timeline import Event, Timeline

# A slow simulator: raise every start until nothing that it must wait for ends later. Times are fractions.

Times = dict[str, tuple[Fraction, Fraction]]


def slow(schedule: Schedule, costs: Costs) -> Times:
    n = schedule.n_stages

    def at(value: Any, stage: int) -> Fraction:
        return Fraction(value[stage] if isinstance(value, tuple) else value)

    def lasts(action: Action) -> Fraction:
        s = action.stage
        half = at(costs.backward, s) / 2
        i = half if costs.input_grad is None else at(costs.input_grad, s)
        w = half if costs.weight_grad is None else at(costs.weight_grad, s)
        return {"F": at(costs.forward, s), "I": i, "W": w, "B": i + w}.get(action.op.value, Fraction(0))

    def transfer(one: int, other: int) -> Fraction:
        if schedule.stage_to_rank[one] == schedule.stage_to_rank[other]:
            return Fraction(0)
        size = at(costs.activation_bytes, min(one, other))
        return Fraction(costs.latency) + (size / Fraction(costs.bandwidth) if costs.bandwidth else 0)

    times: Times = {str(a): (Fraction(0), lasts(a)) for row in schedule.actions for a in row}

    def earliest(action: Action, previous: Action | None) -> Fraction:
        s, m, op = action.stage, action.microbatch, action.op
        waits = [Fraction(0) if previous is None else times[str(previous)][1]]
        source = s - 1 if op in (Op.F, Op.RECV_F) else s + 1
        if op in (Op.F, Op.B, Op.I, Op.RECV_F, Op.RECV_B) and 0 <= source < n:
            names = ("SEND_F", "F") if op in (Op.F, Op.RECV_F) else ("SEND_B", "B", "I")
            sent = next(times[f"{source}{name}{m}"][1] for name in names if f"{source}{name}{m}" in times)
            waits.append(sent + transfer(s, source))
        return max(waits)

    changed = True
    while changed:
        changed = False
        for row in schedule.actions:
            for previous, action in zip((None, *row), row, strict=False):
                start = earliest(action, previous)
                if times[str(action)][0] != start:
                    times[str(action)] = (start, start + lasts(action))
                    changed = True
    return times


def fast(timeline: Timeline) -> Times:
    return {
        f"{e.stage}{e.kind}{e.microbatch}": (Fraction(e.start), Fraction(e.end))
        for e in timeline.events
        if e.lane == "compute"
    }


@pytest.mark.parametrize("seed", range(150))
def test_against_the_slow_simulator(seed: int) -> None:
    rng = random.Random(seed)
    if seed % 3:
        schedule = random_schedule(rng)
    else:
        schedule = rng.choice([naive, gpipe, one_f_one_b])(rng.randint(1, 5), rng.randint(1, 6))
    costs = random_costs(rng, schedule.n_stages)
    expected = slow(schedule, costs)
    timeline = simulate(schedule, costs)
    assert fast(timeline) == expected
    assert timeline.makespan == max(end for _, end in expected.values())

    with_messages = schedule.with_comms()
    expected = slow(with_messages, costs)
    timeline = simulate(with_messages, costs)
    assert fast(timeline) == {text: t for text, t in expected.items() if Action.parse(text).op.is_compute}
    for send, receive in timeline.messages:
        kind = "F" if (send.stage or 0) < (receive.stage or 0) else "B"
        sent = expected[f"{send.stage}SEND_{kind}{send.microbatch}"]
        got = expected[f"{receive.stage}RECV_{kind}{receive.microbatch}"]
        assert (send.start, receive.end) == (sent[0], got[1])


# Messages


def kinds(timeline: Timeline, rank: int) -> list[tuple[str, float, float]]:
    found = [(f"{e.stage}{e.kind}{e.microbatch}", e.start, e.end) for e in timeline.of_rank(rank)]
    return sorted(found, key=lambda event: (event[1], event[2]))


@pytest.mark.parametrize("comms", [False, True])
def test_events_of_one_microbatch(comms: bool) -> None:
    schedule = gpipe(2, 1).with_comms() if comms else gpipe(2, 1)
    timeline = simulate(schedule, Costs(forward=1, backward=2, latency=0.5, bandwidth=8, activation_bytes=[4, 99]))
    assert kinds(timeline, 0) == [("0F0", 0, 1), ("0SEND0", 1, 2), ("0RECV0", 5, 6), ("0B0", 6, 8)]
    assert kinds(timeline, 1) == [("1RECV0", 1, 2), ("1F0", 2, 3), ("1B0", 3, 5), ("1SEND0", 5, 6)]
    (up, up_got), (down, down_got) = timeline.messages
    assert up == Event(0, "SEND", 1, 2, 0, 0, "send", 1, None, 4, 0)
    assert up_got == Event(1, "RECV", 1, 2, 1, 0, "recv", 0, None, 4, 0)
    assert down == Event(1, "SEND", 5, 6, 1, 0, "send", 0, None, 4, 1)
    assert down_got == Event(0, "RECV", 5, 6, 0, 0, "recv", 1, None, 4, 1)
    assert timeline.bytes_sent == (4, 4)


def test_receive_of_what_has_long_arrived_takes_no_time() -> None:
    # Rank 1 is busy with 1F0 until 6; 0F1 was sent at 2 and arrived at 3.
    timeline = simulate(gpipe(2, 2), Costs(forward=[1, 4], backward=1, latency=1))
    assert [e for e in timeline.of_rank(1) if e.kind == "RECV"] == [
        Event(1, "RECV", 1, 2, 1, 0, "recv", 0, None, 0, 0),
        Event(1, "RECV", 6, 6, 1, 1, "recv", 0, None, 0, 1),
    ]


def test_receive_begins_when_its_rank_is_free_while_the_message_is_on_its_way() -> None:
    # Sent at 4, arrives at 9; rank 1 is free from 8.
    timeline = simulate(gpipe(2, 2), Costs(forward=[2, 1], backward=1, latency=5))
    second = [e for e in timeline.of_rank(1) if e.kind == "RECV"][1]
    assert (second.start, second.end) == (8, 9)


@pytest.mark.parametrize("comms", [False, True])
def test_every_message_is_there_even_if_it_takes_no_time(comms: bool) -> None:
    p, m = 4, 6
    schedule = one_f_one_b(p, m)
    timeline = simulate(schedule.with_comms() if comms else schedule)
    assert len(timeline.messages) == 2 * (p - 1) * m
    assert [send.message for send, _ in timeline.messages] == list(range(2 * (p - 1) * m))
    seen = set()
    for send, receive in timeline.messages:
        assert (send.peer, receive.peer) == (receive.rank, send.rank)
        assert send.microbatch == receive.microbatch
        assert abs((send.stage or 0) - (receive.stage or 0)) == 1
        assert send.start == send.end <= receive.start == receive.end
        seen.add((send.stage, receive.stage, send.microbatch))
    assert len(seen) == len(timeline.messages)


def test_no_message_within_a_rank() -> None:
    both = Schedule("s", 1, 2, 1, ["0F0 1F0 1B0 0B0"], (0, 0))  # type: ignore[arg-type]  # converted
    timeline = simulate(both, Costs(latency=100, bandwidth=1, activation_bytes=100))
    assert timeline.makespan == 6
    assert {e.kind for e in timeline} == {"F", "B"}


def test_a_late_send_delays_its_receiver() -> None:
    rows = [list(row) for row in gpipe(2, 2).with_comms().actions]
    rows[0][1], rows[0][2] = rows[0][2], rows[0][1]  # 0F0 0F1 0SEND_F0 0SEND_F1
    late = Schedule("late", 2, 2, 2, tuple(map(tuple, rows)))
    assert simulate(late).makespan == simulate(gpipe(2, 2)).makespan + 1


def test_messages_of_a_link_do_not_queue() -> None:
    # Both leave rank 0 within 1 s and take 10 s each; the second arrives 1 s after the first, not 10.
    timeline = simulate(gpipe(2, 2), Costs(forward=1, backward=1, bandwidth=1, activation_bytes=10))
    assert [(send.start, send.end) for send, _ in timeline.messages[:2]] == [(1, 11), (2, 12)]


def test_a_message_larger_by_stage() -> None:
    timeline = simulate(gpipe(3, 1), Costs(bandwidth=10, activation_bytes=(10, 20, 999)))
    assert timeline.bytes_sent == (10, 30, 20)
    assert timeline.makespan == 3 * 3 + 2 * (1 + 2)


# Events


def test_compute_events() -> None:
    timeline = simulate(Schedule("s", 1, 1, 2, ["0F0 0F1 0B0 0I1 0W1"]), Costs(1, 4))  # type: ignore[arg-type]
    assert timeline.events == (
        Event(0, "F", 0, 1, 0, 0, "forward", held_until=6),
        Event(0, "F", 1, 2, 0, 1, "forward", held_until=8),
        Event(0, "B", 2, 6, 0, 0, "backward"),
        Event(0, "I", 6, 8, 0, 1, "input_grad"),
        Event(0, "W", 8, 10, 0, 1, "weight_grad"),
    )
    assert (timeline.source, timeline.name, timeline.n_ranks) == ("simulated", "s", 1)


def test_reduce_is_shown() -> None:
    reduced = Schedule("s", 1, 1, 1, ["0F0 0B0 0REDUCE"])  # type: ignore[arg-type]
    assert simulate(reduced).events[-1] == Event(0, "COLLECTIVE", 3, 3, 0, None, "all_reduce")


def test_a_rank_without_a_stage_idles() -> None:
    schedule = Schedule("s", 2, 1, 1, ["0F0 0B0", ""])  # type: ignore[arg-type]
    timeline = simulate(schedule)
    assert (timeline.idle, timeline.peak_in_flight) == ((0, 3), (1, 0))


def test_uneven_stages_by_hand() -> None:
    # The middle stage is the bottleneck: each other rank idles while it works.
    timeline = simulate(gpipe(3, 3), Costs(forward=[1, 2, 1], backward=[2, 4, 2]))
    assert timeline.makespan == 1 + 3 * 2 + 1 + 2 + 3 * 4 + 2
    assert timeline.busy == (9, 18, 9)


def zero_bubble_h1_by_hand() -> Schedule:
    """ZB-H1 for four stages and eight micro-batches, written from its description."""
    p, m = 4, 8
    rows = []
    for r in range(p):
        row = [f"{r}F{i}" for i in range(p - 1 - r)]
        w = 0
        for i in range(m):
            if p - 1 - r + i < m:
                row.append(f"{r}F{p - 1 - r + i}")
            row.append(f"{r}I{i}")
            if i >= r or p - 1 - r + i >= m:
                row.append(f"{r}W{w}")
                w += 1
        rows.append(" ".join(row + [f"{r}W{i}" for i in range(w, m)]))
    return Schedule("ZB-H1", p, p, m, rows)  # type: ignore[arg-type]


def test_split_backward_against_the_zero_bubble_paper() -> None:
    timeline = simulate(zero_bubble_h1_by_hand(), Costs(forward=1, input_grad=1, weight_grad=1))
    assert (timeline.makespan, round(timeline.bubble_fraction, 4)) == (27, 0.1111)
    assert timeline.peak_in_flight == (4, 3, 2, 1)
    for f, i, w in ((2, 3, 1), (4, 4, 3), (3, 2, 2)):  # W no longer than F or I, as in the paper
        timeline = simulate(zero_bubble_h1_by_hand(), Costs(forward=f, input_grad=i, weight_grad=w))
        assert timeline.makespan == 8 * (f + i + w) + 3 * (f + i - w)


def test_same_every_time() -> None:
    schedule = one_f_one_b(4, 8)
    one, two = (simulate(schedule, Costs(latency=0.1)) for _ in range(2))
    assert one == two
    again = pickle.loads(pickle.dumps(schedule))
    assert simulate(again, Costs(latency=0.1)).to_json() == one.to_json()


def test_deadlock_and_other_mistakes_are_schedule_errors() -> None:
    both = Schedule("mine", 2, 2, 2, ["0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"])  # type: ignore[arg-type]
    with pytest.raises(ScheduleError, match="rank 0 waits at 0B0 for 1B0, which rank 1 has after 1F1"):
        simulate(both)
    with pytest.raises(ScheduleError, match="simulate needs a Schedule"):
        simulate("1F1B")  # type: ignore[arg-type]
    with pytest.raises(CostsError, match="costs must be a Costs"):
        simulate(gpipe(2, 2), 1.0)  # type: ignore[arg-type]


# Costs


def test_split_of_the_backward() -> None:
    half = Costs(backward=[3, 5]).seconds(2)
    assert (half[Op.B], half[Op.I], half[Op.W]) == ((3, 5), (1.5, 2.5), (1.5, 2.5))
    both = Costs(backward=100, input_grad=1, weight_grad=[2, 3]).seconds(2)
    assert (both[Op.B], both[Op.I], both[Op.W]) == ((3, 4), (1, 1), (2, 3))
    assert half[Op.SEND_F] == half[Op.REDUCE] == (0, 0)


def test_defaults_are_the_documented_ones() -> None:
    assert Costs() == Costs(1.0, 2.0, None, None, 0.0, None, 0)
    assert simulate(gpipe(1, 1)).makespan == 3


@pytest.mark.parametrize("name", ["forward", "backward", "input_grad", "weight_grad", "activation_bytes"])
@pytest.mark.parametrize(
    "bad", [math.nan, -1, math.inf, -math.inf, "1", b"1", True, [1, None], [1, "2"], [1, -2], {1: 2}]
)
def test_bad_values_by_stage(name: str, bad: Any) -> None:
    if bad == {1: 2}:
        bad = [{1: 2}]
    other = {"input_grad": {"weight_grad": 1}, "weight_grad": {"input_grad": 1}}.get(name, {})
    with pytest.raises(CostsError) as caught:
        Costs(**{name: bad}, **other)
    error = caught.value
    assert str(error).startswith(f"{name} must be a ")
    assert repr(bad[-1] if isinstance(bad, list) else bad) in str(error)
    assert "of at least 0" in str(error)
    assert list(error.values) == [name]
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (CostsError, str(error))


@pytest.mark.parametrize("name", ["latency", "bandwidth"])
@pytest.mark.parametrize("bad", [math.nan, -1, math.inf, "1", True, [1, 2]])
def test_bad_link(name: str, bad: Any) -> None:
    bound = "of at least 0" if name == "latency" else "of bytes per second above 0, or None for no limit"
    with pytest.raises(CostsError, match=f"{name} must be a finite number {bound}; got "):
        Costs(**{name: bad})


def test_other_bad_costs() -> None:
    with pytest.raises(CostsError, match=r"bandwidth must be .* above 0, or None for no limit; got 0"):
        Costs(bandwidth=0)
    with pytest.raises(CostsError, match=r"n_replicas must be a whole number of at least 1: .*; got -1"):
        Costs(n_replicas=-1)
    with pytest.raises(CostsError, match=r"bucket_bytes must be a whole number of at least 1, or None .*; got -5"):
        Costs(bucket_bytes=-5)
    for name in ("forward", "backward", "latency", "activation_bytes"):
        with pytest.raises(CostsError, match=f"{name} must be a .* of at least 0; got None"):
            Costs(**{name: None})  # type: ignore[arg-type]
    with pytest.raises(CostsError, match=r"activation_bytes must be a whole number of at least 0; got 1\.5"):
        Costs(activation_bytes=1.5)  # type: ignore[arg-type]
    with pytest.raises(CostsError, match=r"input_grad=1.0 is given without weight_grad: give both"):
        Costs(input_grad=1)
    with pytest.raises(CostsError, match=r"weight_grad=\(1.0, 2.0\) is given without input_grad: give both"):
        Costs(weight_grad=[1, 2])


@pytest.mark.parametrize("name", ["forward", "backward", "activation_bytes"])
@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_wrong_number_of_values(name: str, length: int) -> None:
    costs = Costs(**{name: list(range(length))})  # type: ignore[arg-type]
    with pytest.raises(CostsError) as caught:
        simulate(gpipe(4, 2), costs)
    says = f"{name} needs one value, or one for each of the 4 stages; got {length}: "
    assert str(caught.value).startswith(says)
    assert caught.value.values["n_stages"] == 4


def test_wrong_number_of_values_for_the_halves() -> None:
    for costs in (Costs(input_grad=[1], weight_grad=1), Costs(input_grad=1, weight_grad=[1])):
        with pytest.raises(CostsError, match=r"_grad needs one value, or one for each of the 2 stages; got 1"):
            simulate(gpipe(2, 2), costs)
    with pytest.raises(CostsError, match=r"backward needs one value"):
        simulate(gpipe(2, 2), Costs(backward=[1], input_grad=1, weight_grad=1))


def test_a_chunk_costs_its_share() -> None:
    costs = Costs(
        forward=1,
        backward=4,
        latency=0.5,
        bandwidth=10,
        activation_bytes=7,
        n_replicas=3,
        reduce_seconds=6,
        parameter_bytes=5,
        stored_bytes=8,
    )
    assert costs.per_chunk(2) == Costs(
        forward=0.5,
        backward=2,
        latency=0.5,
        bandwidth=10,
        activation_bytes=7,
        n_replicas=3,
        reduce_seconds=3,
        parameter_bytes=3,  # 2.5, rounded up
        stored_bytes=4,
    )
    split = Costs(input_grad=3, weight_grad=6).per_chunk(3)
    assert (split.input_grad, split.weight_grad, split.gradient_bytes) == (1, 2, None)
    assert costs.per_chunk(1) == costs
    with pytest.raises(CostsError, match="forward has a value for each of 2: give Costs one for each of the 4 chunks"):
        Costs(forward=[1, 2]).per_chunk(2)
    with pytest.raises(ScheduleError, match="n_chunks must be a whole number, 1 or more; got 0"):
        costs.per_chunk(0)


def test_numbers_of_other_libraries() -> None:
    numpy = pytest.importorskip("numpy")
    costs = Costs(numpy.float32(1.5), numpy.array([1, 2]), latency=Fraction(1, 2))  # type: ignore[arg-type]
    assert costs == Costs(1.5, (1.0, 2.0), latency=0.5)
    assert type(simulate(gpipe(2, 2), costs).makespan) is float
    assert Costs(activation_bytes=1e6).nbytes(2) == (1000000, 1000000)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [{0: 1.0, 1: 2.0}, {1.0, 2.0}, 10**400], ids=["dict", "set", "too large"])
def test_costs_without_an_order_or_beyond_a_float(value: Any) -> None:
    with pytest.raises(CostsError, match="forward must be a finite number of at least 0"):
        Costs(forward=value)
