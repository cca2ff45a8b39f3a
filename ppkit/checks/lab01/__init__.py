"""Lab 01, naive model parallelism: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab01.paper import check_estimates, check_schedule
from ppkit.checks.lab01.stages import check_backward_stage, check_forward_stage
from ppkit.checks.lab01.training import check_first_rank_step, check_train_step, show_losses, show_step

__all__ = [
    "check_schedule",
    "check_estimates",
    "check_forward_stage",
    "check_backward_stage",
    "check_first_rank_step",
    "check_train_step",
    "show_losses",
    "show_step",
]
