"""Interleaved and zero-bubble schedules: the field's numbers, torch's orders, and what holds for every size."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppkit import builders
from ppkit.builders import gpipe, interleaved_1f1b, naive, one_f_one_b, zero_bubble_h1, zero_bubble_v
from ppkit.errors import ScheduleError
from ppkit.schedule import Op, Schedule
from ppkit.simulate import Costs, simulate

SIZES = list(product(range(1, 7), range(1, 17)))


def thirds(chunks: int = 1) -> Costs:
    """F = I = W = 1 for what a rank holds, in so many chunks."""
    return Costs(forward=1 / chunks, input_grad=1 / chunks, weight_grad=1 / chunks)


@pytest.mark.parametrize("build", [interleaved_1f1b, zero_bubble_h1, zero_bubble_v])
def test_docstring_shows_what_is_built(build: Callable[..., Schedule]) -> None:
    doc = inspect.getdoc(build)
    assert doc is not None
    drawn = [line.strip() for line in doc.splitlines() if line.strip().startswith("rank ")]
    assert drawn == eval(doc.split("``")[1], vars(builders)).grid().splitlines()


# The field's numbers


@pytest.mark.parametrize(
    ("schedule", "chunks", "makespan", "fraction", "peaks"),
    [
        (interleaved_1f1b(4, 8, 2), 2, 28.5, 0.1579, (11, 9, 7, 5)),
        (interleaved_1f1b(4, 8, 4), 4, 26.25, 0.0857, (19, 17, 15, 13)),
        (zero_bubble_h1(4, 8), 1, 27, 0.1111, (4, 3, 2, 1)),
        (zero_bubble_v(4, 8), 2, 25.5, 0.0588, (8, 8, 8, 8)),
    ],
    ids=lambda value: value.name if isinstance(value, Schedule) else None,
)
def test_the_facts_of_four_ranks_and_eight_microbatches(
    schedule: Schedule, chunks: int, makespan: float, fraction: float, peaks: tuple[int, ...]
) -> None:
    run = simulate(schedule, thirds(chunks))
    assert run.makespan == makespan
    assert round(run.bubble_fraction, 4) == fraction
    assert run.peak_in_flight == peaks


@pytest.mark.parametrize(("f", "b"), [(1, 2), (3, 3), (2, 7)])
@pytest.mark.parametrize("v", [1, 2, 3, 4])
def test_interleaved_bubble_and_peaks(f: int, b: int, v: int) -> None:
    for p, m in SIZES:
        run = simulate(interleaved_1f1b(p, m, v), Costs(forward=f / v, backward=b / v))
        bubble = ((p - 1) + max(0, p - m) * (v - 1)) * (f + b) / v
        assert run.makespan == pytest.approx(m * (f + b) + bubble), (p, m)
        longest = -(-m // max(1, m // p))
        assert longest == p or m % p
        peaks = tuple(min((v - 1) * longest + 2 * (p - 1 - r) + 1, m * v) for r in range(p))
        assert run.peak_in_flight == peaks, (p, m)


@pytest.mark.parametrize(("f", "i", "w"), [(1, 1, 1), (2, 3, 1), (4, 4, 3), (3, 2, 2)])
def test_zero_bubble_h1_bubble_and_peaks(f: int, i: int, w: int) -> None:
    for p, m in SIZES:
        run = simulate(zero_bubble_h1(p, m), Costs(forward=f, input_grad=i, weight_grad=w))
        assert run.peak_in_flight == tuple(min(p - r, m) for r in range(p))
        if m >= p:
            assert run.makespan == m * (f + i + w) + (p - 1) * (f + i - w), (p, m)


def test_the_bubbles_that_the_zero_bubble_paper_found() -> None:
    # arXiv 2401.10241: its 1.5 B model on 8 stages, 24 micro-batches; milliseconds as measured there.
    costs = Costs(forward=18.522, input_grad=18.086, weight_grad=9.337, latency=0.601)
    assert round(simulate(one_f_one_b(8, 24), costs).bubble_fraction, 4) == 0.2431
    assert round(simulate(zero_bubble_h1(8, 24), costs).bubble_fraction, 4) == 0.1585


def test_weight_gradients_lag_as_many_microbatches_as_there_are_ranks_before() -> None:
    p, m = 4, 12
    for r, row in enumerate(zero_bubble_h1(p, m).actions):
        left = Counter[Op]()
        most = 0
        for action in row:
            left[action.op] += 1
            most = max(most, left[Op.I] - left[Op.W])
        assert most == r + 1  # r of them, and the one that its I has just left


def test_zero_bubble_v_never_idles_between_its_first_and_last_action() -> None:
    for p, m in SIZES:
        run = simulate(zero_bubble_v(p, m), thirds(2))
        assert max(run.peak_in_flight) == 2 * min(p, m)
        if m < 2 * p - 1:
            continue
        assert run.makespan == 3 * m + (p - 1) / 2, (p, m)
        for row in (run.of_rank(r) for r in range(p)):
            work = [event for event in row if event.lane == "compute"]
            assert all(one.end == other.start for one, other in pairwise(work)), (p, m)


def test_stages_go_down_the_ranks_and_up_again() -> None:
    assert zero_bubble_v(4, 3).stage_to_rank == (0, 1, 2, 3, 3, 2, 1, 0)
    assert interleaved_1f1b(3, 2, 2).stage_to_rank == (0, 1, 2, 0, 1, 2)
    assert [s.name for s in (interleaved_1f1b(1, 1, 1), zero_bubble_h1(1, 1), zero_bubble_v(1, 1))] == [
        "interleaved 1F1B",
        "ZB-H1",
        "ZB-V",
    ]


# torch has the same schedules


def torch_rows(kind: str, p: int, m: int, v: int) -> list[list[str]]:
    """What torch's class of this name makes for every rank, without its ranks, models and process group."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    fake = SimpleNamespace(pp_group_size=p, _n_microbatches=m, n_local_stages=v, num_stages=p * v)
    fake.number_of_rounds = max(1, m // p)
    fake.microbatches_per_round = m // fake.number_of_rounds
    build = getattr(schedules, kind)._calculate_single_rank_operations
    return [[str(action) for action in build(fake, r) if action is not None] for r in range(p)]


def ours(schedule: Schedule) -> list[list[str]]:
    return [[str(action) for action in row] for row in schedule.actions]


@pytest.mark.parametrize("v", [1, 2, 3])
def test_interleaved_is_torchs_wherever_torch_takes_the_number(v: int) -> None:
    taken = [(p, m) for p, m in SIZES if m % max(1, m // p) == 0]
    assert len(taken) == 75  # of 96
    for p, m in taken:
        assert ours(interleaved_1f1b(p, m, v)) == torch_rows("ScheduleInterleaved1F1B", p, m, v), (p, m)


def test_zero_bubble_h1_is_torchs_with_one_stage_a_rank() -> None:
    for p, m in SIZES:
        assert ours(zero_bubble_h1(p, m)) == torch_rows("ScheduleInterleavedZeroBubble", p, m, 1), (p, m)


def test_zero_bubble_v_is_torchs() -> None:
    for p, m in SIZES:
        assert ours(zero_bubble_v(p, m)) == torch_rows("ScheduleZBVZeroBubble", p, m, 2), (p, m)


# Every builder, any size

ALL: dict[str, Callable[[int, int, int], Schedule]] = {
    "naive": lambda p, m, v: naive(p, m),
    "GPipe": lambda p, m, v: gpipe(p, m),
    "1F1B": lambda p, m, v: one_f_one_b(p, m),
    "interleaved 1F1B": interleaved_1f1b,
    "ZB-H1": lambda p, m, v: zero_bubble_h1(p, m),
    "ZB-V": lambda p, m, v: zero_bubble_v(p, m),
}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(ALL)),
    p=st.integers(1, 9),
    m=st.integers(1, 20),
    v=st.integers(1, 4),
    comms=st.booleans(),
)
def test_every_size_is_valid_complete_and_runs(name: str, p: int, m: int, v: int, comms: bool) -> None:
    schedule = ALL[name](p, m, v)
    assert schedule.name == name
    assert schedule.validate() is schedule
    assert schedule.with_comms().validate().compute_only() == schedule
    counts = Counter(action for row in schedule.actions for action in row)
    assert set(counts.values()) == {1}
    ops = (Op.F, Op.I, Op.W) if name.startswith("ZB") else (Op.F, Op.B)
    assert len(counts) == len(ops) * schedule.n_stages * m
    assert all(a.op in ops and a.stage < schedule.n_stages and (a.microbatch or 0) < m for a in counts)
    chunks = schedule.n_stages // p
    run = simulate(schedule.with_comms() if comms else schedule, thirds(chunks))
    assert run.busy == pytest.approx((3 * m,) * p)
    if name != "naive":
        # With thick or thin stages: whatever starts a rank's work, all the others' work follows as in GPipe.
        assert run.makespan <= simulate(gpipe(p, m), thirds()).makespan + 1e-9


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(ALL)), p=st.integers(1, 5), m=st.integers(1, 8), v=st.integers(1, 3))
def test_csv_round_trip(name: str, p: int, m: int, v: int) -> None:
    schedule = ALL[name](p, m, v)
    assert Schedule.from_csv(schedule.to_csv(), name=name) == schedule


# Schedules by hand: chunks and halves are checked like all else


def v_rows() -> list[list[str]]:
    return [[str(action) for action in row] for row in zero_bubble_v(2, 2).actions]


def by_hand(rows: list[list[str]], stage_to_rank: tuple[int, ...] = (0, 1, 1, 0)) -> Schedule:
    return Schedule("mine", 2, 4, 2, rows, stage_to_rank)  # type: ignore[arg-type]  # texts are converted


def test_a_schedule_written_as_texts_is_the_same() -> None:
    mine = by_hand(v_rows())
    assert mine.validate().actions == zero_bubble_v(2, 2).actions
    assert simulate(mine).events == simulate(zero_bubble_v(2, 2)).events


def test_a_v_must_say_where_its_stages_are() -> None:
    with pytest.raises(ScheduleError, match=r"stage 3 lives on rank 1, not on rank 0\. If all of it .* stage_to_rank"):
        by_hand(v_rows(), ()).validate()


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ("3I0", "3W0", "3W0 runs before 3I0: the weight gradient needs what the input gradient leaves"),
        ("3F1", "3I1", "3I1 runs before its forward, 3F1"),
        ("0F0", "3F0", "a deadlock: no rank in this circle can go on"),
    ],
)
def test_two_actions_of_a_chunk_exchanged(one: str, other: str, says: str) -> None:
    rows = v_rows()
    at, to = rows[0].index(one), rows[0].index(other)
    rows[0][at], rows[0][to] = rows[0][to], rows[0][at]
    with pytest.raises(ScheduleError, match=says):
        by_hand(rows).validate()


def test_halves_beside_a_full_backward() -> None:
    rows = v_rows()
    rows[1].append("1B1")
    with pytest.raises(ScheduleError, match="1B1 and 1I1: B is the full backward, I and W its halves"):
        by_hand(rows).validate()
    rows = v_rows()
    rows[1].remove("2W1")
    with pytest.raises(ScheduleError, match="2W1 is missing: rank 1 has stage 2"):
        by_hand(rows).validate()


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "4", None])
def test_bad_counts(bad: Any) -> None:
    for build, names in (
        (interleaved_1f1b, ("n_ranks", "n_microbatches", "n_chunks")),
        (zero_bubble_h1, ("n_stages", "n_microbatches")),
        (zero_bubble_v, ("n_ranks", "n_microbatches")),
    ):
        for name in names:
            counts = dict.fromkeys(names, 2) | {name: bad}
            with pytest.raises(ScheduleError) as caught:
                build(**counts)
            assert str(caught.value) == f"{name} must be a whole number, 1 or more; got {bad!r}"
