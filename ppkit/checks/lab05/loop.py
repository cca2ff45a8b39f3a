"""Task 3: a training loop with three faults in it."""

from __future__ import annotations

import math
from typing import Any

from torch.nn.functional import cross_entropy

from ppkit.checks.drivers import lab05 as ranks
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.data_parallel import D44, D47, D54, D55, D56_NO_SHARDS
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.mistakes.replicas import (
    BATCH_LOSS,
    CLEARED,
    NEVER_AVERAGED,
    ONE_RANKS_GRADIENT,
    ONE_STEP,
    RANK_FIXED,
    SCALED,
    WRONG_NUMBERS,
)
from ppkit.checks.oracle_gpipe import Cut
from ppkit.checks.oracle_replicas import Net, digit_shards, state, train
from ppkit.checks.replicas import on_replicas, require_waits
from ppkit.checks.trial import Trial
from ppkit.checks.values import all_equal, first_difference

__all__ = ["check_loop"]

N_RANKS = 3


@graded("Task 3, the loop", 14)
def check_loop(train_loop: Any) -> Passed:
    """Check the mended loop on three ranks: the weights and the losses of one process."""
    require_function(train_loop, "train_loop", ("model", "batches"))
    data = digit_shards([[4] * N_RANKS] * 4)
    trial = on_replicas(ranks.loop, train_loop, Net(), data, n_ranks=N_RANKS, where=f"{N_RANKS} ranks")
    require_waits(trial)
    _recognise(trial, data)
    right = train(Net(), data)
    for rank, seen in enumerate(trial.results):
        if seen["rows"] >= sum(batch.n_rows for batch in data):
            raise trial.wrong("it trained on all rows of every batch.", D56_NO_SHARDS, rank=rank)
        if text := first_difference(seen["weights"], right.weights[-1]):
            raise trial.wrong(f"after {len(data)} batches, {text}.", WRONG_NUMBERS, rank=rank)
    for rank, seen in enumerate(trial.results):
        _judge_losses(trial, rank, seen["losses"], right.losses, data)
    return Passed(
        f"On {N_RANKS} ranks, after {len(data)} batches: every weight is that of one process, on every rank.",
        "Every rank returns the losses of the whole batches.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _recognise(trial: Trial, data: list[Cut]) -> None:
    """Refuse the weights that known mistakes give."""
    weights = [seen["weights"] for seen in trial.results]
    alone = [train(Net(), [_shard(batch, rank) for batch in data]).weights[-1] for rank in range(N_RANKS)]
    first = trial.results[0]
    if all(all_equal(one, alone[0]) for one in weights):
        text = "every rank's weights are those of a training on rank 0's rows alone."
        if not first["bytes"] and not first["made"]:
            raise trial.unfinished("the faults are still in it: the weights are not those of one process.", RANK_FIXED)
        own_rows = len({seen["images"] for seen in trial.results}) > 1
        raise trial.wrong(text, ONE_RANKS_GRADIENT if own_rows else RANK_FIXED)
    if all(all_equal(one, own) for one, own in zip(weights, alone, strict=True)):
        text = "the replicas have drifted apart: each one's weights are those of a training on its own rows."
        raise trial.wrong(text, _why_apart(first))
    if all_equal(weights[0], train(Net(), data, "D44").weights[-1]):
        raise trial.wrong("the weights are those that come of the sum of the ranks' gradients.", D44)
    if all(all_equal(one, state(Net())) for one in weights):
        stepped = any(event.kind == "OPTIM" for event in trial.timeline)
        raise trial.wrong("the model's parameters are what they were before.", CLEARED if stepped else ONE_STEP)
    if all_equal(weights[0], train(Net(), data, "twice").weights[-1]):
        text = f"the weights are those that come of gradients divided by {N_RANKS} once more."
        raise trial.wrong(text, SCALED)
    if not all(all_equal(one, weights[0]) for one in weights):
        text = first_difference(weights[1], weights[0]).replace("one process computes", "rank 0 has")
        raise trial.wrong(f"the replicas have drifted apart: on rank 1, {text}.", NEVER_AVERAGED)


def _why_apart(seen: dict[str, Any]) -> Mistake:
    """Why each replica has learned from its own rows alone."""
    if seen["made"] and not seen["called"]:
        return D55
    if seen["bytes"] >= sum(p.numel() * p.element_size() for p in Net().parameters()):
        return D47  # something large was averaged, too late
    return D54 if seen["bytes"] else NEVER_AVERAGED


def _shard(batch: Cut, rank: int) -> Cut:
    return Cut(batch.inputs[rank : rank + 1], batch.targets[rank : rank + 1])


def _judge_losses(trial: Trial, rank: int, losses: Any, right: tuple[float, ...], data: list[Cut]) -> None:
    if not isinstance(losses, list) or len(losses) != len(right):
        got = f"a list of {len(losses)}" if isinstance(losses, list) else losses or "nothing"
        raise trial.wrong(f"it returned {got}; it must return a loss for each batch.", RETURNED, rank=rank)
    for step, (loss, wanted) in enumerate(zip(losses, right, strict=True)):
        if loss is None or isinstance(loss, str):
            raise trial.wrong(f"the loss of batch {step} is {loss or 'None'}, not a number.", RETURNED, rank=rank)
        if not math.isclose(loss, wanted, rel_tol=1e-6):
            own = cross_entropy(Net()(data[0].inputs[rank]), data[0].targets[rank]).item()
            told = ", that of its own rows," if not step and math.isclose(loss, own, rel_tol=1e-6) else ""
            told = ", the sum of the ranks'," if math.isclose(loss, N_RANKS * wanted, rel_tol=1e-6) else told
            text = f"for batch {step} it returned a loss of {loss:.6g}{told} instead of {wanted:.6g}."
            raise trial.wrong(text, BATCH_LOSS, rank=rank)
