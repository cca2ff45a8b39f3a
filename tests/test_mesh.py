"""Every rank of the mesh knows its place, its pipeline and its replicas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ppkit import RankError, launch, one_f_one_b, simulate
from ppkit.mesh import Mesh, MeshError, by_replica, mesh_roles

SHAPES = [(1, 1), (1, 2), (2, 1), (2, 3), (4, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_rank_has_one_place(shape):
    mesh = Mesh(*shape)
    places = [mesh.place_of(rank) for rank in range(mesh.n_ranks)]
    assert places == [(replica, stage) for replica in range(shape[0]) for stage in range(shape[1])]
    assert [mesh.rank_of(*place) for place in places] == list(range(mesh.n_ranks))
    assert sorted(rank for replica in range(shape[0]) for rank in mesh.row(replica)) == list(range(mesh.n_ranks))
    assert sorted(rank for stage in range(shape[1]) for rank in mesh.column(stage)) == list(range(mesh.n_ranks))


def test_the_picture():
    assert str(Mesh(2, 3)).splitlines() == [
        "            stage 0   stage 1   stage 2",
        "replica 0   rank 0    rank 1    rank 2",
        "replica 1   rank 3    rank 4    rank 5",
    ]


def groups_of_this_rank(n_replicas, n_stages):
    mesh = Mesh(n_replicas, n_stages).on_ranks()
    totals = {}
    for name in ("pp", "dp"):
        total = torch.tensor([10.0 ** dist.get_rank()], dtype=torch.float64)
        dist.all_reduce(total, group=mesh.group(name))
        totals[name] = total.item()
    return (mesh.replica, mesh.stage), totals


@pytest.mark.ranks
@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (2, 1)])
def test_groups_on_real_ranks(shape):
    mesh = Mesh(*shape)
    run = launch(groups_of_this_rank, *shape, n_ranks=mesh.n_ranks)
    for rank, (place, totals) in enumerate(run.results):
        assert place == mesh.place_of(rank)
        assert totals["pp"] == sum(10.0**member for member in mesh.row(place[0]))
        assert totals["dp"] == sum(10.0**member for member in mesh.column(place[1]))


@pytest.mark.ranks
def test_a_mesh_that_the_ranks_do_not_fill():
    with pytest.raises(RankError, match="2 replicas × 3 stages need 6 ranks, but there are 2"):
        launch(groups_of_this_rank, 2, 3, n_ranks=2)


def test_what_a_mesh_refuses():
    with pytest.raises(MeshError, match="n_stages is 0; it must be a whole number of at least 1"):
        Mesh(2, 0)
    with pytest.raises(MeshError, match="n_replicas is True"):
        Mesh(True, 1)
    with pytest.raises(MeshError, match="no replica 2, stage 0: replicas go from 0 to 1, stages from 0 to 2"):
        Mesh(2, 3).rank_of(2, 0)
    with pytest.raises(MeshError, match="ranks 0 to 5"):
        Mesh(2, 3).place_of(6)
    with pytest.raises(MeshError, match=r"every rank must call \.on_ranks\(\) first"):
        Mesh(2, 3).group("dp")
    with pytest.raises(MeshError, match="no group 'tp'"):
        Mesh(2, 3).group("tp")
    with pytest.raises(MeshError, match="this process is no rank"):
        Mesh(2, 3).on_ranks()
    with pytest.raises(MeshError, match=r"4 ranks cannot be divided among 2\.0 replicas"):
        by_replica(simulate(one_f_one_b(4, 2)), 2.0)


def test_numbers_of_numpy():
    assert Mesh(np.int64(2), np.int64(3)) == Mesh(2, 3)
    assert type(Mesh(np.int64(2), 3).n_replicas) is int
    assert by_replica(simulate(one_f_one_b(4, 2)), np.int64(2)).notes["rank 3"] == "replica 1 · stage 1"


def test_a_timeline_says_replica_and_stage_of_each_rank():
    noted = by_replica(simulate(one_f_one_b(4, 2)), 2)
    assert noted.notes["rank 3"] == "replica 1 · stage 1"
    assert "rank 3, replica 1 · stage 1 |" in noted.to_text()
    assert mesh_roles(1, 2, {0: "stages 0, 2"})["rank 0"] == "replica 0 · stages 0, 2"
    with pytest.raises(MeshError, match="4 ranks cannot be divided among 3 replicas"):
        by_replica(simulate(one_f_one_b(4, 2)), 3)
