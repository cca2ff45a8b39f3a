"""Task 5: replicas that begin alike and step alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ppkit.checks.drivers import lab05 as ranks
from ppkit.checks.judge import Passed, Wrong, graded, require_function
from ppkit.checks.mistakes.data_parallel import D42, D43, D44, D45, D46, D47, D54
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.mistakes.gpipe import G22
from ppkit.checks.mistakes.replicas import BATCH_LOSS, NEVER_AVERAGED, NOBODYS_START, ONE_STEP, SCALED, WRONG_NUMBERS
from ppkit.checks.oracle_gpipe import Cut
from ppkit.checks.oracle_hybrid import ratio
from ppkit.checks.oracle_replicas import Net, combine, digit_shards, shard_gradients, state, train
from ppkit.checks.replicas import on_replicas
from ppkit.checks.trial import Trial
from ppkit.checks.values import all_equal, equal, first_difference

__all__ = ["check_replicas"]

BEGIN_PARAMETERS = ("model",)
STEP_PARAMETERS = ("model", "optimizer", "images", "labels", "n_rows")
SETTINGS = (((4, 4), (4, 4)), ((5, 3, 1), (2, 4, 3)))  # for each step, the rows of each rank's shard


@graded("Task 5, begin_alike and replica_step", 18)
def check_replicas(begin_alike: Any, replica_step: Any) -> Passed:
    """Check training over 2 and 3 ranks: the start, the gradients of every step, the weights and the losses."""
    require_function(begin_alike, "begin_alike", BEGIN_PARAMETERS)
    require_function(replica_step, "replica_step", STEP_PARAMETERS)
    for sizes in SETTINGS:
        n_ranks = len(sizes[0])
        models, data = [Net(seed) for seed in range(n_ranks)], digit_shards(sizes)
        shards = ", ".join(map(str, sizes[0]))
        where = f"{n_ranks} ranks, shards of {shards} rows"
        try:
            trial = on_replicas(
                *(ranks.replicas, begin_alike, replica_step, models, data), n_ranks=n_ranks, where=where
            )
        except Wrong as verdict:
            _explain(verdict)
            raise
        _judge_begin(trial, models)
        _judge_steps(trial, data)
    return Passed(
        "On 2 and 3 ranks, with equal and unequal shards: the replicas begin with rank 0's parameters and buffers.",
        "Each step was taken with the gradients of one process, and every rank returned the loss of the whole batch.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _explain(verdict: Wrong) -> None:
    """Find the mistake behind an all-reduce of gradients that are not there yet."""
    early = verdict.timeline is not None and not any(event.kind == "B" for event in verdict.timeline)
    if early and "NoneType" in verdict.facts[0]:
        verdict.mistake = D47


def _judge_begin(trial: Trial, models: Sequence[Net]) -> None:
    buffers = [name for name, _ in models[0].named_buffers()]
    for names, what, mistake in ((list(state(models[0])), "parameter", D42), (buffers, "buffer", D43)):
        for rank, seen in enumerate(trial.results):
            for name in names:
                first, own = (model.state_dict()[name] for model in (models[0], models[rank]))
                got = seen["begun"][name]
                if equal(got, own) and not equal(got, first):
                    text = f"after `begin_alike`, its {what} {name} is its own, not rank 0's."
                    raise trial.wrong(text, mistake, rank=rank)
                if not equal(got, first):
                    text = f"after `begin_alike`, its {what} {name} is neither its own nor rank 0's."
                    raise trial.wrong(text, NOBODYS_START, rank=rank)


def _judge_steps(trial: Trial, data: Sequence[Cut]) -> None:
    right = train(Net(), data)
    for step, wanted in enumerate(right.weights):
        all_seen = [seen["steps"][step] for seen in trial.results]
        if not step and all(seen["loss"] is None and not seen["taken"] for seen in all_seen):
            raise trial.unfinished("`replica_step` returned None, and took no step of the optimizer.", ONE_STEP)
        for rank, seen in enumerate(all_seen):
            where = f"in step {step},"
            if len(seen["taken"]) != 1:
                times = len(seen["taken"]) or "no"
                raise trial.wrong(f"{where} the optimizer took {times} steps for one batch.", ONE_STEP, rank=rank)
            if seen["unwaited"]:
                text = f"{where} not all of its collectives had been waited for when `replica_step` returned."
                raise trial.wrong(text, D47, rank=rank)
        for rank, seen in enumerate(all_seen):
            _judge_gradients(trial, rank, step, seen, data)
        for rank, seen in enumerate(all_seen):
            if text := first_difference(seen["weights"], wanted):
                raise trial.wrong(f"after step {step}, {text}.", WRONG_NUMBERS, rank=rank)
        for rank, seen in enumerate(all_seen):
            _judge_loss(trial, rank, step, seen["loss"], right.losses[step])


def _judge_gradients(trial: Trial, rank: int, step: int, seen: Mapping[str, Any], data: Sequence[Cut]) -> None:
    """Refuse gradients of a step that are not those of one process, the known mistakes first."""
    got = seen["taken"][0]
    *_, before, right = ({}, *train(Net(), data[: step + 1]).gradients)
    if not (text := first_difference(got, right)):
        return
    text = f"in step {step}, the gradient of {text}."
    means = [
        shard_gradients(_model(data[:step]), shard) for shard in zip(data[step].inputs, data[step].targets, strict=True)
    ]
    share = len(data[step].targets[rank]) / data[step].n_rows
    scales = (1.0, share, share * len(means))
    if any(all_equal(got, combine([means[rank]], [scale])) for scale in scales):
        own = f"in step {step}, the optimizer used the gradients of its own shard."
        large = sum(grad.numel() * grad.element_size() for grad in means[0].values())
        if seen["bytes"] >= large:
            late = all(torch.is_tensor(grad) for grad in seen["left"].values()) and not all_equal(seen["left"], got)
            raise trial.wrong(own, D47 if late else D46, rank=rank)
        raise trial.wrong(own, D54 if seen["bytes"] else NEVER_AVERAGED, rank=rank)
    if step and any(all_equal(got, combine([before, right], [scale, 1.0])) for scale in (1.0, len(means))):
        raise trial.wrong(text, G22, rank=rank)
    for mistake, suspect in ((D44, "D44"), (D45, "D45")):
        if all_equal(got, combine(means, _shares(suspect, data[step]))):
            raise trial.wrong(text, mistake, rank=rank)
    whole = combine(means, _shares("", data[step]))
    if all_equal(got, combine([whole], [float(len(means))])):
        raise trial.wrong(text, D44, rank=rank)
    raise trial.wrong(text, WRONG_NUMBERS if ratio(got, right) is None else SCALED, rank=rank)


def _shares(mistake: str, batch: Cut) -> list[float]:
    n = len(batch)
    return [{"D44": 1.0, "D45": 1 / n}.get(mistake, len(rows) / batch.n_rows) for rows in batch.targets]


def _model(batches: Sequence[Cut]) -> Net:
    """The model as it is after some steps."""
    model = copy.deepcopy(Net())
    if batches:
        model.load_state_dict(train(Net(), batches).weights[-1], strict=False)
    return model


def _judge_loss(trial: Trial, rank: int, step: int, loss: Any, wanted: float) -> None:
    if loss is None or isinstance(loss, str):
        text = f"in step {step} it returned {loss or 'nothing'}; it must return the loss of the batch."
        raise trial.wrong(text, RETURNED, rank=rank)
    if not math.isclose(loss, wanted, rel_tol=1e-6):
        text = f"in step {step} it returned a loss of {loss:.6g} instead of {wanted:.6g}."
        raise trial.wrong(text, BATCH_LOSS, rank=rank)
