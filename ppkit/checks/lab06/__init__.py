"""Lab 06, hybrid: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab06.crossing import check_sum_and_clip
from ppkit.checks.lab06.groups import check_groups
from ppkit.checks.lab06.paper import ask_predictions, check_mesh, check_predictions
from ppkit.checks.lab06.training import check_finish_step, check_hybrid_step, show_step
from ppkit.checks.tasks import Task

__all__ = [
    "FOLDER",
    "TASKS",
    "ask_predictions",
    "check_mesh",
    "check_predictions",
    "check_groups",
    "check_finish_step",
    "check_sum_and_clip",
    "check_hybrid_step",
    "show_step",
]

FOLDER = "06_hybrid"
TASKS = (
    Task("check-1", check_mesh, ("mesh_groups", "my_rows"), built=("Mesh",)),
    Task("check-2", check_predictions, ("groups_made", "megabytes_sent", "idle_fraction")),
    Task("check-3", check_groups, ("make_groups", "same_start"), built=("Mesh",)),
    Task("check-4", check_finish_step, ("finish_step",)),
    Task("check-5", check_sum_and_clip, ("sum_and_clip",), built=("clip_grad_norm",)),
    Task("check-6", check_hybrid_step, ("hybrid_step",), built=("Hybrid",)),
)
