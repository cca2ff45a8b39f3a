"""The builders give the grids, makespans, bubbles and peaks that the field knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from ppkit import builders
from ppkit.builders import gpipe, naive, one_f_one_b
from ppkit.errors import ScheduleError
from ppkit.schedule import Op, Schedule
from ppkit.simulate import Costs, simulate

Builder = Callable[[int, int], Schedule]
BUILDERS: list[Builder] = [naive, gpipe, one_f_one_b]
SIZES = list(product(range(1, 9), range(1, 17)))

GRIDS = {
    naive: """
        rank 0  0F0 .   .   .   .   .   .   0B0 0F1 .   .   .   .   .   .   0B1
        rank 1  .   1F0 .   .   .   .   1B0 .   .   1F1 .   .   .   .   1B1 .
        rank 2  .   .   2F0 .   .   2B0 .   .   .   .   2F1 .   .   2B1 .   .
        rank 3  .   .   .   3F0 3B0 .   .   .   .   .   .   3F1 3B1 .   .   .
    """,
    gpipe: """
        rank 0  0F0 0F1 .   .   .   .   .   .   0B0 0B1
        rank 1  .   1F0 1F1 .   .   .   .   1B0 1B1 .
        rank 2  .   .   2F0 2F1 .   .   2B0 2B1 .   .
        rank 3  .   .   .   3F0 3F1 3B0 3B1 .   .   .
    """,
    one_f_one_b: """
        rank 0  0F0 0F1 .   .   .   .   .   0B0 .   0B1
        rank 1  .   1F0 1F1 .   .   .   1B0 .   1B1 .
        rank 2  .   .   2F0 2F1 .   2B0 .   2B1 .   .
        rank 3  .   .   .   3F0 3B0 3F1 3B1 .   .   .
    """,
}

LONG_1F1B = """
    rank 0  0F0 0F1 0F2 0F3 .   .   .   0B0 0F4 0B1 0F5 0B2 .   0B3 .   0B4 .   0B5
    rank 1  .   1F0 1F1 1F2 .   .   1B0 1F3 1B1 1F4 1B2 1F5 1B3 .   1B4 .   1B5 .
    rank 2  .   .   2F0 2F1 .   2B0 2F2 2B1 2F3 2B2 2F4 2B3 2F5 2B4 .   2B5 .   .
    rank 3  .   .   .   3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4 3F5 3B5 .   .   .
"""


def picture(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("build", BUILDERS)
def test_grid_with_fewer_microbatches_than_stages(build: Builder) -> None:
    assert build(4, 2).grid().splitlines() == picture(GRIDS[build])


def test_grid_of_1f1b_with_a_steady_state() -> None:
    assert one_f_one_b(4, 6).grid().splitlines() == picture(LONG_1F1B)


@pytest.mark.parametrize("build", BUILDERS)
def test_docstring_shows_what_is_built(build: Builder) -> None:
    doc = inspect.getdoc(build)
    assert doc is not None
    call = doc.split("``")[1]
    drawn = [line.strip() for line in doc.splitlines() if line.strip().startswith("rank ")]
    built = eval(call, vars(builders))
    assert drawn == built.grid().splitlines()


@pytest.mark.parametrize("build", BUILDERS)
def test_order_of_each_rank(build: Builder) -> None:
    for p, m in SIZES:
        for r, row in enumerate(build(p, m).actions):
            for op in (Op.F, Op.B):
                assert [a.microbatch for a in row if a.op is op] == list(range(m)), (p, m, r)


@pytest.mark.parametrize("build", BUILDERS)
def test_every_size_is_valid(build: Builder) -> None:
    for p, m in SIZES:
        schedule = build(p, m)
        assert schedule.validate() is schedule
        assert schedule.with_comms().validate().compute_only() == schedule
        assert (schedule.n_ranks, schedule.n_stages, schedule.n_microbatches) == (p, p, m)
        assert schedule.stage_to_rank == tuple(range(p))


@pytest.mark.parametrize(("f", "b"), [(1, 2), (3, 3), (2, 7)])
@pytest.mark.parametrize("comms", [False, True])
def test_reference_values(f: int, b: int, comms: bool) -> None:
    costs = Costs(forward=f, backward=b)
    for p, m in SIZES:
        runs = {}
        for build in BUILDERS:
            schedule = build(p, m)
            runs[build] = simulate(schedule.with_comms() if comms else schedule, costs)
        assert runs[naive].makespan == p * m * (f + b)
        assert runs[naive].bubble_fraction == pytest.approx((p - 1) / p)
        assert runs[naive].peak_in_flight == (1,) * p
        for build in (gpipe, one_f_one_b):
            bubble = (p - 1) * (f + b)
            assert runs[build].makespan == m * (f + b) + bubble
            assert runs[build].idle == (bubble,) * p
            assert runs[build].bubble_fraction == pytest.approx((p - 1) / (m + p - 1))
            assert runs[build].bubble_ratio == pytest.approx((p - 1) / m)
        assert runs[gpipe].peak_in_flight == (m,) * p
        assert runs[one_f_one_b].peak_in_flight == tuple(min(p - r, m) for r in range(p))


def test_the_facts_of_four_stages_and_eight_microbatches() -> None:
    found = {}
    for build in BUILDERS:
        run = simulate(build(4, 8), Costs(forward=1, backward=2))
        found[build.__name__] = (run.makespan, round(run.bubble_fraction, 4), run.peak_in_flight)
    assert found == {
        "naive": (96, 0.75, (1, 1, 1, 1)),
        "gpipe": (33, 0.2727, (8, 8, 8, 8)),
        "one_f_one_b": (33, 0.2727, (4, 3, 2, 1)),
    }


def test_names_and_defaults() -> None:
    assert [build(2, 2).name for build in BUILDERS] == ["naive", "GPipe", "1F1B"]
    assert naive(3) == naive(3, 1)
    assert naive(n_stages=2, n_microbatches=3) == naive(2, 3)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("bad", [0, -1, 2.5, 2.0, True, False, "4", None, [4]])
def test_bad_counts(build: Builder, bad: Any) -> None:
    with pytest.raises(ScheduleError) as caught:
        build(bad, 4)
    assert str(caught.value) == f"n_stages must be a whole number, 1 or more; got {bad!r}"
    assert caught.value.values == {"n_stages": bad}
    with pytest.raises(ScheduleError) as caught:
        build(4, bad)
    assert str(caught.value) == f"n_microbatches must be a whole number, 1 or more; got {bad!r}"


def test_integers_of_other_libraries_are_counts() -> None:
    numpy = pytest.importorskip("numpy")
    schedule = one_f_one_b(numpy.int64(2), numpy.int32(3))
    assert schedule == one_f_one_b(2, 3)
    assert type(schedule.n_stages) is int


@pytest.mark.parametrize("build", [*BUILDERS, builders.zero_bubble_h1, builders.zero_bubble_v])
@pytest.mark.parametrize("counts", [(1, 10**13), (10**30, 10**30)])
def test_counts_too_large_for_memory_are_refused_at_once(build: Builder, counts: tuple[int, int]) -> None:
    with pytest.raises(ScheduleError, match="at most 4,000,000 stages times micro-batches; give smaller counts"):
        build(*counts)


def test_too_many_chunks_are_refused_at_once() -> None:
    with pytest.raises(ScheduleError, match="n_chunks=1000000000: a schedule has at most"):
        builders.interleaved_1f1b(2, 2, 10**9)
