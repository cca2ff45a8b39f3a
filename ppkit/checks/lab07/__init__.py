"""Lab 07, balance, skips, recomputation: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab07.cutting import check_cut_layers, show_cuts
from ppkit.checks.lab07.paper import ask_predictions, check_predictions
from ppkit.checks.lab07.recompute import check_recomputation
from ppkit.checks.lab07.training import check_first_rank_step, check_skip_step, show_step
from ppkit.checks.lab07.verify import check_find_skips
from ppkit.checks.tasks import Task

__all__ = [
    "FOLDER",
    "TASKS",
    "ask_predictions",
    "check_predictions",
    "check_cut_layers",
    "check_find_skips",
    "check_first_rank_step",
    "check_skip_step",
    "check_recomputation",
    "show_cuts",
    "show_step",
]

FOLDER = "07_balance_skips_checkpointing"
TASKS = (
    Task("check-1", check_predictions, ("time_by_count", "time_balanced", "idle_left")),
    Task("check-2", check_cut_layers, ("cut_layers",), built=("partition",)),
    Task("check-3", check_find_skips, ("find_skips",), built=("match_skips",)),
    Task("check-4", check_first_rank_step, ("first_rank_step",)),
    Task("check-5", check_skip_step, ("skip_step",)),
    Task("check-6", check_recomputation, ("light_forward", "recomputing_backward")),
)
