"""Tasks 1 and 2: the mesh and the rows on paper, and what is predicted of a larger mesh."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from ppkit.builders import gpipe
from ppkit.checks.drivers import lab06 as ranks
from ppkit.checks.estimates import Choice, Estimate, judge_estimates
from ppkit.checks.form import Form, Number
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.mistakes.gpipe import G29
from ppkit.checks.mistakes.hybrid import (
    H60,
    H60_WORLD,
    H61_COUNT,
    H65,
    LOST_ROWS,
    NOT_DIVIDED,
    OTHER_PIPELINE,
    OTHER_RING,
    OTHER_TIMES,
    UNEVEN,
)
from ppkit.checks.trial import Trial, on_ranks
from ppkit.mesh import Mesh
from ppkit.observe.messages import COLLECTIVES
from ppkit.simulate import simulate

__all__ = ["ask_predictions", "check_mesh", "check_predictions"]

MESHES = (Mesh(2, 4), Mesh(3, 2), Mesh(2, 2), Mesh(1, 3), Mesh(4, 1))
SIZES = (24, 11, 13)  # rows of a batch: the first divides by every mesh, the others show who gets what is left over
BIG, N_MICROBATCHES, STAGE_MEGABYTES = Mesh(4, 3), 24, 4.0

Groups = list[list[int]]

# Task 1: on paper


@graded("Task 1, mesh_groups and my_rows", 10)
def check_mesh(mesh_groups: Any, my_rows: Any) -> Passed:
    """Check the rows and columns of several meshes, and which rows of a batch each rank takes."""
    require_function(mesh_groups, "mesh_groups", ("n_replicas", "n_stages"))
    require_function(my_rows, "my_rows", ("batch", "rank", "n_replicas", "n_stages"))
    shapes = [(mesh.n_replicas, mesh.n_stages) for mesh in MESHES]
    trial = on_ranks(
        *(ranks.paper, mesh_groups, my_rows, shapes, SIZES), n_ranks=1, where="your functions", expected=Expected(())
    )
    seen = trial.results[0]
    if all(one is None for one in (*seen["groups"], *chain(*seen["rows"]))):
        raise trial.unfinished("both returned None.")
    for mesh, groups in zip(MESHES, seen["groups"], strict=True):
        _judge_groups(trial, mesh, groups)
    cases = [(mesh, size) for mesh in MESHES for size in SIZES]
    for (mesh, size), rows in zip(cases, seen["rows"], strict=True):
        _judge_rows(trial, mesh, size, rows)
    return Passed(
        "On every mesh that was tried each rank is in its row and its column, and all stages of a replica take the "
        "same rows of the batch."
    )


def _judge_groups(trial: Trial, mesh: Mesh, groups: Any) -> None:
    call = f"for {_words(mesh)}, `mesh_groups` returned"
    if not isinstance(groups, tuple) or not all(isinstance(one, list) for one in groups):
        found = groups if not isinstance(groups, tuple) else " and ".join(map(str, groups))
        raise trial.wrong(f"{call} {found or 'nothing'}; two lists of lists are asked.", RETURNED)
    right = (
        [mesh.row(replica) for replica in range(mesh.n_replicas)],
        [mesh.column(stage) for stage in range(mesh.n_stages)],
    )
    for name, got, wanted in zip(("rows", "columns"), groups, right, strict=True):
        if [sorted(one) for one in got] != wanted:
            raise trial.wrong(f"{call} {got} for the {name}.", _misplaced(groups, mesh))


def _misplaced(groups: Sequence[Groups], mesh: Mesh) -> Mistake:
    """Why groups are not those of the mesh."""
    everybody = list(range(mesh.n_ranks))
    if mesh.n_replicas > 1 < mesh.n_stages and any(sorted(one) == everybody for one in chain(*groups)):
        return H60_WORLD
    return H60 if all(sorted(chain(*one)) == everybody for one in groups) else RETURNED


def _judge_rows(trial: Trial, mesh: Mesh, size: int, rows: Sequence[Any]) -> None:
    where = f"for {_words(mesh)}, of a batch of {size} rows,"
    for rank, one in enumerate(rows):
        if not isinstance(one, list):
            text = f"{where} `my_rows` returned {one or 'nothing'} for rank {rank}; rows of the batch are asked."
            raise trial.wrong(text, RETURNED)
    for replica in range(mesh.n_replicas):
        first, *others = mesh.row(replica)
        for other in others:
            if rows[other] != rows[first]:
                text = f"{where} rank {first} takes rows {rows[first]} and rank {other} takes rows {rows[other]}."
                raise trial.wrong(text, H65)
    shares = [rows[mesh.rank_of(replica, 0)] for replica in range(mesh.n_replicas)]
    taken, text = sorted(chain(*shares)), f"{where} the replicas take rows {' and '.join(map(str, shares))}."
    if mesh.n_replicas > 1 and all(sorted(share) == list(range(size)) for share in shares):
        raise trial.wrong(text, NOT_DIVIDED)
    if taken != list(range(size)):
        raise trial.wrong(text, LOST_ROWS)
    if max(map(len, shares)) - min(map(len, shares)) > 1:
        raise trial.wrong(text, UNEVEN)


def _words(mesh: Mesh) -> str:
    return (
        f"{mesh.n_replicas} replica{'s' * (mesh.n_replicas > 1)} and {mesh.n_stages} stage{'s' * (mesh.n_stages > 1)}"
    )


# Task 2: predict

ask_predictions = Form(
    Number("groups_made", "Groups that each rank helps to make"),
    Number("megabytes_sent", "Gradients that a rank sends in a step, in MB"),
    Number("idle_fraction", "Idle part of all ranks' time, from 0 to 1"),
)


@graded("Task 2, three predictions", 15)
def check_predictions(groups_made: Any, megabytes_sent: Any, idle_fraction: Any) -> Passed:
    """Check three predictions for four replicas of three stages against the mesh, a ring, and a simulation."""
    d, p, m = BIG.n_replicas, BIG.n_stages, N_MICROBATCHES
    bubble = simulate(gpipe(p, m // d))
    right, others = _ring(d), (_ring(p), _ring(d * p))
    more = {right * times: OTHER_TIMES for times in (p, m // d, m, 2)}
    idle = {
        simulate(gpipe(stages, n)).bubble_fraction: OTHER_PIPELINE
        for stages, n in ((p, m), (d * p, m), (d * p, m // d))
    }
    estimates: list[Estimate | Choice] = [
        Estimate(
            "groups_made",
            groups_made,
            float(d + p),
            " groups",
            known=dict.fromkeys(map(float, (1, 2, d, p, d + p + 1, d * p)), H61_COUNT),
        ),
        Estimate(
            *("megabytes_sent", megabytes_sent, right, " MB"),
            known={**more, **dict.fromkeys(others, OTHER_RING), STAGE_MEGABYTES: OTHER_RING},
        ),
        Estimate("idle_fraction", idle_fraction, bubble.bubble_fraction, known={**idle, bubble.bubble_ratio: G29}),
    ]
    return judge_estimates(estimates, 15)


def _ring(n_ranks: int) -> float:
    return COLLECTIVES["all_reduce"].bytes_factor(n_ranks) * STAGE_MEGABYTES
