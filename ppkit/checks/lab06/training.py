"""Tasks 4 and 6: the end of a step with two bugs in it, and the whole step; what it shows beside the checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ppkit.builders import gpipe
from ppkit.checks.drivers import lab06 as ranks
from ppkit.checks.judge import Passed, Verdict, graded, require_function
from ppkit.checks.lab06.runs import on_mesh
from ppkit.checks.lab06.steps import judge_step, ratio_on, sums_of_gradients
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.gpipe import G32
from ppkit.checks.mistakes.hybrid import H63, H64
from ppkit.checks.oracle import train
from ppkit.checks.oracle_hybrid import Setting, expected_messages
from ppkit.checks.trial import Trial
from ppkit.emulate import Emulation, Link
from ppkit.mesh import Mesh, by_replica
from ppkit.simulate import Costs, simulate

__all__ = ["check_finish_step", "check_hybrid_step", "show_step"]

FINISH_PARAMETERS = ("stage", "optimizer", "kept", "before", "after", "column")
STEP_PARAMETERS = ("stage", "optimizer", "images", "labels", "n_microbatches", "row", "column")
FINISH = Setting(Mesh(2, 2), (64, 20, 10), (16, 16), 3)  # 3: another number than that of all ranks
# First a mesh, and numbers of micro-batches, by which every wrong factor is another one; and stages of equal shapes,
# so that gradients of different layers can be added up without an error. Then rows that nothing divides.
SETTINGS = (Setting(Mesh(2, 3), (64, 64, 64, 64), (24,), 4), Setting(Mesh(2, 2), (64, 20, 10), (17, 13), 3))

Function = Callable[..., Any]

# Task 4: find the bugs


@graded("Task 4, the bugs", 15)
def check_finish_step(finish_step: Any) -> Passed:
    """Check the mended end of a step on two replicas of two stages; the forwards are ppkit's."""
    require_function(finish_step, "finish_step", FINISH_PARAMETERS)
    trial = _run(ranks.finish, finish_step, FINISH)
    for rank in range(FINISH.mesh.n_ranks):
        sums = sums_of_gradients(trial, FINISH, rank)
        if sums == {1}:
            text = f"a bug is still in it: gradients are summed after 1 of {FINISH.n_microbatches} backwards."
            raise trial.unfinished(text, H63, rank=rank)
        factor = ratio_on(trial, FINISH, rank)
        if factor is not None and math.isclose(factor, 1 / FINISH.mesh.n_stages):
            text = f"a bug is still in it: every gradient is exactly {factor:.4g} times what one process computes."
            raise trial.unfinished(text, H64, rank=rank)
    judge_step(trial, FINISH)
    return Passed(
        "On 2 replicas × 2 stages, in two steps: every weight is that of one process.",
        "Gradients were summed once a step, after the last backward.",
        timeline=by_replica(trial.timeline, FINISH.mesh.n_replicas),
        output=trial.output,
    )


# Task 6: the whole step


@graded("Task 6, hybrid_step", 25)
def check_hybrid_step(hybrid_step: Any) -> Passed:
    """Check training on two meshes: the weights and losses of one process, and what is summed, where and when."""
    require_function(hybrid_step, "hybrid_step", STEP_PARAMETERS)
    trials = []
    for setting in SETTINGS:
        trials.append(trial := _run(ranks.train, hybrid_step, setting))
        judge_step(trial, setting)
    for trial, setting in zip(trials, SETTINGS, strict=True):  # what is told matters less than what is trained
        _judge_losses(trial, setting)
    return Passed(
        "On 2 × 3 and on 2 × 2 ranks, with batches that divide and with ragged ones: the losses and all weights are "
        "those of one process after every step.",
        "Every rank summed the gradients of its stage over its column alone, once a step, after its last backward.",
        timeline=by_replica(trial.timeline, SETTINGS[-1].mesh.n_replicas),
        output=trial.output,
    )


def _run(driver: Function, function: Function, setting: Setting) -> Trial:
    return on_mesh(
        *(driver, function, setting.stages(), setting.shape, setting.batches(), setting.n_microbatches),
        mesh=setting.mesh,
        where=setting.where,
        expected=expected_messages(setting),
    )


def _judge_losses(trial: Trial, setting: Setting) -> None:
    """Refuse parts of the loss that do not add up to that of one process."""
    last = setting.mesh.column(setting.mesh.n_stages - 1)
    for step, wanted in enumerate(train(setting.stages(), setting.batches()).losses):
        found = [trial.results[rank]["losses"][step] for rank in last]
        for rank, loss in zip(last, found, strict=True):
            if not isinstance(loss, float):
                text = f"it returned {loss or 'nothing'}; it must return its part of the loss."
                raise trial.wrong(text, RETURNED, rank=rank)
        if not math.isclose(sum(found), wanted, rel_tol=1e-6):
            text = (
                f"in step {step} the parts of the loss, {' and '.join(f'{loss:.6g}' for loss in found)}, add up to "
                f"{sum(found):.6g} instead of {wanted:.6g}."
            )
            raise trial.wrong(text, G32 if math.isfinite(sum(found)) else WRONG_VALUES)


# What is drawn


def show_step(hybrid_step: Any) -> None:
    """Draw the learner's step on two replicas of three stages of emulated devices, and one pipeline's schedule."""
    from IPython.display import display

    from ppkit.draw import gantt

    setting, bandwidth = SETTINGS[0], 4e6
    try:
        require_function(hybrid_step, "hybrid_step", STEP_PARAMETERS)
        trial = on_mesh(
            *(ranks.train, hybrid_step, setting.stages(), setting.shape),
            *(setting.batches() * 2, setting.n_microbatches),
            mesh=setting.mesh,
            where=setting.where,
            emulate=Emulation(forward=0.020, backward=0.040, link=Link(bandwidth=bandwidth)),
        )
    except Verdict as verdict:
        print(verdict.text("Your step"))
        return
    timeline = trial.timeline.step(-1, clip=True) if trial.timeline.n_steps else trial.timeline
    mine = by_replica(replace(timeline, name="your step"), setting.mesh.n_replicas)
    row_bytes = setting.widths[1] * 8  # of each of a micro-batch's activations
    n_rows = setting.sizes[0] // setting.mesh.n_replicas // setting.n_microbatches
    costs = Costs(forward=0.020, backward=0.040, bandwidth=bandwidth, activation_bytes=n_rows * row_bytes)
    alone = simulate(gpipe(setting.mesh.n_stages, setting.n_microbatches), costs)
    display(gantt(mine, replace(alone, name="GPipe in one replica")))  # type: ignore[no-untyped-call]  # IPython's display has no types
