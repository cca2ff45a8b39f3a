"""Draws a learner's step beside the schedule that it should follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ppkit.checks.judge import Verdict, require_function
from ppkit.checks.messages import Expected
from ppkit.checks.trial import on_ranks
from ppkit.emulate import Emulation, Link
from ppkit.schedule import Schedule
from ppkit.simulate import Costs, simulate

__all__ = ["show_beside"]


def show_beside(
    schedule: Schedule, driver: Callable[..., Any], step: Any, *data: Any, name: str, parameters: Sequence[str]
) -> None:
    """Draw one step of the learner's on emulated devices, and the schedule, on one time axis.

    Args:
        schedule: simulated at the same costs; a rank for each of its ranks.
        driver: calls the step on a rank.
        step: the learner's.
        *data: the driver's other arguments.
        name: of the step in the task.
        parameters: of the step.
    """
    from IPython.display import display

    from ppkit.draw import gantt

    costs = Costs(forward=0.020, backward=0.040, latency=0.002)
    emulation = Emulation(forward=0.020, backward=0.040, link=Link(latency=0.002))
    n_ranks = schedule.n_ranks
    try:
        require_function(step, name, parameters)
        trial = on_ranks(
            *(driver, step, *data),
            n_ranks=n_ranks,
            where=f"{n_ranks} ranks",
            expected=Expected(()),
            emulate=emulation,
        )
    except Verdict as verdict:
        print(verdict.text("Your step"))
        return
    timeline = trial.timeline.step(-1, clip=True) if trial.timeline.n_steps else trial.timeline
    display(gantt(replace(timeline, name="your step"), simulate(schedule, costs)))  # type: ignore[no-untyped-call]  # IPython's display has no types
