"""Predicted against measured: which operations differ, and what the difference of the makespans is made of."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from random_schedules import random_costs, random_schedule

from ppkit.builders import gpipe, one_f_one_b
from ppkit.costs import Costs
from ppkit.difference import Causes
from ppkit.errors import TimelineError
from ppkit.simulate import simulate
from ppkit.timeline import Event, Timeline


def measured(*events: Event, n_ranks: int = 2) -> Timeline:
    return Timeline(events, "measured", n_ranks, "run")


def test_a_slower_operation_on_the_path() -> None:
    first = simulate(gpipe(2, 2), Costs(forward=1, backward=2))
    second = simulate(gpipe(2, 2), Costs(forward=[1, 3], backward=2))
    found = first.compare(second)
    assert found.makespan_difference == 4
    assert found.causes == Causes(operations=4)


def test_a_slower_operation_that_had_slack() -> None:
    # Stage 0 alone had 1 s to spare beside stage 1; it becomes 3 s slower for each micro-batch.
    first = simulate(gpipe(2, 3), Costs(forward=[1, 2], backward=0))
    second = simulate(gpipe(2, 3), Costs(forward=[4, 2], backward=0))
    assert (first.makespan, second.makespan) == (7, 14)
    # In the first that chain (0F0 0F1 0F2 1F2) takes 1 + 1 + 1 + 2 = 5 s, 2 less than its longest.
    assert first.compare(second).causes == Causes(operations=9, slack=-2)


def test_links_that_take_time() -> None:
    first = simulate(gpipe(3, 1), Costs(forward=1, backward=2))
    second = simulate(gpipe(3, 1), Costs(forward=1, backward=2, latency=0.5))
    assert first.compare(second).causes == Causes(communication=2)
    assert second.compare(first).causes == Causes(slack=-2)  # in the second, the same chain has its messages too


def test_a_run_by_hand() -> None:
    first = simulate(gpipe(2, 1), Costs(forward=1, backward=2, latency=0.5))
    second = measured(
        Event(1, "RECV", 0, 2.5, name="recv", peer=0, tag=0, message=0),
        Event(0, "F", 0.25, 1.5, 0, 0),
        Event(0, "SEND", 1.75, 2.5, name="send", peer=1, tag=0, message=0),
        Event(0, "RECV", 2.5, 7, name="recv", peer=1, tag=0, message=1),
        Event(1, "F", 2.75, 3.75, 1, 0),
        Event(1, "B", 4, 6, 1, 0),
        Event(1, "SEND", 6, 7, name="send", peer=0, tag=0, message=1),
        Event(0, "B", 7, 9.5, 0, 0),
        Event(0, "OPTIM", 9.5, 10),
    )
    found = first.compare(second)
    assert found.makespan_difference == 10 - 7
    assert found.causes == Causes(
        operations=0.25 + 0.5,  # F0 and B0 of rank 0
        unpredicted=0.5,
        communication=0.25 + 0.5,
        start=0.25,
        overhead=0.25 + 0.25 + 0.25,
    )
    assert [event.kind for event in found.extra] == ["OPTIM"]
    assert len(found.rows) == 8  # plain PyTorch's messages name no stage: they pair in order
    text = str(found)
    assert "  operations take longer                 +750 ms  (F +250 ms, B +500 ms)" in text
    assert "  operations that the first has not      +500 ms" in text
    assert "  in all                                    +3 s" in text
    assert "most changed: rank 0 B0 2 s → 2.5 s, rank 0 F0 1 s → 1.25 s" in text


def test_waiting_for_what_nothing_tells_of() -> None:
    first = measured(Event(0, "F", 0, 1, 0, 0), Event(0, "B", 1, 2, 0, 0), n_ranks=1)
    second = measured(
        Event(0, "F", 0, 1, 0, 0), Event(0, "WAIT", 1, 4, name="wait"), Event(0, "B", 5, 6, 0, 0), n_ranks=1
    )
    assert first.compare(second).causes == Causes(communication=3, overhead=1)


def test_what_only_one_has_is_told_in_few_words() -> None:
    one = measured(Event(0, "F", 0, 1, 0, 0), n_ranks=1)
    more = [Event(0, "F", at, at + 1, 0, at) for at in range(8)]
    more += [Event(0, "WAIT", at, at, name="wait for isend") for at in range(3)]
    lines = str(one.compare(measured(*more, n_ranks=1))).splitlines()
    several = "rank 0 F1, rank 0 F2, rank 0 F3, rank 0 F4, rank 0 F5, 2 more computations, 3 × wait for isend"
    assert lines[-1] == f"extra: {several}"


def test_all_reduces_pair_with_predicted_ones() -> None:
    first = simulate(gpipe(1, 1).with_reduce(), Costs(reduce_seconds=2))
    second = measured(
        Event(0, "F", 0, 1, 0, 0),
        Event(0, "B", 1, 3, 0, 0),
        Event(0, "COLLECTIVE", 3, 8, name="all_reduce"),
        n_ranks=1,
    )
    found = first.compare(second)
    assert len(found.rows) == 3
    assert found.causes == Causes(communication=3)


@pytest.mark.parametrize("seed", range(80))
def test_causes_add_up_to_the_difference(seed: int) -> None:
    rng = random.Random(seed)
    schedule = random_schedule(rng)
    first, second = (simulate(schedule, random_costs(rng, schedule.n_stages)) for _ in range(2))
    found = first.compare(second)
    assert found.causes.total == pytest.approx(found.makespan_difference, abs=1e-9)
    assert found.causes.slack <= 1e-9
    assert found.causes.start == found.causes.overhead == found.causes.waiting == found.causes.unpredicted == 0
    assert first.compare(first).causes.total == 0


@pytest.mark.parametrize("seed", range(20))
def test_causes_of_a_stretched_and_disordered_run_add_up_too(seed: int) -> None:
    rng = random.Random(seed)
    predicted = simulate(one_f_one_b(3, 4), Costs(latency=0.25))
    at = dict.fromkeys(range(3), 5.0)
    events = []
    for event in predicted.events:
        start = max(at[event.rank], event.start + 5) + rng.choice([0, 0.1, 0.5])
        end = start + event.duration * rng.choice([0.5, 1, 2])
        at[event.rank] = end if event.lane == "compute" else at[event.rank]
        events.append(event._replace(start=start, end=end, held_until=None))
    second = Timeline(tuple(events), "measured", 3, "run")
    found = predicted.compare(second)
    assert found.causes.total == pytest.approx(found.makespan_difference)
    for causes, idle in zip(second.idle_causes(), second.idle, strict=True):
        assert causes.total == pytest.approx(idle)


def test_two_rows_a_rank() -> None:
    first, second = simulate(gpipe(2, 2)), measured(*simulate(gpipe(2, 2), Costs(latency=0.5)).events)
    found = first.compare(second)
    bundle = found._repr_mimebundle_()
    assert bundle["text/plain"] == str(found)
    ticks = bundle["application/vnd.plotly.v1+json"]["layout"]["yaxis"]["ticktext"]
    assert [text.split("<")[0] for text in ticks] == ["rank 0", "rank 1"] * 2
    assert "measured" in bundle["image/svg+xml"]
    figure = found.gantt(critical=True)
    assert any(trace.name == "critical path" for trace in figure.data)
    assert len(found.gantt(by_rank=False).layout.annotations) == 1


def test_rounding_is_no_difference() -> None:
    first = simulate(one_f_one_b(4, 8))
    slower = first.compare(simulate(one_f_one_b(4, 8), Costs(forward=(1, 1, 1.5, 1), latency=0.21)))
    assert "operations take longer" in str(slower)
    assert "(F +3.5 s)" in str(slower)
    moved = replace(first, events=tuple(e._replace(end=e.end * (1 + 1e-12)) for e in first))
    text = str(first.compare(moved))
    assert "(the same)" in text
    assert "why" not in text
    assert "most changed" not in text


def test_two_units_are_not_compared() -> None:
    first = simulate(gpipe(2, 2))
    second = replace(first, notes={"unit": "time units"})
    with pytest.raises(TimelineError, match=r"compare\(\): the first timeline is in seconds, the second in time units"):
        first.compare(second)
    assert "(the same)" in str(second.compare(second))


@pytest.mark.parametrize("other", [None, gpipe(2, 2), "measured"])
def test_only_a_timeline_is_compared(other: Any) -> None:
    with pytest.raises(TimelineError, match=r"compare\(\) takes a Timeline"):
        simulate(gpipe(2, 2)).compare(other)
