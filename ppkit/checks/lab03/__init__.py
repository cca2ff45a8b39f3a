"""Lab 03, 1F1B: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab03.paper import ask_predictions, check_predictions, check_schedule
from ppkit.checks.lab03.training import check_exchange, check_first_rank_step, check_one_f_one_b_step, show_step
from ppkit.checks.tasks import Task

__all__ = [
    "FOLDER",
    "TASKS",
    "ask_predictions",
    "check_schedule",
    "check_predictions",
    "check_exchange",
    "check_first_rank_step",
    "check_one_f_one_b_step",
    "show_step",
]

FOLDER = "03_one_f_one_b"
TASKS = (
    Task("check-1", check_schedule, ("one_f_one_b_schedule",), built=("one_f_one_b",)),
    Task("check-2", check_predictions, ("held_on_rank_1", "idle_fraction", "idle_compared")),
    Task("check-3", check_exchange, ("exchange",)),
    Task("check-4", check_first_rank_step, ("first_rank_step",)),
    Task("check-5", check_one_f_one_b_step, ("one_f_one_b_step",)),
)
