"""Lab 05, data parallelism: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab05.buckets import check_reducer, show_step
from ppkit.checks.lab05.devices import check_data_parallel_step
from ppkit.checks.lab05.loop import check_loop
from ppkit.checks.lab05.paper import ask_predictions, check_predictions
from ppkit.checks.lab05.rows import check_rows
from ppkit.checks.lab05.training import check_replicas
from ppkit.checks.tasks import Task

__all__ = [
    "FOLDER",
    "TASKS",
    "ask_predictions",
    "check_predictions",
    "check_rows",
    "check_loop",
    "check_data_parallel_step",
    "check_replicas",
    "check_reducer",
    "show_step",
]

FOLDER = "05_data_parallel"
TASKS = (
    Task("check-1", check_predictions, ("bytes_per_rank", "n_all_reduces", "learning_rate", "same_gradient")),
    Task("check-2", check_rows, ("epoch_rows", "accuracy")),
    Task("check-3", check_loop, ("train_loop",)),
    Task("check-4", check_data_parallel_step, ("data_parallel_step",), built=("DataParallel",)),
    Task("check-5", check_replicas, ("begin_alike", "replica_step"), built=("broadcast_module",)),
    Task("check-6", check_reducer, ("Reducer",), built=("GradientReducer",)),
)
