"""Parameters that several stages hold, such as an embedding that is the head's weight too: one gradient for all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppkit.stage import PipelineError

__all__ = ["SharedParameters", "Sharing", "check_equal", "digests", "shared_parameters"]

Sharing = Mapping[str, Mapping[int, str]]
"""For each shared parameter, by any name: its name in each of the stages that hold it."""


def shared_parameters(stages: Sequence[nn.Module]) -> dict[str, dict[int, str]]:
    """Find the parameters that several stages hold, while all stages are still in one process.

    Args:
        stages: all stages of a model in order, such as `ppkit.models.split` makes.

    Returns:
        what `Pipeline` takes as ``shared``.
    """
    found: dict[int, dict[int, str]] = {}
    for number, stage in enumerate(stages):
        for name, parameter in stage.named_parameters():
            found.setdefault(id(parameter), {})[number] = name
    return {next(iter(names.values())): names for names in found.values() if len(names) > 1}


def _parameter(name: str, stage: int, path: str, modules: Mapping[int, nn.Module]) -> nn.Parameter:
    try:
        return modules[stage].get_parameter(path)
    except AttributeError:
        there = ", ".join(own for own, _ in modules[stage].named_parameters()) or "none"
        raise PipelineError(
            f"shared parameter {name!r}: stage {stage} has no parameter {path!r}; it has: {there}",
            stage=stage,
            values={"shared": name, "parameter": path},
        ) from None


def digests(sharing: Sharing, modules: Mapping[int, nn.Module]) -> dict[tuple[str, int], str]:
    """The values, in short, of the shared parameters of some stages, by name and stage."""
    return {
        (name, stage): _digest(_parameter(name, stage, path, modules))
        for name, paths in sharing.items()
        for stage, path in paths.items()
        if stage in modules
    }


def _digest(parameter: Tensor) -> str:
    values = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{parameter.dtype} {list(parameter.shape)} {hashlib.blake2b(values.numpy().tobytes()).hexdigest()}"


def check_equal(sharing: Sharing, found: Mapping[tuple[str, int], str]) -> None:
    """Raise PipelineError unless every shared parameter has the same values in all its stages.

    Args:
        sharing: the stages of each.
        found: the digests of all stages.
    """
    for name, paths in sharing.items():
        first, *others = sorted(paths)
        for stage in others:
            if found[name, stage] != found[name, first]:
                values = {number: found[name, number].rsplit(" ", 1)[0] for number in (first, stage)}
                what = " and ".join(dict.fromkeys(values.values()))
                raise PipelineError(
                    f"shared parameter {name!r} ({what}): its values in stage {stage} ({paths[stage]}) are not those "
                    f"in stage {first} ({paths[first]}). Give both the same initial values: one gradient moves both",
                    stage=stage,
                    values={"shared": name, "stages": (first, stage)},
                )


class SharedParameters:
    """The shared parameters that a rank holds.

    Args:
        sharing: of all stages.
        modules: this rank's stages.
        stage_to_rank: for each stage its rank in the group.
        rank: this one, in the group.
        group: the pipeline's process group; None for the default one. Its messages do, since a group of its own would
            have to be made by all ranks of a run, of which some may not be in this pipeline.
        tag: the first of the messages' tags.
        wire: where the group's backend takes tensors from.
    """

    def __init__(
        self,
        sharing: Sharing,
        modules: Mapping[int, nn.Module],
        stage_to_rank: Sequence[int],
        rank: int,
        group: Any,
        tag: int,
        wire: torch.device,
    ) -> None:
        self._wire = wire
        self._group = group
        self._rank = rank
        self._sets: list[tuple[list[nn.Parameter], list[int], int]] = []
        for number, name in enumerate(sorted(sharing)):
            here = {stage: path for stage, path in sharing[name].items() if stage in modules}
            ranks = sorted({stage_to_rank[stage] for stage in sharing[name]})
            if not here:
                continue
            own = {id(p): p for p in (_parameter(name, s, path, modules) for s, path in here.items())}
            self._sets.append((list(own.values()), ranks, tag + number))
        self._before: dict[int, Tensor | None] = {}

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for parameters, _, _ in self._sets for parameter in parameters)

    def begin(self) -> None:
        """Put the gradients of earlier steps aside, which are sums over the stages already."""
        for parameter in self._parameters():
            self._before[id(parameter)] = parameter.grad
            parameter.grad = None

    def add_up(self) -> None:
        """Give each parameter the sum of this step's gradients over all its stages."""
        for parameters, ranks, tag in self._sets:
            own = torch.zeros_like(parameters[0], device=self._wire)
            for parameter in parameters:
                if parameter.grad is not None:
                    own += parameter.grad.to(self._wire)
            parts = {rank: own if rank == self._rank else torch.empty_like(own) for rank in ranks}
            others = [rank for rank in ranks if rank != self._rank]
            works: list[Any] = [dist.isend(own, group=self._group, group_dst=rank, tag=tag) for rank in others]
            works += [dist.irecv(parts[rank], group=self._group, group_src=rank, tag=tag) for rank in others]
            for work in works:
                work.wait()
            total = torch.stack([parts[rank] for rank in ranks]).sum(0)  # in one order, so that all get the same
            for parameter in parameters:
                before = self._before.pop(id(parameter))
                summed = total.to(parameter.device, copy=True)
                parameter.grad = summed if before is None else before.add_(summed)
