"""Judges what the ranks of a mesh did in a training step: rows, groups, moments, gradients and weights."""

from __future__ import annotations

import math
from dataclasses import replace

from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import WRONG_VALUES
from ppkit.checks.mistakes.gpipe import G18, G19, G21, G22, ONE_BY_ONE
from ppkit.checks.mistakes.hybrid import (
    D44,
    D45,
    DIVIDED_TWICE,
    H60,
    H60_WORLD,
    H62,
    H63,
    H63_EVERY,
    H64,
    H65,
    LOST_ROWS,
    NOT_CUT,
    NOT_DIVIDED,
    NOT_REDUCED,
    SCALE,
)
from ppkit.checks.mistakes.naive import N05, N14
from ppkit.checks.oracle import train
from ppkit.checks.oracle_hybrid import Setting, expected_messages, gradients, mean_of_means, parts, ratio
from ppkit.checks.replicas import require_waits
from ppkit.checks.trial import Trial
from ppkit.checks.values import all_equal, first_difference

__all__ = ["judge_step", "ratio_on", "sums_of_gradients"]

_SCALAR = 8  # bytes: a loss or a number of rows, which may be summed over any group


def judge_step(trial: Trial, setting: Setting) -> None:
    """Refuse a training whose weights are not those of one process, or that was not come by as a hybrid does.

    Raises:
        Unfinished: nothing happened.
        Wrong: the first thing that differs, with the mistake that explains it.
    """
    results, n_ranks = trial.results, setting.mesh.n_ranks
    if not any(seen["grads"] for seen in results) and not any(event.kind == "B" for event in trial.timeline):
        raise trial.unfinished("no backward has run, and no parameter has changed.")
    require_waits(trial)
    _judge_rows(trial, setting)
    trial = replace(trial, expected=expected_messages(setting, _rows(trial, setting)))
    _judge_links(trial, setting)
    for rank in range(n_ranks):
        n_steps, n_batches = len(results[rank]["grads"]), len(setting.sizes)
        if n_steps != n_batches:
            text = f"its optimizer took {n_steps} steps for {n_batches} batch{'es' * (n_batches > 1)}."
            raise trial.wrong(text, G21 if n_steps > n_batches else N14, rank=rank)
    for rank in range(n_ranks):
        _judge_groups(trial, setting, rank)
    right = gradients(setting.stages(), setting.batches()[0])
    for rank in reversed(range(n_ranks)):
        stage = setting.mesh.place_of(rank)[1]
        if text := first_difference(results[rank]["grads"][0], right[stage]):
            mistake, cause = _explain(trial, setting, rank)
            raise trial.wrong(f"{cause or f'at the optimizer, the gradient of {text}'}.", mistake, rank=rank)
    trial.require_messages()
    _judge_weights(trial, setting)
    for rank in range(n_ranks):
        if len(moments := sums_of_gradients(trial, setting, rank)) > 1:
            raise trial.wrong(f"in a step it summed gradients at {len(moments)} moments.", H63_EVERY, rank=rank)
    _require_pipeline(trial, setting)


def _rows(trial: Trial, setting: Setting) -> list[list[list[int]]]:
    """Of each batch, for each replica, the rows of its micro-batches: how the learner cuts them is not the task's."""
    firsts = setting.mesh.column(0)
    return [[trial.results[rank]["rows"][step] for rank in firsts] for step in range(len(setting.sizes))]


def sums_of_gradients(trial: Trial, setting: Setting, rank: int) -> set[int]:
    """After how many backwards of the first step a rank summed gradients with other replicas."""
    column = tuple(setting.mesh.column(setting.mesh.place_of(rank)[1]))
    seen = (one for one in trial.results[rank]["collectives"] if one.step == 0)
    return {one.backwards for one in seen if one.members == column and one.nbytes > _SCALAR}


def ratio_on(trial: Trial, setting: Setting, rank: int) -> float | None:
    """The one factor by which all gradients of a rank are wrong, at its first optimizer step; None: there is none."""
    right = gradients(setting.stages(), setting.batches()[0])[setting.mesh.place_of(rank)[1]]
    grads = trial.results[rank]["grads"]
    return ratio(grads[0], right) if grads else None


def _require_pipeline(trial: Trial, setting: Setting) -> None:
    """Refuse first stages that wait for each micro-batch to come back before they begin the next."""
    for rank in setting.mesh.column(0):
        kinds = [event.kind for event in trial.timeline.of_rank(rank) if event.kind in ("F", "B")]
        if setting.mesh.n_stages > 1 < setting.n_microbatches and "".join(kinds) == "FB" * (len(kinds) // 2):
            text = "each backward ran before the next micro-batch's forward."
            raise trial.wrong(text, ONE_BY_ONE, rank=rank)


def _judge_rows(trial: Trial, setting: Setting) -> None:
    """Refuse replicas that don't share the batch, or don't cut their share."""
    mesh = setting.mesh
    for step, size in enumerate(setting.sizes):
        calls = [seen["rows"][step] for seen in trial.results]
        firsts = mesh.column(0)
        shares = [sum(calls[rank]) for rank in firsts]
        text = f"in step {step}, the first stages of the replicas worked on {' and '.join(map(str, shares))} rows"
        if all(share == size for share in shares):
            raise trial.wrong(f"{text}, each of them.", NOT_DIVIDED)
        if sum(shares) != size:
            own_parts = {len(part) for _, part in parts(setting.batches()[step], mesh.n_ranks)}
            over_ranks = set(shares) <= own_parts
            raise trial.wrong(f"{text}; the batch has {size}.", H65 if over_ranks else LOST_ROWS)
        for rank, rows in enumerate(calls):
            if len(rows) != setting.n_microbatches:
                text = f"in step {step}, its stage was called {len(rows)} times, for {setting.n_microbatches}"
                raise trial.wrong(f"{text} micro-batches.", NOT_CUT, rank=rank)


def _judge_links(trial: Trial, setting: Setting) -> None:
    """Refuse messages from one pipeline to another."""
    for event in trial.timeline:
        peer = event.rank if event.peer is None else event.peer
        if event.kind == "SEND" and setting.mesh.place_of(event.rank)[0] != setting.mesh.place_of(peer)[0]:
            text = f"a message went from rank {event.rank} to rank {peer}, from one replica's pipeline to another's."
            raise trial.wrong(text, N05 if abs(event.rank - peer) == 1 else H62)


def _judge_groups(trial: Trial, setting: Setting, rank: int) -> None:
    replica = setting.mesh.place_of(rank)[0]
    for one in trial.results[rank]["collectives"]:
        if one.nbytes <= _SCALAR:
            continue
        if len(one.members) == setting.mesh.n_ranks:
            raise trial.wrong(f"a collective of {one.nbytes} bytes ran over all ranks.", H60_WORLD, rank=rank)
        if one.members == tuple(setting.mesh.row(replica)):
            text = f"a collective of {one.nbytes} bytes ran over its row, ranks {list(one.members)}."
            raise trial.wrong(text, H60, rank=rank)


def _explain(trial: Trial, setting: Setting, rank: int) -> tuple[Mistake, str]:
    """Why a rank's gradients are wrong at the first optimizer step, and what shows it; "" if that is the values."""
    mesh, m = setting.mesh, setting.n_microbatches
    got, (_, stage) = trial.results[rank]["grads"][0], mesh.place_of(rank)
    moments = sorted(sums_of_gradients(trial, setting, rank))
    if not moments:
        return NOT_REDUCED, "it summed no gradients over its column before the optimizer's step"
    if moments[0] < m:
        when = ", ".join(map(str, moments))
        return H63 if moments[-1] < m else H63_EVERY, f"it summed gradients after {when} of {m} backwards"
    factor = ratio_on(trial, setting, rank)
    if factor is not None:
        return _explain_factor(factor, mesh.n_replicas, mesh.n_stages, m), ""
    stages, batch = setting.stages(), setting.batches()[0]
    shares = parts(batch, mesh.n_replicas)
    micro_batches = [one for share in shares for one in parts(share, m)]
    unequal = (mean_of_means(stages, some) for some in (shares, micro_batches))
    return (D45 if any(all_equal(got, one[stage]) for one in unequal) else WRONG_VALUES), ""


def _explain_factor(factor: float, d: int, p: int, m: int) -> Mistake:
    known: list[tuple[float, Mistake]] = [
        (d, D44), (1 / p, H64), (1 / (d * p), H64), (1 / d, DIVIDED_TWICE), (m, G18), (1 / m, G19),
    ]  # fmt: skip
    return next((mistake for wrong, mistake in known if math.isclose(factor, wrong)), SCALE)


def _judge_weights(trial: Trial, setting: Setting) -> None:
    """Refuse weights other than those of one process after any step."""
    right = train(setting.stages(), setting.batches()).weights
    for rank in reversed(range(setting.mesh.n_ranks)):
        stage = setting.mesh.place_of(rank)[1]
        for step, got in enumerate(trial.results[rank]["weights"]):
            if text := first_difference(got, right[step][stage]):
                mistake = G22 if step and _holds_the_last(trial, setting, rank, step) else WRONG_VALUES
                raise trial.wrong(f"after step {step}, {text}.", mistake, rank=rank)


def _holds_the_last(trial: Trial, setting: Setting, rank: int, step: int) -> bool:
    """Whether a step's gradients are the right ones and, by some factor, those of the step before."""
    stages, stage = setting.stages(), setting.mesh.place_of(rank)[1]
    for module, weights in zip(stages, train(stages, setting.batches()[:step]).weights[-1], strict=True):
        module.load_state_dict(weights)
    fresh = gradients(stages, setting.batches()[step])[stage]
    before, got = trial.results[rank]["grads"][step - 1 : step + 1]
    left = {name: got[name] - one for name, one in fresh.items()}
    factor = ratio(left, before)
    return factor is not None and not math.isclose(factor, 0.0, abs_tol=1e-9)
