"""The 2-D mesh of data and pipeline parallelism: which rank is which stage of which replica, and their groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ppkit.errors import PpkitError
from ppkit.timeline import Timeline
from ppkit.values import whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["DP", "PP", "Mesh", "MeshError", "by_replica", "mesh_roles"]

DP, PP = "dp", "pp"  # names of the two dimensions, as in PyTorch's own recipes


class MeshError(PpkitError, ValueError):
    """A mesh was asked for that the ranks cannot form, or for a place that it does not have."""


@dataclass(frozen=True)
class Mesh:
    """Rows of ranks that are pipelines; each column holds the same stage once in each replica.

    ::

                     stage 0  stage 1  stage 2
        replica 0    rank 0   rank 1   rank 2      row: group "pp", activations and their gradients
        replica 1    rank 3   rank 4   rank 5      column: group "dp", gradients of the same weights

    Neighbours in a pipeline have neighbouring ranks. As a plain value it needs no processes; ``on_ranks()`` makes
    the groups. Layout as in Megatron-LM (arXiv 2104.04473) without tensor parallelism.

    Args:
        n_replicas: rows, the data-parallel size dp.
        n_stages: columns, the pipeline-parallel size pp: ranks of one pipeline.
        device_mesh: PyTorch's mesh of the same shape, once the ranks have made it.

    Raises:
        MeshError: a size below 1.
    """

    n_replicas: int
    n_stages: int
    device_mesh: DeviceMesh | None = None

    def __post_init__(self) -> None:
        for name in ("n_replicas", "n_stages"):
            size = whole(given := getattr(self, name))
            if size is None or size < 1:
                raise MeshError(f"{name} is {given!r}; it must be a whole number of at least 1", values={name: given})
            object.__setattr__(self, name, size)

    @property
    def n_ranks(self) -> int:
        """Ranks in all."""
        return self.n_replicas * self.n_stages

    def rank_of(self, replica: int, stage: int) -> int:
        """The global rank at a place.

        Raises:
            MeshError: there is no such place.
        """
        if not (0 <= replica < self.n_replicas and 0 <= stage < self.n_stages):
            raise MeshError(
                f"no replica {replica}, stage {stage}: replicas go from 0 to {self.n_replicas - 1}, "
                f"stages from 0 to {self.n_stages - 1}",
                stage=stage,
                values={"replica": replica},
            )
        return replica * self.n_stages + stage

    def place_of(self, rank: int) -> tuple[int, int]:
        """The (replica, stage) of a global rank.

        Raises:
            MeshError: there is no such rank.
        """
        if not 0 <= rank < self.n_ranks:
            raise MeshError(f"no rank {rank}: the mesh has ranks 0 to {self.n_ranks - 1}", rank=rank)
        return divmod(rank, self.n_stages)

    def row(self, replica: int) -> list[int]:
        """The ranks of one replica, in the order of its stages: a pipeline."""
        return [self.rank_of(replica, stage) for stage in range(self.n_stages)]

    def column(self, stage: int) -> list[int]:
        """The ranks that hold the same stage: they average their gradients."""
        return [self.rank_of(replica, stage) for replica in range(self.n_replicas)]

    def __str__(self) -> str:
        rows = [["", *(f"stage {stage}" for stage in range(self.n_stages))]]
        rows += [[f"replica {r}", *(f"rank {rank}" for rank in self.row(r))] for r in range(self.n_replicas)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    # On ranks

    def on_ranks(self) -> Mesh:
        """The same mesh with its groups; every rank must call it.

        Raises:
            MeshError: the number of ranks is another one, or there are no ranks yet.
        """
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        if not dist.is_initialized():
            raise MeshError(f"{self!r}.on_ranks(): this process is no rank; call it in a function that launch() starts")
        world = dist.get_world_size()
        if world != self.n_ranks:
            raise MeshError(
                f"{self.n_replicas} replicas × {self.n_stages} stages need {self.n_ranks} ranks, but there are "
                f"{world}; start n_ranks={self.n_ranks}, or choose sizes whose product is {world}",
                values={"n_replicas": self.n_replicas, "n_stages": self.n_stages, "n_ranks": world},
            )
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        shape = (self.n_replicas, self.n_stages)
        return replace(self, device_mesh=init_device_mesh(device, shape, mesh_dim_names=(DP, PP)))

    @property
    def replica(self) -> int:
        """This rank's row."""
        return self._made.get_local_rank(DP)

    @property
    def stage(self) -> int:
        """This rank's column: its rank in its pipeline."""
        return self._made.get_local_rank(PP)

    def group(self, name: str) -> Any:
        """This rank's group by name: ``"pp"``, its pipeline, or ``"dp"``, the ranks with the same stage.

        Raises:
            MeshError: another name.
        """
        if name not in (DP, PP):
            raise MeshError(
                f'no group {name!r}; a mesh has "{DP}", the same stage in each replica, and "{PP}", a pipeline'
            )
        return self._made.get_group(name)

    @property
    def _made(self) -> DeviceMesh:
        if self.device_mesh is None:
            raise MeshError(f"{self!r} has no groups yet; every rank must call .on_ranks() first")
        return self.device_mesh


def mesh_roles(n_replicas: int, n_stages: int, stages: Mapping[int, str] | None = None) -> dict[str, str]:
    """What each rank is, as a timeline notes it: ``{"rank 5": "replica 1 · stage 1", …}``.

    Args:
        n_replicas: rows of the mesh.
        n_stages: ranks of one pipeline.
        stages: for each rank of a pipeline what it holds, where that is not the stage of its own number, such as
            ``{0: "stages 0, 4"}``.
    """
    mesh, held = Mesh(n_replicas, n_stages), dict(stages or {})
    places = ((rank, *mesh.place_of(rank)) for rank in range(mesh.n_ranks))
    return {
        f"rank {rank}": f"replica {replica} · {held.get(column, f'stage {column}')}" for rank, replica, column in places
    }


def by_replica(timeline: Timeline, n_replicas: int) -> Timeline:
    """The timeline of a run on a mesh, each rank with its replica and stage beside its number.

    Args:
        timeline: of ranks in the order of `Mesh`: the first ones are replica 0.
        n_replicas: rows of the mesh.

    Raises:
        MeshError: the ranks cannot be divided among so many replicas.
    """
    rows = whole(n_replicas)
    if rows is None or rows < 1 or timeline.n_ranks % rows:
        raise MeshError(
            f"{timeline.n_ranks} ranks cannot be divided among {n_replicas} replicas",
            values={"n_ranks": timeline.n_ranks, "n_replicas": n_replicas},
        )
    roles = mesh_roles(rows, timeline.n_ranks // rows)
    return replace(timeline, notes={**timeline.notes, **roles})
