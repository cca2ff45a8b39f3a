"""Tasks 2 and 5: both schedules as data, judged by what a simulation makes of them; and how they look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import gt
from typing import Any

from ppkit.builders import interleaved_1f1b, zero_bubble_h1
from ppkit.checks.drivers import lab04 as ranks
from ppkit.checks.judge import Passed, Verdict, Wrong, graded, require_function
from ppkit.checks.lab04.orders import explain_interleaved, explain_zb_h1
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.zero_bubble import NOT_INTERLEAVED
from ppkit.checks.schedules import run_builder
from ppkit.memory import memory
from ppkit.schedule import Op, Schedule
from ppkit.simulate import Costs, simulate

__all__ = ["check_interleaved", "check_zb_h1", "show_schedules"]

INTERLEAVED = ((2, 4, 2), (3, 6, 2), (4, 8, 2), (2, 4, 3), (2, 2, 2), (4, 4, 2))  # ranks, micro-batches, chunks
ZB_H1 = ((3, 5), (4, 8), (2, 4), (1, 2), (4, 2), (3, 1))  # stages, micro-batches
COSTS = Costs(forward=1, backward=2, stored_bytes=1, leftover_bytes=1)  # an F, an I and a W are equally long

# Task 2: interleaved 1F1B


@graded("Task 2, the interleaved schedule", 30)
def check_interleaved(interleaved_schedule: Any) -> Passed:
    """Check the learner's interleaved schedules: each as quick as interleaved 1F1B, and holding no more."""
    schedules = _interleaved(interleaved_schedule, INTERLEAVED)
    for (p, m, v), schedule in zip(INTERLEAVED, schedules, strict=True):
        if any(action.op in (Op.I, Op.W) for row in schedule.actions for action in row):
            raise Wrong(f"{schedule.name}: the backwards are split; here each is one B.", mistake=NOT_INTERLEAVED)
        if text := _worse(schedule, interleaved_1f1b(p, m, v)):
            raise _too_bad(schedule, text, explain_interleaved(schedule.actions, p, m, v))
    return Passed(
        "For every size that was tried it takes no longer, and no rank holds more, than interleaved 1F1B. "
        "With 2 ranks, 4 micro-batches and 2 chunks:\n" + schedules[0].grid()
    )


def _interleaved(builder: Any, sizes: tuple[tuple[int, int, int], ...]) -> list[Schedule]:
    require_function(builder, "interleaved_schedule", ("n_ranks", "n_microbatches", "n_chunks"))
    return run_builder(
        *(ranks.schedules, builder, sizes),
        stage_to_rank=lambda p, _m, v: tuple(stage % p for stage in range(p * v)),
        explain=explain_interleaved,
    )


# Task 5: ZB-H1


@graded("Task 5, the ZB-H1 schedule", 25)
def check_zb_h1(zb_h1_schedule: Any) -> Passed:
    """Check the learner's zero-bubble schedules: each as quick as ZB-H1, and holding no more."""
    schedules = _zb_h1(zb_h1_schedule, ZB_H1)
    for (p, m), schedule in zip(ZB_H1, schedules, strict=True):
        text = _worse(schedule, zero_bubble_h1(p, m))
        mistake = explain_zb_h1(schedule.actions, p, m)
        if not text and any(action.op is Op.B for row in schedule.actions for action in row):
            text = "there is a full backward, B, in it"
        if text:
            raise _too_bad(schedule, text, mistake)
    return Passed(
        "For every size that was tried it takes no longer, and no rank holds more, than ZB-H1. With 3 stages and "
        "5 micro-batches:\n" + schedules[0].grid()
    )


def _zb_h1(builder: Any, sizes: tuple[tuple[int, int], ...]) -> list[Schedule]:
    require_function(builder, "zb_h1_schedule", ("n_stages", "n_microbatches"))
    return run_builder(ranks.schedules, builder, sizes, explain=explain_zb_h1)


def _too_bad(schedule: Schedule, text: str, mistake: Mistake | None) -> Wrong:
    return Wrong(f"{schedule.name}: {text}.\n{schedule.grid()}", mistake=mistake)


def _worse(schedule: Schedule, right: Schedule) -> str:
    """In what a schedule is worse than the right one: its makespan, or what a rank holds; empty if in nothing."""
    ours, other = simulate(schedule, COSTS), simulate(right, COSTS)
    found = []
    if ours.makespan > other.makespan:
        found.append(f"it takes {ours.makespan:g} units of time, where {other.makespan:g} are enough")
    held, enough = ours.peak_in_flight, other.peak_in_flight
    what = "activations"
    if not any(map(gt, held, enough)):
        held, enough = memory(ours, COSTS).peak, memory(other, COSTS).peak
        what = "activations and leftovers of I"
    for rank in [rank for rank in range(len(held)) if held[rank] > enough[rank]][:1]:
        found.append(f"rank {rank} holds {held[rank]} {what} at once, where {enough[rank]} are enough")
    return "; ".join(found)


def show_schedules(interleaved_schedule: Callable[..., Any], zb_h1_schedule: Callable[..., Any]) -> None:
    """Draw the learner's two schedules, simulated on four ranks with eight micro-batches, on one time axis."""
    from IPython.display import display

    from ppkit.draw import gantt

    try:
        (thin,) = _interleaved(interleaved_schedule, ((4, 8, 2),))
        (split,) = _zb_h1(zb_h1_schedule, ((4, 8),))
    except Verdict as verdict:
        print(verdict.text("Your schedules"))
        return
    chunks = Costs(forward=0.5, backward=1.0)  # half of a rank's work each
    timelines = (
        replace(simulate(thin, chunks), name="your interleaved 1F1B"),
        replace(simulate(split), name="your ZB-H1"),
    )
    display(gantt(*timelines))  # type: ignore[no-untyped-call]  # IPython's display has no types
