"""Lab 08, choosing a strategy: one check a task, 100 points in all."""

from __future__ import annotations

from ppkit.checks.lab08.claims import ask_claims, check_claims
from ppkit.checks.lab08.paper import check_hybrid_seconds, check_memory, check_times
from ppkit.checks.lab08.plans import check_cluster, check_home, check_server
from ppkit.checks.lab08.show import show_machines, show_plans
from ppkit.checks.tasks import Task

__all__ = [
    "FOLDER",
    "TASKS",
    "ask_claims",
    "check_memory",
    "check_times",
    "check_claims",
    "check_hybrid_seconds",
    "check_home",
    "check_server",
    "check_cluster",
    "show_machines",
    "show_plans",
]

FOLDER = "08_choosing_a_strategy"
TASKS = (
    Task("check-1", check_memory, ("memory_per_device",)),
    Task("check-2", check_times, ("pipeline_seconds", "all_reduce_seconds"), built=("ring_seconds",)),
    Task("check-3", check_claims, ("claim_1", "claim_2", "claim_3", "claim_4", "claim_5")),
    Task("check-4", check_hybrid_seconds, ("hybrid_seconds",)),
    Task("check-5", check_home, ("home_plan", "home_seconds")),
    Task("check-6", check_server, ("server_plan",)),
    Task("check-7", check_cluster, ("cluster_plan",)),
)
