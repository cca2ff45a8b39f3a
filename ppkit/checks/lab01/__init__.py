"""Lab 01, naive model parallelism: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab01.paper import ask_estimates, check_estimates, check_schedule
from ppkit.checks.lab01.stages import check_backward_stage, check_forward_stage
from ppkit.checks.lab01.training import check_first_rank_step, check_train_step, show_losses, show_step
from ppkit.checks.tasks import Task

__all__ = [
    "FOLDER",
    "TASKS",
    "ask_estimates",
    "check_schedule",
    "check_estimates",
    "check_forward_stage",
    "check_backward_stage",
    "check_first_rank_step",
    "check_train_step",
    "show_losses",
    "show_step",
]

FOLDER = "01_naive_model_parallelism"
TASKS = (
    Task("check-1", check_schedule, ("my_schedule",), built=("naive",)),
    Task("check-2", check_estimates, ("busy_fraction", "bytes_per_step")),
    Task("check-3", check_forward_stage, ("forward_stage",)),
    Task("check-4", check_backward_stage, ("backward_stage",)),
    Task("check-5", check_first_rank_step, ("first_rank_step",)),
    Task("check-6", check_train_step, ("train_step",)),
)
