"""Lab 02, GPipe: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab02.paper import ask_estimates, check_estimates, check_schedule
from ppkit.checks.lab02.parts import check_forward_all, check_microbatch_loss
from ppkit.checks.lab02.training import check_first_rank_step, check_gpipe_step, show_step
from ppkit.checks.tasks import Task

__all__ = [
    "FOLDER",
    "TASKS",
    "ask_estimates",
    "check_schedule",
    "check_estimates",
    "check_microbatch_loss",
    "check_forward_all",
    "check_first_rank_step",
    "check_gpipe_step",
    "show_step",
]

FOLDER = "02_gpipe"
TASKS = (
    Task("check-1", check_schedule, ("gpipe_schedule",), built=("gpipe",)),
    Task("check-2", check_estimates, ("idle_fraction", "activations_held")),
    Task("check-3", check_microbatch_loss, ("microbatch_loss",)),
    Task("check-4", check_forward_all, ("forward_all",)),
    Task("check-5", check_first_rank_step, ("first_rank_step",)),
    Task("check-6", check_gpipe_step, ("gpipe_step",)),
)
