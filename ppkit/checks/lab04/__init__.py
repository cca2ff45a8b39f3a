"""Lab 04, interleaved and zero-bubble schedules: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab04.paper import ask_predictions, check_predictions, check_stage_to_rank
from ppkit.checks.lab04.schedules import check_interleaved, check_zb_h1, show_schedules
from ppkit.checks.lab04.split import check_split
from ppkit.checks.tasks import Task

__all__ = [
    "FOLDER",
    "TASKS",
    "ask_predictions",
    "check_stage_to_rank",
    "check_interleaved",
    "check_predictions",
    "check_split",
    "check_zb_h1",
    "show_schedules",
]

FOLDER = "04_interleaved_and_zero_bubble"
TASKS = (
    Task("check-1", check_stage_to_rank, ("stage_to_rank",)),
    Task("check-2", check_interleaved, ("interleaved_schedule",), built=("interleaved_1f1b",)),
    Task("check-3", check_predictions, ("idle", "held_on_rank_0", "n_messages")),
    Task("check-4", check_split, ("input_grad", "weight_grads")),
    Task("check-5", check_zb_h1, ("zb_h1_schedule",), built=("zero_bubble_h1",)),
)
