"""Draws a learner's step beside what it should look like."""

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
from ppkit.timeline import Timeline

__all__ = ["show_beside", "show_run"]


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
    costs = Costs(forward=0.020, backward=0.040, latency=0.002)
    emulation = Emulation(forward=0.020, backward=0.040, link=Link(latency=0.002))
    beside = simulate(schedule, costs)
    show_run(beside, emulation, driver, step, *data, name=name, parameters=parameters, n_ranks=schedule.n_ranks)


def show_run(
    beside: Timeline,
    emulation: Emulation,
    driver: Callable[..., Any],
    answer: Any,
    *data: Any,
    name: str,
    parameters: Sequence[str],
    n_ranks: int,
) -> None:
    """Draw the last step of a run with the learner's answer, and another timeline, on one time axis.

    Args:
        beside: the other one.
        emulation: of the learner's run.
        driver: calls the answer on a rank.
        answer: the learner's.
        *data: the driver's other arguments.
        name: of the answer in the task.
        parameters: of the answer.
        n_ranks: of the learner's run.
    """
    from IPython.display import display

    from ppkit.draw import gantt

    try:
        require_function(answer, name, parameters)
        trial = on_ranks(
            *(driver, answer, *data),
            n_ranks=n_ranks,
            where=f"{n_ranks} ranks",
            expected=Expected(()),
            emulate=emulation,
        )
    except Verdict as verdict:
        print(verdict.text("Your step"))
        return
    timeline = trial.timeline.step(-1, clip=True) if trial.timeline.n_steps else trial.timeline
    display(gantt(replace(timeline, name="your step"), beside))  # type: ignore[no-untyped-call]  # IPython's display has no types
