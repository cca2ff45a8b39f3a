"""Memory over time: against sums by hand, the zero-bubble paper's counts, and a slow count at every moment."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from random_schedules import random_schedule

from ppkit.builders import gpipe, interleaved_1f1b, naive, one_f_one_b, zero_bubble_h1, zero_bubble_v
from ppkit.costs import Costs
from ppkit.errors import CostsError, TimelineError
from ppkit.memory import PARTS, Memory, memory
from ppkit.schedule import Schedule
from ppkit.simulate import simulate
from ppkit.timeline import Event, Timeline

P, M = 4, 8


def stored(size: int, thirds: float = 1.0) -> Costs:
    return Costs(forward=thirds, input_grad=thirds, weight_grad=thirds, stored_bytes=size)


@pytest.mark.parametrize(
    ("schedule", "peaks"),
    [
        (naive(P, M), [1] * P),
        (gpipe(P, M), [M] * P),
        (one_f_one_b(P, M), [P - r for r in range(P)]),
        (interleaved_1f1b(P, M, 2), [P + 2 * (P - 1 - r) + 1 for r in range(P)]),
        (zero_bubble_h1(P, M), [P] * P),  # p-r activations, and r leftovers
        (zero_bubble_v(P, M), [2 * P] * P),
    ],
    ids=lambda value: value.name if isinstance(value, Schedule) else "",
)
def test_peaks_that_the_field_knows(schedule: Schedule, peaks: list[int]) -> None:
    assert memory(schedule, stored(10)).peak == tuple(10 * peak for peak in peaks)


@pytest.mark.parametrize("p", range(1, 7))
def test_activations_and_leftovers_at_the_peak_of_zb_h1(p: int) -> None:
    for m in range(2 * p - 1, 2 * p + 6):
        found = memory(zero_bubble_h1(p, m), stored(1))
        for r, curve in enumerate(found.curves):
            then = curve.at(curve.peak_at)
            assert (then["activations"], then["weight-gradient leftovers"]) == (p - r, r), m
            assert curve.peak == p


def test_one_stage_by_hand() -> None:
    costs = Costs(
        forward=1,
        input_grad=2,
        weight_grad=3,
        stored_bytes=100,
        leftover_bytes=30,
        parameter_bytes=10,
        gradient_bytes=5,
        optimizer_bytes=20,
    )
    schedule = Schedule("mine", 1, 1, 2, ["0F0 0F1 0I0 0I1 0W0 0W1"])  # type: ignore[arg-type]
    (curve,) = memory(schedule, costs).curves
    rows = list(zip(curve.times, *(curve.parts[part] for part in PARTS), strict=True))
    assert rows == [
        (0, 10, 20, 0, 100, 0),  # 0F0
        (1, 10, 20, 0, 200, 0),  # 0F1
        (4, 10, 20, 0, 100, 30),  # after 0I0
        (6, 10, 20, 5, 0, 60),  # after 0I1; the gradients are made in 0W0
        (9, 10, 20, 5, 0, 30),
        (12, 10, 20, 5, 0, 0),
    ]
    assert curve.totals == (130, 230, 160, 95, 65, 35)
    assert (curve.peak, curve.peak_at) == (230, 1)
    assert curve.at(-1) == curve.at(0.5) == dict(zip(PARTS, (10, 20, 0, 100, 0), strict=True))
    assert curve.at(99) == dict(zip(PARTS, (10, 20, 5, 0, 0), strict=True))


def test_a_full_backward_leaves_nothing_and_makes_the_gradients() -> None:
    (curve,) = memory(naive(1, 1), Costs(stored_bytes=7, leftover_bytes=99, parameter_bytes=2)).curves
    assert list(zip(curve.times, curve.totals, strict=True)) == [(0, 9), (1, 11), (3, 4)]


def test_bytes_of_each_stage() -> None:
    costs = Costs(stored_bytes=[1, 10, 100, 1000], parameter_bytes=[5, 6, 7, 8], gradient_bytes=0)
    found = memory(interleaved_1f1b(2, 1, 2), costs)
    assert found.peak == (101 + 12, 1010 + 14)


@pytest.mark.parametrize("seed", range(40))
def test_against_a_count_at_every_moment(seed: int) -> None:
    rng = random.Random(seed)
    schedule = random_schedule(rng)
    n = schedule.n_stages
    sizes = [rng.randint(1, 9) for _ in range(n)]
    left = [rng.randint(0, 9) for _ in range(n)]
    costs = Costs(
        forward=1, input_grad=1, weight_grad=1, stored_bytes=sizes, leftover_bytes=left, parameter_bytes=sizes
    )
    timeline = simulate(schedule, costs)
    found = memory(timeline, costs)
    for rank, curve in enumerate(found.curves):
        at = {(e.kind, e.stage, e.microbatch): e for e in timeline.of_rank(rank) if e.lane == "compute"}
        stages = {stage for _, stage, _ in at}

        def alive(t: float, at: dict = at) -> tuple[int, int, int]:  # type: ignore[type-arg]
            acts = leftovers = 0
            grads = set()
            for (kind, stage, part), event in at.items():
                if kind == "F":
                    freed = at.get(("B", stage, part)) or at["I", stage, part]
                    acts += sizes[stage] * (event.start <= t < freed.end)
                if kind == "I":
                    leftovers += left[stage] * (event.end <= t < at["W", stage, part].end)
                if kind in ("B", "W") and event.start <= t:
                    grads.add(stage)
            return acts, leftovers, sum(sizes[s] for s in grads)

        for t in sorted({time for e in timeline for time in (e.start, e.end, e.start + 0.25)}):
            then = curve.at(t)
            assert (then["activations"], then["weight-gradient leftovers"], then["gradients"]) == alive(t)
            assert then["parameters"] == sum(sizes[s] for s in stages)


def test_a_measured_forward_is_freed_when_it_says_so() -> None:
    events = (
        Event(0, "F", 10, 11, 0, 0, held_until=14),
        Event(0, "F", 11, 12, 0, 1),  # never freed
        Event(0, "B", 12, 13, 0, 0),
        Event(1, "COMPUTE", 10, 13),
    )
    found = memory(Timeline(events, "measured", 2, "mine"), Costs(stored_bytes=8))
    assert list(zip(found.curves[0].times, found.curves[0].totals, strict=True)) == [(0, 8), (1, 16), (4, 8)]
    assert found.peak == (16, 0)


def test_a_schedule_that_is_forward_only_keeps_nothing() -> None:
    assert memory(gpipe(3, 5).forward_part(), stored(4)).peak == (4, 4, 4)


def test_text_names_what_is_used() -> None:
    text = str(memory(one_f_one_b(2, 2), Costs(stored_bytes=1000, parameter_bytes=500)))
    assert text.splitlines() == [
        "memory of 1F1B",
        "        peak   at  parameters  gradients  activations",
        "rank 0  3 kB  4 s       500 B      500 B         2 kB",
        "rank 1  2 kB  2 s       500 B      500 B         1 kB",
    ]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: memory(gpipe(2, 2), Costs()), CostsError, "these costs say nothing of memory"),
        (lambda: memory(gpipe(2, 2), 5), CostsError, "costs must be a Costs"),  # type: ignore[arg-type]
        (lambda: memory("1F1B", Costs()), TimelineError, "takes a Schedule or a Timeline"),  # type: ignore[arg-type]
        (lambda: memory(gpipe(2, 2), Costs(stored_bytes=[1])), CostsError, "one for each of the 2 stages; got 1"),
        (lambda: memory(Timeline((), "measured", 2), Costs(stored_bytes=1)), TimelineError, "names no stage"),
    ],
)
def test_mistakes(make: Callable[[], Memory], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
