"""Where a pipeline's stages lie, which way each value goes, and whether all ranks agree on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppkit.errors import PpkitError
from ppkit.handshake import Header, exchange, global_rank
from ppkit.routes import TAGS, Link, Net, RemoteRoute, Route
from ppkit.schedule import Action, Op, Schedule
from ppkit.shared import SharedParameters, Sharing, check_equal, digests
from ppkit.skips import Skip, match_skips, skips_of
from ppkit.stage import PipelineError, Stage

__all__ = ["Layout", "delivered", "lay_out"]

Message = tuple[Op, int, int]  # a send or a receive, its stage and its micro-batch


@dataclass(frozen=True)
class Layout:
    """What one rank needs to know to run its part of a schedule.

    Attributes:
        rank: this one, in the group.
        n_microbatches: of the schedule.
        device: where its stages compute.
        actions: what it does, messages included.
        delivered: for a receive, this rank's sends that must have arrived when it ends.
        stages: this rank's, by index.
        onward: for each stage, the way to the next one; of those that begin or end here.
        skips_from, skips_into: for each of this rank's stages, the ways of the skips that begin and end there.
        header: brings every rank word of the batch at the start of a step.
        shared: the shared parameters of this rank.
    """

    rank: int
    n_microbatches: int
    device: torch.device
    actions: tuple[Action, ...]
    delivered: Mapping[Message, Sequence[Message]]
    stages: Mapping[int, Stage]
    onward: Mapping[int, Route]
    skips_from: Mapping[int, Sequence[Route]]
    skips_into: Mapping[int, Sequence[Route]]
    header: Header
    shared: SharedParameters

    @property
    def routes(self) -> list[Route]:
        """All ways that begin or end here."""
        skips = [route for ways in (*self.skips_from.values(), *self.skips_into.values()) for route in ways]
        return list(dict.fromkeys([*self.onward.values(), *skips]))


def lay_out(
    schedule: Schedule,
    modules: Any,
    loss_fn: Callable[..., Tensor] | None,
    group: Any,
    device: torch.device | str | None,
    checkpoint: bool | Collection[int],
    sharing: Sharing,
) -> Layout:
    """Check everything that `Pipeline` is given, with the other ranks, and prepare its routes; collective."""
    if not isinstance(schedule, Schedule):
        raise PipelineError(f"a Pipeline needs a Schedule, such as ppkit.one_f_one_b(4, 8); got {schedule!r}")
    modules = list(modules) if isinstance(modules, nn.ModuleList) else modules
    rank = _rank_in(group, schedule)
    at = _device_of(modules) if device is None else _device(device)
    net = Net(group, at, _wire(group, at, schedule.n_ranks))
    mine = [stage for stage, owner in enumerate(schedule.stage_to_rank) if owner == rank]
    facts, error, full = None, None, schedule
    own: dict[int, nn.Module] = {}
    try:  # an error must reach the other ranks, who would wait for this one
        if loss_fn is None and not schedule.forward_only:
            raise PipelineError("loss_fn is None, but the schedule trains: give a function of output and target")
        if loss_fn is not None and not callable(loss_fn):
            raise PipelineError(f"loss_fn must be a function of output and target; got {loss_fn!r}")
        _check_sharing(sharing, schedule.n_stages)
        full = schedule.with_comms().validate()
        own = _own_modules(rank, mine, modules)
        uses = {stage: skips_of(module) for stage, module in own.items()}
        facts = full.to_csv(comms=True), dict(sharing), uses, digests(sharing, own)
    except PpkitError as failure:
        error = failure
    skips = _agree(rank, schedule, net, facts, error, sharing)
    marked = _marked(checkpoint, schedule.n_stages)
    ways = _Ways(full, rank, net, skips)
    losses = {} if schedule.forward_only else {schedule.n_stages - 1: loss_fn}
    stages = {
        index: Stage(
            index,
            module,
            losses.get(index),
            checkpoint=index in marked,
            skips_in=[skip.name for skip in skips if skip.target == index],
            skips_out=[skip.name for skip in skips if skip.source == index],
            device=at,
        )
        for index, module in own.items()
    }
    return Layout(
        rank,
        schedule.n_microbatches,
        at,
        full.actions[rank],
        delivered(full, rank),
        stages,
        ways.onward,
        {index: [ways.skips[skip] for skip in skips if skip.source == index] for index in own},
        {index: [ways.skips[skip] for skip in skips if skip.target == index] for index in own},
        _header(schedule, rank, net, TAGS * ways.n_lines),
        SharedParameters(sharing, own, schedule.stage_to_rank, rank, group, TAGS * ways.n_lines + 1, net.wire),
    )


def _rank_in(group: Any, schedule: Schedule) -> int:
    if not dist.is_initialized():
        if schedule.n_ranks == 1:
            return 0
        raise PipelineError(
            f"{schedule.name} needs {schedule.n_ranks} ranks, but there is no process group: use launch"
        )
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    if rank < 0 or size != schedule.n_ranks:
        what = f"a group of {size} ranks" if rank >= 0 else "a group that this rank is not in"
        raise PipelineError(
            f"{schedule.name} needs a group of {schedule.n_ranks} ranks; got {what}",
            rank=dist.get_rank(),
            values={"n_ranks": schedule.n_ranks, "group_size": size},
        )
    return rank


def _device_of(modules: Any) -> torch.device:
    every = modules.values() if isinstance(modules, Mapping) else modules if isinstance(modules, Sequence) else ()
    for module in every:
        for parameter in module.parameters() if isinstance(module, nn.Module) else ():
            return torch.device(parameter.device)
    return torch.device("cpu")


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise PipelineError(f'device={device!r}: such as "cpu" or "cuda"; {error}') from None


def _wire(group: Any, device: torch.device, n_ranks: int) -> torch.device:
    """Where the group's backend takes this pipeline's tensors from: gloo takes them from the CPU."""
    if device.type == "cpu" or n_ranks == 1:
        return torch.device("cpu")
    return device if f"{device.type}:nccl" in str(dist.get_backend_config(group)) else torch.device("cpu")


def _own_modules(rank: int, mine: Sequence[int], modules: Any) -> dict[int, nn.Module]:
    given = dict(modules) if isinstance(modules, Mapping) else modules
    if not isinstance(given, dict):
        if isinstance(given, nn.Module) or not isinstance(given, Sequence) or len(given) != len(mine):
            got = type(given).__name__ if not isinstance(given, Sequence) else f"a list of {len(given)}"
            raise PipelineError(
                f"rank {rank} has the stages {list(mine)}: modules must be a list of {len(mine)}, or a dictionary with "
                f"these keys; got {got}",
                rank=rank,
                values={"stages": list(mine)},
            )
        given = dict(zip(mine, given, strict=True))
    if set(given) != set(mine) or not all(isinstance(module, nn.Module) for module in given.values()):
        got = ", ".join(f"{stage!r}: {type(module).__name__}" for stage, module in given.items())
        raise PipelineError(
            f"rank {rank} has the stages {list(mine)} and needs one module for each; got {{{got}}}",
            rank=rank,
            values={"stages": list(mine), "given": list(given)},
        )
    return {stage: given[stage] for stage in mine}


def _marked(checkpoint: bool | Collection[int], n_stages: int) -> set[int]:
    """The stages that compute their forward again."""
    if isinstance(checkpoint, bool):
        return set(range(n_stages)) if checkpoint else set()
    marked = set(checkpoint) if isinstance(checkpoint, Collection) else None
    if marked is None or not marked <= set(range(n_stages)):
        raise PipelineError(
            f"checkpoint={checkpoint!r}: True, or some of the stages 0 to {n_stages - 1}",
            values={"checkpoint": checkpoint, "n_stages": n_stages},
        )
    return marked


def _check_sharing(sharing: Sharing, n_stages: int) -> None:
    for name, paths in sharing.items():
        for stage in paths:
            if stage not in range(n_stages):
                raise PipelineError(
                    f"shared parameter {name!r}: there is no stage {stage!r}; the stages are 0 to {n_stages - 1}",
                    values={"shared": name, "stage": stage},
                )


def _agree(
    rank: int, schedule: Schedule, net: Net, facts: Any, error: PpkitError | None, sharing: Sharing
) -> tuple[Skip, ...]:
    """Compare what all ranks were given, and raise on all of them if one cannot go on; return the skips."""
    found = [(facts, error)]
    if schedule.n_ranks > 1:
        found = exchange((facts, error), net.group, schedule.n_ranks, net.wire)
    for _, failure in found:
        if failure is not None:
            raise error or failure
    for what, position in (("schedule", 0), ("shared parameters", 1)):
        for other, (theirs, _) in enumerate(found):
            if theirs[position] != facts[position]:
                raise PipelineError(
                    f"ranks {rank} and {other} were given different values of {what}; all ranks need the same",
                    rank=rank,
                    values={"other": other},
                )
    check_equal(sharing, {key: digest for theirs, _ in found for key, digest in theirs[3].items()})
    skips = match_skips({stage: uses for theirs, _ in found for stage, uses in theirs[2].items()})
    return tuple(skip for skip in skips if skip.source != skip.target)


class _Ways:
    """Makes the routes that begin or end on a rank, and numbers their lines alike on all ranks."""

    def __init__(self, schedule: Schedule, rank: int, net: Net, skips: Sequence[Skip]) -> None:
        self._schedule = schedule
        self._rank = rank
        self._net = net
        self._numbers = count(1)  # so that no message has torch's default tag, 0
        sends = (Op.SEND_F,), (Op.SEND_B,)
        pairs = {stage: self._route(stage, stage + 1, *sends) for stage in range(schedule.n_stages - 1)}
        self.onward = {stage: route for stage, route in pairs.items() if route is not None}
        every = {skip: self._route(skip.source, skip.target, (Op.F,), (Op.B, Op.I)) for skip in skips}
        self.skips = {skip: route for skip, route in every.items() if route is not None}
        self.n_lines = next(self._numbers)

    def _route(self, source: int, target: int, sends: tuple[Op, ...], sends_back: tuple[Op, ...]) -> Route | None:
        """The way between two stages, whose messages are sent at, or right after, these operations."""
        numbers = next(self._numbers), next(self._numbers)
        ranks = self._schedule.stage_to_rank[source], self._schedule.stage_to_rank[target]
        if self._rank not in ranks:
            return None
        if ranks[0] == ranks[1]:
            return Route(source, target)
        peer = ranks[1] if self._rank == ranks[0] else ranks[0]
        groups = _own_groups(self._net, ranks)
        onward = Link(peer, numbers[0], self._order(source, sends), groups[0])
        back = Link(peer, numbers[1], self._order(target, sends_back), groups[1])
        return RemoteRoute(source, target, self._net, onward, back)

    def _order(self, stage: int, ops: tuple[Op, ...]) -> list[int]:
        """The micro-batches of a stage, in the order in which its rank does one of `ops` for them."""
        row = self._schedule.actions[self._schedule.stage_to_rank[stage]]
        return [a.microbatch for a in row if a.stage == stage and a.op in ops and a.microbatch is not None]


def _own_groups(net: Net, ranks: tuple[int, int]) -> tuple[Any, Any]:
    """For NCCL, a group for each direction: its messages queue, and one that waits would hold up those behind it."""
    if net.wire.type == "cpu":
        return None, None
    members = [global_rank(net.group, rank) for rank in sorted(ranks)]
    first, second = (dist.new_group(members, use_local_synchronization=True) for _ in range(2))
    return first, second


def delivered(schedule: Schedule, rank: int) -> dict[Message, list[Message]]:
    """For each receive of `rank`, its sends that are known to have arrived then: its peer had received them before."""
    found: dict[Message, list[Message]] = {}
    for peer, row in enumerate(schedule.actions):
        received: list[Message] = []
        for action in row if peer != rank else ():
            if action.op not in _OTHER_END:
                continue
            op, step = _OTHER_END[action.op]
            here = (op, action.stage + step, action.microbatch or 0)
            if schedule.stage_to_rank[here[1]] == rank:
                if action.op.is_recv:
                    received.append(here)
                else:
                    found[here], received = received, []
    return found


# For a message's one end, its other end: its operation, and the stage.
_OTHER_END = {
    **{Op.SEND_F: (Op.RECV_F, 1), Op.RECV_F: (Op.SEND_F, -1)},
    **{Op.SEND_B: (Op.RECV_B, -1), Op.RECV_B: (Op.SEND_B, 1)},
}


def _header(schedule: Schedule, rank: int, net: Net, tag: int) -> Header:
    """Along the stages: a rank hears from the one before its first stage, and tells those it comes before."""
    before = []
    for other in range(schedule.n_ranks):
        first = schedule.stage_to_rank.index(other) if other in schedule.stage_to_rank else 0
        before.append(schedule.stage_to_rank[first - 1] if first else None)
    tell = [other for other, source in enumerate(before) if source == rank]
    return Header(net.group, net.wire, tag, before[rank], tell)
