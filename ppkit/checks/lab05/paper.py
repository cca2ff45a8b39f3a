"""Task 1: two numbers and two choices, each of which a run decides."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ppkit.checks.drivers import lab05 as ranks
from ppkit.checks.estimates import Choice, Estimate, judge_estimates
from ppkit.checks.form import Form, Number, Words
from ppkit.checks.judge import Passed, graded
from ppkit.checks.mistakes.data_parallel import D49_COUNTED, D58, D59
from ppkit.checks.mistakes.replicas import BUCKET_COUNT, RING_BYTES, TWICE_THE_BYTES
from ppkit.checks.oracle_replicas import Net, combine, descend, digit_shards, shard_gradients
from ppkit.checks.replicas import on_replicas
from ppkit.checks.values import all_equal
from ppkit.data import digits

__all__ = ["ask_predictions", "check_predictions"]

RATES = {"as large": 1.0, "twice as large": 2.0, "four times as large": 4.0}
WAYS = ("dataparallel", "ddp", "both", "neither")
N_RANKS, MICROBATCHES, BUCKET_BYTES = 4, 4, 5_000

ask_predictions = Form(
    Number("bytes_per_rank", "Bytes that each rank sends in a step"),
    Number("n_all_reduces", "All-reduces of each rank in a step"),
    Words("learning_rate", "Learning rate, compared with one process", tuple(RATES)),
    Words("same_gradient", "The gradients of one process", WAYS),
)


@graded("Task 1, four predictions", 12)
def check_predictions(bytes_per_rank: Any, n_all_reduces: Any, learning_rate: Any, same_gradient: Any) -> Passed:
    """Check four predictions against runs: bytes and all-reduces of a step, the learning rate, unequal shards."""
    nbytes, count = _measured()
    size = nbytes * N_RANKS / (2 * (N_RANKS - 1))  # of all gradients
    bytes_known = dict.fromkeys((nbytes / 2, size, 2 * size, (N_RANKS - 1) * size), RING_BYTES)
    bytes_known |= {nbytes * MICROBATCHES: D49_COUNTED, nbytes * 2: TWICE_THE_BYTES}
    counts = dict.fromkeys((1.0, 3.0, 6.0, 9.0, 10.0), BUCKET_COUNT)  # layers, parameters, bytes divided by bytes
    counts |= {count * MICROBATCHES: D49_COUNTED, 6.0 * MICROBATCHES: D49_COUNTED}
    estimates: list[Estimate | Choice] = [
        Estimate("bytes_per_rank", bytes_per_rank, nbytes, " bytes", known=bytes_known),
        Estimate("n_all_reduces", n_all_reduces, count, " all-reduces", known=counts),
        Choice("learning_rate", learning_rate, _best_rate(), tuple(RATES), D58),
        Choice("same_gradient", same_gradient, _right_unweighted(), WAYS, D59),
    ]
    return judge_estimates(estimates, 12)


@lru_cache(maxsize=1)
def _measured() -> tuple[float, float]:
    """What each of four ranks sends in a step of the task's model, and in how many all-reduces."""
    model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 10))
    images, labels = digits(n_images=4 * MICROBATCHES)
    data = list(zip(images.split(4), labels.split(4), strict=True))
    trial = on_replicas(ranks.measure, model, data, BUCKET_BYTES, n_ranks=N_RANKS, where="4 ranks")
    reduces = [event for event in trial.timeline.of_rank(0) if event.kind == "COLLECTIVE"]
    return float(trial.timeline.bytes_sent[0]), float(len(reduces))


@lru_cache(maxsize=1)
def _best_rate() -> str:
    """The rate by which one step on four batches comes nearest to four steps, one on each of them."""
    (data,) = digit_shards([[32] * 4])
    batches = list(zip(data.inputs, data.targets, strict=True))
    model, rate = Net(), 0.01
    start = [p.detach().clone() for p in model.parameters()]
    for batch in batches:
        descend(model, shard_gradients(model, batch), rate)
    target = nn.utils.parameters_to_vector(model.parameters()).detach()

    def distance(factor: float) -> float:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start, strict=True):
                parameter.copy_(value)
        mean = combine([shard_gradients(model, batch) for batch in batches], [0.25] * 4)
        descend(model, mean, factor * rate)
        return float((nn.utils.parameters_to_vector(model.parameters()).detach() - target).norm())

    return min(RATES, key=lambda name: distance(RATES[name]))


@lru_cache(maxsize=1)
def _right_unweighted() -> str:
    """Which of the two gives the gradient of one process with a plain mean loss on shards of five and four rows."""
    from ppkit.data_parallel import DataParallel

    (data,) = digit_shards([[5, 4]])
    images, labels = torch.cat(data.inputs), torch.cat(data.targets)
    model = Net()
    right = shard_gradients(model, (images, labels))
    trial = on_replicas(ranks.unweighted, model, data, n_ranks=2, where="2 ranks")
    cross_entropy(DataParallel(model, ["cpu", "cpu"])(images), labels).backward()
    gathered = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = all_equal(gathered, right), all_equal(trial.results[0], right)
    return {(True, False): "dataparallel", (False, True): "ddp", (True, True): "both"}.get(found, "neither")
