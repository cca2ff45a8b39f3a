"""Task 1: what two cuts of the same layers cost, predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ppkit.builders import gpipe
from ppkit.checks.estimates import Estimate, judge_estimates
from ppkit.checks.form import Form, Number
from ppkit.checks.judge import Passed, Wrong, graded
from ppkit.checks.mistakes.balance_skips import BUSY, G29_LEFT, H69, OTHER_IDLE, OTHER_TIME, S92, S93, SLOW
from ppkit.checks.mistakes.general import ESTIMATE
from ppkit.partition import equal_sizes, partition, stage_sums
from ppkit.simulate import Costs, simulate
from ppkit.timeline import Timeline

__all__ = ["COSTS", "N_MICROBATCHES", "N_STAGES", "ask_predictions", "check_predictions", "step_of"]

COSTS, N_STAGES, N_MICROBATCHES = (1, 3, 3, 3, 3, 3, 3, 3, 3, 10), 4, 8

ask_predictions = Form(
    Number("time_by_count", "Units of time of a step, cut by layer count"),
    Number("time_balanced", "Units of time of a step, balanced"),
    Number("idle_left", "Idle part with very many micro-batches, from 0 to 1"),
)


@graded("Task 1, three predictions", 15)
def check_predictions(time_by_count: Any, time_balanced: Any, idle_left: Any) -> Passed:
    """Check what is predicted of a cut by layer count and of the best one against GPipe's schedule, simulated."""
    by_count, best = equal_sizes(len(COSTS), N_STAGES), partition(COSTS, N_STAGES)
    m, p, work = N_MICROBATCHES, N_STAGES, sum(COSTS)
    alike = (m + p - 1) * work / p  # as if all stages took the mean
    beat = step_of(by_count, m + 1).makespan - step_of(by_count, m).makespan
    estimates = []
    for name, value, sizes in (("time_by_count", time_by_count, by_count), ("time_balanced", time_balanced, best)):
        slowest = max(stage_sums(COSTS, sizes))
        known = {alike: H69, m * slowest: S92, (m + p - 1) * slowest: SLOW}
        estimates.append(Estimate(name, value, step_of(sizes, m).makespan, " units", known=known))
    busy = work / (p * beat)
    finite = step_of(by_count, m).bubble_fraction
    known = {0.0: S93, finite: S93, (p - 1) / (m + p - 1): S93, busy: BUSY, (1 - busy) / busy: G29_LEFT}
    estimates.append(Estimate("idle_left", idle_left, 1 - busy, known=known, tolerance=0.015))
    try:
        return judge_estimates(estimates, 15)
    except Wrong as verdict:
        if verdict.mistake is ESTIMATE:
            times_are_right = all(one.judge()[1] is Passed for one in estimates[:2])
            verdict.mistake = OTHER_IDLE if times_are_right else OTHER_TIME
        raise


def step_of(sizes: list[int], n_microbatches: int) -> Timeline:
    """GPipe's step, simulated, if the stages have so many layers; a backward takes twice as long as a forward."""
    stages = stage_sums(COSTS, sizes)
    costs = Costs(forward=[cost / 3 for cost in stages], backward=[2 * cost / 3 for cost in stages])
    return replace(simulate(gpipe(len(sizes), n_microbatches), costs), notes={"unit": "time units"})
