"""Task 3: the groups of the mesh on real ranks, and copies of a stage that start alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ppkit.checks.drivers import lab06 as ranks
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.lab06.runs import on_mesh
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.mistakes.hybrid import H60, H60_WORLD, H61, NOT_FROM_REPLICA_0, NOT_IN_PLACE
from ppkit.checks.replicas import require_waits
from ppkit.checks.trial import Trial
from ppkit.mesh import Mesh

__all__ = ["check_groups"]

MESHES = (Mesh(2, 3), Mesh(3, 2))  # of the same ranks
START = Mesh(2, 2)


@graded("Task 3, make_groups and same_start", 20)
def check_groups(make_groups: Any, same_start: Any) -> Passed:
    """Check the groups that six ranks make for two meshes, then weights that four ranks of a mesh start with."""
    require_function(make_groups, "make_groups", ("n_replicas", "n_stages"))
    require_function(same_start, "same_start", ("stage", "column"))
    shapes = [(mesh.n_replicas, mesh.n_stages) for mesh in MESHES]
    where = f"`make_groups`, {MESHES[0].n_ranks} ranks"
    trial = on_mesh(ranks.groups, make_groups, shapes, mesh=MESHES[0], where=where)
    _require_agreement(trial)
    for position, mesh in enumerate(MESHES):
        for rank, seen in enumerate(trial.results):
            _judge_pair(trial, mesh, rank, seen["returned"][position])
    return _judge_start(same_start)


def _require_agreement(trial: Trial) -> None:
    """Refuse ranks that do not all ask for the same groups in the same order."""
    asked = trial.results[0].get("asked")
    if asked is None:
        return
    call = trial.results[0]["call"]
    lines = [
        f"  rank {rank} asked for {f'a group of ranks {group}' if group is not None else 'no more groups'}"
        for rank, group in enumerate(asked)
    ]
    fact = f"the ranks differ in group number {call} that is made.\n" + "\n".join(lines)
    raise trial.wrong(fact, H61)


def _judge_pair(trial: Trial, mesh: Mesh, rank: int, pair: Any) -> None:
    if pair is None:
        raise trial.unfinished("`make_groups` returned None.", rank=rank)
    if not isinstance(pair, list):
        raise trial.wrong(f"it returned {pair}; two groups are asked.", RETURNED, rank=rank)
    replica, stage = mesh.place_of(rank)
    where = f"with {mesh.n_replicas} replicas and {mesh.n_stages} stages"
    for name, members, right in zip(("row", "column"), pair, (mesh.row(replica), mesh.column(stage)), strict=True):
        if not isinstance(members, list):
            found = members or "None, which stands for all ranks"
            mistake = H60 if "not in" in found else H60_WORLD if members is None else RETURNED
            raise trial.wrong(f"{where}, its {name} is {found}.", mistake, rank=rank)
        if sorted(members) != right:
            mistake = H60_WORLD if len(members) == mesh.n_ranks else H60
            raise trial.wrong(f"{where}, its {name} holds ranks {members}.", mistake, rank=rank)


def _judge_start(same_start: Any) -> Passed:
    shape = (START.n_replicas, START.n_stages)
    where = f"`same_start`, {shape[0]} replicas × {shape[1]} stages"
    trial = on_mesh(ranks.same_start, same_start, shape, mesh=START, where=where)
    for rank, seen in enumerate(trial.results):
        for one in seen["collectives"]:
            if len(one.members) == START.n_ranks:
                raise trial.wrong("a collective ran over all ranks.", H60_WORLD, rank=rank)
    require_waits(trial)
    weights = [seen["weights"] for seen in trial.results]
    if all(_rank_in(one) == rank for rank, one in enumerate(weights)):
        raise trial.unfinished("every rank has the weights that it had.")
    for rank, one in enumerate(weights):
        source = START.column(START.place_of(rank)[1])[0]
        found = _rank_in(one)
        if found != source:
            whose = f"those of rank {found}" if found is not None else "not those of one rank alone"
            text = f"its weights are {whose}; they should all be those of rank {source}."
            raise trial.wrong(text, NOT_FROM_REPLICA_0, rank=rank)
        if trial.results[rank]["replaced"]:
            raise trial.wrong("its parameters are new ones.", NOT_IN_PLACE, rank=rank)
    return Passed(
        "Every rank helped to make every group, and got its row and its column, on 2 × 3 and on 3 × 2 ranks.",
        "On 2 × 2 ranks both copies of each stage start with the weights of replica 0.",
        timeline=replace(trial.timeline, name=trial.where),
        output=trial.output,
    )


def _rank_in(weights: Sequence[torch.Tensor]) -> int | None:
    """Whose weights these are, as `same_start` of the driver has made them; None: not of one rank alone."""
    for rank in range(START.n_ranks):
        if all(torch.equal(one, ranks.start_of(rank, position, one)) for position, one in enumerate(weights)):
            return rank
    return None
