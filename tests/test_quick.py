"""What the planner computes without events is what `simulate` and `memory` find, to the last bit."""

from __future__ import annotations

import random

import pytest

from ppkit.costs import Costs
from ppkit.drafts import Draft
from ppkit.memory import memory
from ppkit.planner import Machine, Model
from ppkit.quick import SCHEDULES, build, peak_bytes, step_seconds
from ppkit.simulate import simulate
from ppkit.ways import Step, impossible, ways

SIZES = [(p, m) for p in (1, 2, 3, 4, 6) for m in (1, 2, 3, 4, 5, 8, 13)]
by_name = pytest.mark.parametrize("name", list(SCHEDULES))


def any_costs(chance: random.Random, n: int, n_replicas: int) -> Costs:
    """Uneven stages, links from nothing to slower than the work, buckets of any size."""
    return Costs(
        forward=[chance.uniform(0.5, 2) for _ in range(n)],
        backward=[chance.uniform(0.5, 4) for _ in range(n)],
        latency=chance.choice([0.0, 0.1, 3.0]),
        bandwidth=chance.choice([None, 7.0]),
        activation_bytes=[chance.randrange(9) for _ in range(n)],
        n_replicas=n_replicas,
        bucket_bytes=chance.choice([None, 3, 1000]),
        parameter_bytes=[chance.randrange(1, 30) for _ in range(n)],
        optimizer_bytes=[chance.randrange(30) for _ in range(n)],
        gradient_bytes=[chance.randrange(30) for _ in range(n)],
        stored_bytes=[chance.randrange(1, 90) for _ in range(n)],
    )


@by_name
@pytest.mark.parametrize("n_replicas", [1, 3])
def test_seconds_are_those_of_the_simulation(name: str, n_replicas: int) -> None:
    chance = random.Random(name)
    for p, m in SIZES * 3:
        chunks = chance.choice([2, 3]) if name == "interleaved 1F1B" else 1
        costs = any_costs(chance, p * chunks, n_replicas)
        schedule = build(name, p, m, chunks)
        expected = simulate(schedule.with_reduce() if n_replicas > 1 else schedule, costs).makespan
        assert step_seconds(name, p, m, chunks, costs) == expected, (p, m, chunks, costs)


@by_name
def test_bytes_are_those_of_the_simulation(name: str) -> None:
    chance = random.Random(name)
    for p, m in SIZES:
        chunks = chance.choice([2, 3]) if name == "interleaved 1F1B" else 1
        costs = any_costs(chance, p * chunks, 1)
        expected = memory(simulate(build(name, p, m, chunks), costs), costs).peak
        assert peak_bytes(name, p, m, chunks, costs) == expected, (p, m, chunks, costs)


# 10 layers and 7 samples: nothing divides. 24 devices in nodes of 4, whose links are ten times as fast.
MODEL = Model(10, 1_000_003, 50_000, 0.01, message_bytes=7_000, whole_bytes=20_000)
MACHINE = Machine(24, 1e9, latency=1e-4, bandwidth=1e9, overhead=1e-5, node_size=4, node_bandwidth=1e10)


@pytest.mark.parametrize("recompute", [False, True])
def test_every_draft_is_its_simulated_step(recompute: bool) -> None:
    model = Model(10, 1_000_003, 50_000, 0.01, message_bytes=7_000, whole_bytes=20_000, recompute=recompute)
    found = 0
    for way in ways(MACHINE):
        if impossible(way, model, 7):
            continue
        for m in (1, 2, 4):
            for zero in (False, True)[: 1 + (way.n_replicas > 1)]:
                draft = Draft(Step(way, m, model, MACHINE, 7, zero))
                option, found = draft.option, found + 1
                timeline = option.timeline
                assert option.seconds == timeline.makespan
                assert draft.bound <= option.seconds * (1 + 1e-9)
                assert len(option.memory) == timeline.n_ranks
                waits = draft.step.waits
                share = m * sum(waits) * model.n_layers / (way.n_stages * timeline.makespan)
                assert option.bubble == pytest.approx(timeline.bubble_fraction + share, abs=1e-9)
                own = [sent + draft.step.tensor_bytes(r % way.n_stages) for r, sent in enumerate(timeline.bytes_sent)]
                assert option.bytes_sent == max(own)
    assert found > 150


def test_memory_of_a_draft_is_that_of_its_timeline() -> None:
    for way in ways(MACHINE):
        if way.n_stages > 1 and not impossible(way, MODEL, 7):
            draft = Draft(Step(way, 4, MODEL, MACHINE, 7))
            assert draft.memory == memory(draft.option.timeline, draft.step.costs()).peak
