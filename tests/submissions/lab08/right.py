"""Right answers to lab 08 that look unlike the solution; each earns every point of its check.

The test runs this file as a notebook would its cells; `answers` marks a submission with the check it is for.
"""

# ruff: noqa: F821  # the test gives `answers`

import torch

from ppkit import gpipe, one_f_one_b, simulate

# --- memory_per_device ---


@answers("check_memory")
def counted_in_a_simulated_schedule(count, dtype, replicas, zero1, stages, kind, m, activations, where):
    build = {"GPipe": gpipe, "1F1B": one_f_one_b}[kind]
    in_flight = simulate(build(stages, m)).peak_in_flight[where]
    size = {"float32": torch.float32, "mixed": torch.bfloat16}[dtype].itemsize
    adam = (2 if dtype == "float32" else 3) * torch.float32.itemsize
    own = count / stages
    return own * 2 * size + own * adam / (replicas if zero1 else 1) + in_flight * activations / stages


class Memory:
    """A class, with whole numbers."""

    def __call__(self, n, precision, d, zero, p, schedule, m, act, s):
        n, act = n // p, act // p
        parts = [4 * n, 4 * n, 8 * n] if precision == "float32" else [2 * n, 2 * n, 12 * n]
        parts[2] = parts[2] // d if zero else parts[2]
        held = sum(act for i in range(m) if schedule == "GPipe" or i < p - s)
        return sum(parts) + held


answers("check_memory", name="a_class")(Memory())

# --- pipeline_seconds, all_reduce_seconds ---


def by_following_every_micro_batch(p, m, f, b, hop):
    """Walk through all actions, and note when each stage is free."""
    free = [0.0] * p
    for seconds, way in ((f, range(p)), (b, range(p - 1, -1, -1))):
        for _ in range(m):
            there = 0.0
            for stage in way:
                free[stage] = max(free[stage], there) + seconds
                there = free[stage] + hop
    return max(free)


def hop_by_hop(size, n, latency, speed):
    return sum(latency + size / (n * speed) for _ in ("sum", "hand out") for _ in range(n - 1))


answers("check_times", name="step_by_step")((by_following_every_micro_batch, hop_by_hop))


def as_ideal_time_and_bubble(p, m, f, b, hop):
    ideal = m * (f + b)
    return torch.tensor(ideal / (1 - (p - 1) / (m + p - 1)) + (p - 1) * 2 * hop, dtype=torch.float64)


def as_latency_and_bytes(size, n, latency, speed):
    return 2 * (n - 1) * latency + 2 * (n - 1) / n * size / speed if n > 1 else 0


answers("check_times", name="two_terms_as_a_tensor")((as_ideal_time_and_bubble, as_latency_and_bytes))

# --- claims ---

answers("check_claims", name="capitals_and_spaces")(("C", " b", "d", "A ", "D"))

# --- hybrid_seconds ---


@answers("check_hybrid_seconds")
def without_the_two_functions(batch, rows, d, p, forward, backward, gradients, latency, bandwidth):
    m = batch / d / rows
    stage = (forward + backward) * rows / p
    ring = 2 * (d - 1) * (latency + gradients / p / d / bandwidth)
    return m * stage + (p - 1) * stage + ring


@answers("check_hybrid_seconds")
def all_reduce_added_by_name(batch, rows, n_replicas, n_stages, forward, backward, gradient_bytes, latency, bandwidth):
    share = rows / n_stages
    return sum(
        (
            pipeline_seconds(n_stages, batch // n_replicas // rows, forward * share, backward * share, transfer=0),
            all_reduce_seconds(gradient_bytes / n_stages, n_replicas, latency=latency, bandwidth=bandwidth),
        )
    )


# --- plans ---


def plan(replicas, stages, microbatches, schedule="1F1B", **others):
    return {"replicas": replicas, "stages": stages, "microbatches": microbatches, "schedule": schedule, **others}


answers("check_home", name="home_zero_bubble")((plan(1, 2, 8, "ZB-H1"), 2.2))
answers("check_home", name="home_interleaved_with_zero_for_nobody")((plan(1, 2, 32, "interleaved", zero=True), "2.4"))
answers("check_server", name="server_four_stages_interleaved")(
    plan(2, 4, 16, "interleaved", recompute=True, zero=False)
)
answers("check_server", name="server_gpipe")(plan(4, 2, 8, "GPipe", recompute=True))
answers("check_cluster", name="cluster_eight_stages")(plan(4, 8, 64, "ZB-H1", in_a_node="replicas"))
answers("check_cluster", name="cluster_interleaved")(plan(8, 4, 16, "interleaved", zero=True, in_a_node="replicas"))
