"""Schedules of `torch.distributed.pipelining` as ours, ours as torch's, and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ppkit.action import Action
from ppkit.csv_text import parse
from ppkit.errors import PpkitError
from ppkit.schedule import Schedule
from ppkit.torch_names import torch_names
from ppkit.values import listed, whole

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = [
    "BridgeError",
    "Difference",
    "Differences",
    "as_torch",
    "differences",
    "from_torch",
    "schedule_class",
    "to_torch",
    "torch_schedule",
]


class BridgeError(PpkitError, ValueError):
    """Something that `torch.distributed.pipelining` cannot run, or has in another form in this release."""


def to_torch(schedule: Schedule) -> dict[int, list[Any]]:
    """The schedule as torch holds one, its `pipeline_order`.

    Args:
        schedule: compute-only, or with messages.

    Returns:
        for each rank its `_Action`s, one a tick, None where it idles.
    """
    _check("to_torch", Schedule, schedule)
    parse_action = torch_names().Action.from_str
    return {
        rank: [cell and parse_action(_torch_text(cell)) for cell in row] for rank, row in enumerate(schedule.ticks())
    }


def from_torch(source: Any, name: str | None = None) -> Schedule:
    """The schedule that torch holds.

    What concerns sharded weights (UNSHARD, RESHARD) is left out, and what torch overlaps (DualPipeV) stands one after
    the other. `Schedule1F1B` holds a table that it does not run, with wrong micro-batches on its last rank:
    `validate()` says so.

    Args:
        source: a `pipeline_order`, or an object of one of torch's schedule classes.
        name: what to call it; left out: the name of the class, else "torch".

    Raises:
        BridgeError: it has no such order, or something else than torch's actions in it.
        ScheduleError: an action that ppkit does not know.
    """
    order = source if isinstance(source, Mapping) else getattr(source, "pipeline_order", None)
    if not isinstance(order, Mapping) or not order:
        raise BridgeError(
            f"from_torch takes a pipeline_order, actions by rank, or an object of a torch schedule; got {source!r}",
            values={"source": source},
        )
    if set(order) != set(range(len(order))):
        raise BridgeError(f"from_torch: the actions are of ranks {[*order]}; they must be 0 to {len(order) - 1}")
    rows = [_our_texts(rank, order[rank]) for rank in range(len(order))]
    text = "\n".join(",".join(filter(None, row)) or "," for row in rows)
    return parse(text, name or ("torch" if source is order else type(source).__name__))


def torch_schedule(kind: str | type, n_ranks: int, n_microbatches: int, n_chunks: int | None = None) -> Schedule:
    """What one of torch's schedule classes has for every rank, without its ranks and modules.

    Args:
        kind: the class, or its name, such as "Interleaved1F1B" or "ZBVZeroBubble".
        n_ranks: the number of processes.
        n_microbatches: parts of a batch.
        n_chunks: stages of a rank; left out: two where the class takes several, else one.

    Raises:
        BridgeError: no such class, a count below 1, or torch refuses the numbers; its reason is quoted.
    """
    cls = schedule_class(kind)
    single = issubclass(cls, torch_names().Single)
    n_ranks, n_microbatches = _count("n_ranks", n_ranks), _count("n_microbatches", n_microbatches)
    n_chunks = (1 if single else 2) if n_chunks is None else _count("n_chunks", n_chunks)
    fakes = [
        SimpleNamespace(
            num_stages=n_ranks * n_chunks, group_size=n_ranks, group_rank=0, stage_index=chunk * n_ranks,
            is_first=chunk == 0, is_last=False, submod=nn.Identity(), stage_index_to_group_rank={},
        )
        for chunk in range(n_chunks)
    ]  # fmt: skip
    try:
        made = cls(fakes[0] if single else fakes, n_microbatches)
    except (AssertionError, ValueError) as error:
        counts = f"{n_ranks} ranks, {n_microbatches} micro-batches, {n_chunks} stages a rank"
        raise BridgeError(f"torch's {cls.__name__} refuses {counts}: {error}") from None
    return from_torch(made)


class Difference(NamedTuple):
    """Where two schedules part: at `position` of `rank`, one does `ours`, the other `theirs`."""

    rank: int
    position: int
    ours: tuple[Action, ...]
    theirs: tuple[Action, ...]


@dataclass(frozen=True, repr=False)
class Differences:
    """How a schedule differs from another, action by action; true if it does."""

    ours: Schedule
    theirs: Schedule
    rows: tuple[Difference, ...]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.rows)

    def __str__(self) -> str:
        names = f"{self.ours.name} and {self.theirs.name}"
        if not self.rows:
            return f"{names}: the same {sum(map(len, self.ours.actions))} actions in the same order on every rank"
        lines = [f"{names} differ in {len(self.rows)} place{'s' * (len(self.rows) > 1)}:"]
        for row in self.rows:
            ours, theirs = (" ".join(map(str, actions)) or "nothing" for actions in (row.ours, row.theirs))
            lines.append(f"rank {row.rank}, from action {row.position}: {ours}  against  {theirs}")
        return "\n".join(lines)

    __repr__ = __str__


def differences(ours: Schedule, theirs: Schedule) -> Differences:
    """Compare what two schedules compute, rank by rank and action by action; messages and idle ticks don't count."""
    _check("differences", Schedule, ours)
    _check("differences", Schedule, theirs)
    rows = []
    for rank in range(max(ours.n_ranks, theirs.n_ranks)):
        first, second = (_computes(schedule, rank) for schedule in (ours, theirs))
        matcher = SequenceMatcher(a=list(map(str, first)), b=list(map(str, second)), autojunk=False)
        rows += [
            Difference(rank, i, first[i:j], second[k:n]) for tag, i, j, k, n in matcher.get_opcodes() if tag != "equal"
        ]
    return Differences(ours, theirs, tuple(rows))


def as_torch(timeline: Timeline, name: str = "") -> Timeline:
    """The timeline of a run of torch's schedules, called so: its source is "torch".

    Args:
        timeline: of a run, or a slice of it.
        name: what to call it; left out: the name that it has.
    """
    from ppkit.timeline import Timeline

    _check("as_torch", Timeline, timeline)
    notes = dict(timeline.notes)
    if "emulated" in timeline.source:
        notes["emulation"] = f"emulated: {notes.get('emulation', '')}"
    return replace(timeline, source="torch", name=name or timeline.name, notes=notes)


def schedule_class(kind: str | type) -> Any:
    """One of torch's schedule classes, by itself or by its name."""
    if isinstance(kind, type) and issubclass(kind, (torch_names().Single, torch_names().Runtime.__base__)):
        return kind
    if not isinstance(kind, str):
        raise BridgeError(f'a schedule of torch is one of its classes, or its name, such as "1F1B"; got {kind!r}')
    try:
        return torch_names().schedule_class(kind)
    except ValueError as error:
        raise BridgeError(str(error), values={"schedule": kind}) from None


def _check(function: str, kind: type, value: Any) -> None:
    if not isinstance(value, kind):
        raise BridgeError(f"{function}() takes a {kind.__name__}; got {value!r}", values={"got": value})


def _count(name: str, value: Any) -> int:
    count = whole(value)
    if count is None or count < 1:
        raise BridgeError(
            f"torch_schedule: {name} is {value!r}; it must be a whole number of at least 1", values={name: value}
        )
    return count


def _computes(schedule: Schedule, rank: int) -> tuple[Action, ...]:
    return schedule.compute_only().actions[rank] if rank < schedule.n_ranks else ()


def _our_texts(rank: int, cells: Any) -> list[str]:
    """What a rank does in torch's order, as texts."""
    given = listed(cells)
    if given is None:
        raise BridgeError(f"from_torch: the actions of rank {rank} must be a list; got {cells!r}")
    for cell in given:
        if cell is not None and not isinstance(cell, torch_names().Action):
            raise BridgeError(
                f"from_torch: rank {rank} has {cell!r}, which is no action of torch; for texts use "
                "Schedule.from_csv, or Schedule(..., actions=...)"
            )
    return [_our_text(action) for cell in given for action in _parts(cell)]


def _parts(cell: Any) -> tuple[Any, ...]:
    """The actions of a cell: torch puts two in one where it overlaps them."""
    return tuple(cell.sub_actions) if cell is not None and cell.sub_actions else (cell,)


def _our_text(action: Any) -> str:
    return "" if action is None or str(action).endswith("SHARD") else str(action)


def _torch_text(action: Action) -> str:
    return str(action).replace("REDUCE", "REDUCE_GRAD")
