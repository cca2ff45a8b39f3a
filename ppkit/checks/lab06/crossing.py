"""Task 5: a tied weight's two gradients, and clipping by the norm of the whole model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppkit.checks.drivers import lab06 as ranks
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.lab06.runs import on_mesh
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.hybrid import (
    COPY_UNSCALED,
    EACH_BY_ITSELF,
    H60_NORM,
    H66,
    H66_LATE,
    H66_MEAN,
    H67,
    NORM_AFTERWARDS,
    NORMS_ADDED,
    PARAMETERS_ADDED,
    SCALED_UP,
    SQUARES_AVERAGED,
    TIED_NEVER,
    TIED_TWICE,
)
from ppkit.checks.replicas import require_waits
from ppkit.checks.trial import Trial
from ppkit.checks.values import difference, equal
from ppkit.mesh import Mesh

__all__ = ["check_sum_and_clip"]

MESH = Mesh(2, 3)
PARAMETERS = ("weights", "tied", "row", "ends", "max_norm")
# Shapes of each stage's weights; the first of all and the last of all are one parameter.
SHAPES = (((6, 4), (4, 4)), ((4, 4), (4,)), ((4, 4), (6, 4)))
LIMITS = (10.0, 0.25)  # as multiples of the right norm: nothing to clip, then much

Grads = list[list[Tensor]]  # of each stage's weights


@graded("Task 5, sum_and_clip", 15)
def check_sum_and_clip(sum_and_clip: Any) -> Passed:
    """Check the sum of a tied weight's gradients and the clipping on two replicas of three stages."""
    require_function(sum_and_clip, "sum_and_clip", PARAMETERS)
    grads = _grads()
    complete = _complete(grads)
    norm = _norm(complete)
    limits = [norm * part for part in LIMITS]
    trial = on_mesh(
        *(ranks.tied, sum_and_clip, grads, (MESH.n_replicas, MESH.n_stages), limits),
        mesh=MESH,
        where=f"{MESH.n_replicas} replicas × {MESH.n_stages} stages",
    )
    if all(one[0] is None for result in trial.results for one in result["seen"]):
        untouched = all(_same(result["seen"][0][1], grads[_stage(rank)]) for rank, result in enumerate(trial.results))
        if untouched and not any(result["collectives"] for result in trial.results):
            raise trial.unfinished("it returned None, and no gradient has changed.")
    require_waits(trial)
    for rank in range(MESH.n_ranks):
        _judge_tied(trial, rank, grads, complete)
    for call, limit in enumerate(limits):
        for rank in range(MESH.n_ranks):
            _judge_norm(trial, rank, call, limit, grads)
        for rank in range(MESH.n_ranks):
            _judge_clipped(trial, rank, call, limit, complete)
    return Passed(
        "Both copies of the tied weight have the sum of their gradients, in both replicas.",
        "The norm is that of one process; above the limit all gradients are scaled by it, below it none.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _grads() -> Grads:
    numbers = torch.Generator().manual_seed(6)
    return [[torch.randn(*shape, dtype=torch.float64, generator=numbers) for shape in stage] for stage in SHAPES]


def _complete(grads: Grads) -> Grads:
    """The gradients with both parts of the tied weight's in either copy."""
    found = [list(stage) for stage in grads]
    found[0][0] = found[-1][-1] = grads[0][0] + grads[-1][-1]
    return found


def _norm(complete: Grads) -> float:
    """The norm as torch takes it in one process: of every parameter once."""
    weights = [nn.Parameter(torch.zeros_like(grad)) for stage in complete for grad in stage]
    for weight, grad in zip(weights, (grad for stage in complete for grad in stage), strict=True):
        weight.grad = grad.clone()
    return nn.utils.clip_grad_norm_(weights[:-1], 1.0).item()


def _stage(rank: int) -> int:
    return MESH.place_of(rank)[1]


def _same(got: Sequence[Any], wanted: Sequence[Tensor], factor: float = 1.0) -> bool:
    return all(equal(one, grad * factor) for one, grad in zip(got, wanted, strict=True))


def _judge_tied(trial: Trial, rank: int, grads: Grads, complete: Grads) -> None:
    """Refuse gradients of the tied weight that are not the sum, where nothing is to be clipped."""
    stage = _stage(rank)
    position = {0: 0, MESH.n_stages - 1: -1}.get(stage)
    if position is None:
        return
    got = trial.results[rank]["seen"][0][1][position]
    own, right = grads[stage][position], complete[stage][position]
    if equal(got, own):
        text = "where nothing is to be clipped, the tied weight's gradient is the one that its stage had."
        raise trial.wrong(text, H66, rank=rank)
    if equal(got, right / 2):
        raise trial.wrong("the tied weight's gradient is half of the sum of both parts.", H66_MEAN, rank=rank)


def _judge_norm(trial: Trial, rank: int, call: int, limit: float, grads: Grads) -> None:
    """Refuse a norm that is not the one of the whole model."""
    complete = _complete(grads)
    right, norm = _norm(complete), trial.results[rank]["seen"][call][0]
    if not isinstance(norm, float):
        raise trial.wrong(f"it returned {norm or 'nothing'}; it must return the norm.", RETURNED, rank=rank)
    if math.isclose(norm, right, rel_tol=1e-5):
        return
    text = f"it returned a norm of {norm:.6g}; that of the whole model is {right:.6g}."
    clipped = limit < right and math.isclose(norm, limit, rel_tol=1e-5)
    mistake = NORM_AFTERWARDS if clipped else _wrong_norm(norm, right, rank, complete, grads)
    raise trial.wrong(text, mistake, rank=rank)


def _wrong_norm(norm: float, right: float, rank: int, complete: Grads, grads: Grads) -> Mistake:
    stage = _stage(rank)
    each = [_length(one) for one in complete]
    twice = math.hypot(*each)
    parts = [_length(one) for one in grads]
    # The last stage may leave its copy out of what it contributes, or both may take part.
    apiece = [float(grad.norm()) for stage_grads in complete for grad in stage_grads]
    without_copy = [*each[:-1], _length(complete[-1][:-1])]
    known = [
        ([each[stage], parts[stage], without_copy[stage]], H67),
        ([twice], TIED_TWICE),
        ([sum(each), sum(without_copy)], NORMS_ADDED),
        ([sum(apiece), sum(apiece[:-1])], PARAMETERS_ADDED),
        ([math.hypot(*apiece[1:-1])], TIED_NEVER),
        ([right / math.sqrt(MESH.n_stages), twice / math.sqrt(MESH.n_stages)], SQUARES_AVERAGED),
        ([right * math.sqrt(MESH.n_replicas), twice * math.sqrt(MESH.n_replicas)], H60_NORM),
        ([math.hypot(*parts), math.hypot(*parts[:-1], _length(grads[-1][:-1]))], H66_LATE),
    ]
    for wrong, mistake in known:
        if any(math.isclose(norm, one, rel_tol=1e-5) for one in wrong):
            return mistake
    return WRONG_VALUES


def _length(grads: Sequence[Tensor]) -> float:
    return math.hypot(*(float(grad.norm()) for grad in grads))


def _judge_clipped(trial: Trial, rank: int, call: int, limit: float, complete: Grads) -> None:
    """Refuse gradients that are scaled by another factor than the one by which the model's norm is at its limit."""
    right, got = complete[_stage(rank)], trial.results[rank]["seen"][call][1]
    norm = _norm(complete)
    factors = [min(1.0, limit / norm), min(1.0, limit / (norm + 1e-6))]  # torch adds a small number
    if any(_same(got, right, factor) for factor in factors):
        return
    where = f"with a limit of {limit:.4g} and a norm of {norm:.4g}"
    if _same(got, right, limit / norm) or _same(got, right, limit / (norm + 1e-6)):
        raise trial.wrong(f"{where}, its gradients were multiplied by {limit / norm:.4g}.", SCALED_UP, rank=rank)
    own = limit / _length(right)
    if own < 1 and any(_same(got, right, limit / (_length(right) + small)) for small in (0.0, 1e-6)):
        raise trial.wrong(f"{where}, its gradients were multiplied by {own:.4g}.", H67, rank=rank)
    texts = (difference(one, grad * factors[0]) for one, grad in zip(got, right, strict=True))
    number, text = next((n, text) for n, text in enumerate(texts) if text)
    mistake = WRONG_VALUES
    if all(equal(one, grad * min(1.0, limit / float(grad.norm()))) for one, grad in zip(got, right, strict=True)):
        mistake = EACH_BY_ITSELF
    elif all(equal(one, grad) for one, grad in _tied_of(rank, got, right)):
        mistake = COPY_UNSCALED
    raise trial.wrong(f"{where}, the gradient of weight {number} {text}.", mistake, rank=rank)


def _tied_of(rank: int, got: Sequence[Any], right: Sequence[Tensor]) -> list[tuple[Any, Tensor]]:
    """The tied weight's gradients on the last stage, where a copy is left out of the norm; on another, what differs."""
    return [(got[-1], right[-1])] if _stage(rank) == MESH.n_stages - 1 else [(None, right[0])]
