"""A schedule is data: an immutable grid of actions, with its text and CSV forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from ppkit.action import Action, Op
from ppkit.clock import unit_rules, walk
from ppkit.errors import ScheduleError
from ppkit.grid import Row, draw
from ppkit.values import listed, whole

__all__ = ["Action", "Op", "Schedule", "check_count", "check_size"]


@dataclass(frozen=True, repr=False)
class Schedule:
    """What every rank does, in which order: ``actions[rank]`` is a tuple of `Action`.

    Args:
        name: what to call it, such as ``"1F1B"``.
        n_ranks: the number of processes.
        n_stages: the number of slices of the model.
        n_microbatches: the number of parts of a batch.
        actions: for each rank its actions in order. Lists, and texts such as ``"0F0"``, are converted; None,
            ``""`` and ``"."`` stand for an idle tick and are left out; so a rank may be ``"0F0 0F1 . 0B0"``.
        stage_to_rank: for each stage its rank; left out: stage s is on rank s modulo ``n_ranks``.
        forward_only: it evaluates the model and has no backward; a schedule that trains must have one.

    Raises:
        ScheduleError: a count, a size, a text or a truth value is wrong. Whether it can run, ``validate()`` says.
    """

    name: str
    n_ranks: int
    n_stages: int
    n_microbatches: int
    actions: tuple[tuple[Action, ...], ...]
    stage_to_rank: tuple[int, ...] = ()
    forward_only: bool = False

    def __post_init__(self) -> None:
        for count in ("n_ranks", "n_stages", "n_microbatches"):
            object.__setattr__(self, count, check_count(count, getattr(self, count)))
        if not isinstance(self.name, str):
            raise ScheduleError(f"the name of a schedule must be a text; got {self.name!r}", values={"name": self.name})
        check_size(n_stages=self.n_stages)
        if not isinstance(self.forward_only, bool):
            raise ScheduleError(
                f"forward_only must be True or False; got {self.forward_only!r}",
                values={"forward_only": self.forward_only},
            )
        object.__setattr__(self, "actions", _rows(self.actions, self.n_ranks))
        object.__setattr__(self, "stage_to_rank", _ranks(self.stage_to_rank, self.n_stages, self.n_ranks))

    def __repr__(self) -> str:
        counts = f"n_ranks={self.n_ranks}, n_stages={self.n_stages}, n_microbatches={self.n_microbatches}"
        return f"<Schedule {self.name!r}: {counts}, {sum(map(len, self.actions))} actions>"

    def __str__(self) -> str:
        counts = ((self.n_stages, "stage"), (self.n_ranks, "rank"), (self.n_microbatches, "micro-batch"))
        stages, ranks, parts = (f"{n} {what}{_plural(what) if n > 1 else ''}" for n, what in counts)
        only = ", forward only" if self.forward_only else ""
        return f"{self.name}: {stages} on {ranks}, {parts}{only}\n{self.grid()}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self)}

    @property
    def has_comms(self) -> bool:
        """Whether it says when to send and receive; if not, messages go as early as they can."""
        return any(action.op.is_send or action.op.is_recv for row in self.actions for action in row)

    def ticks(self) -> tuple[Row, ...]:
        """For each rank a row of equal length, each action at its tick if each took one, None if idle.

        What can never run, because its rank waits for ever, is put after what can.
        """
        starts = walk(self, unit_rules(self)).starts
        rows: list[list[Action | None]] = []
        for actions, ticks in zip(self.actions, starts, strict=True):
            row: list[Action | None] = [None] * (int(ticks[-1]) + 1 if ticks else 0)
            for action, tick in zip(actions, ticks, strict=False):
                row[int(tick)] = action
            rows.append(row + list(actions[len(ticks) :]))
        width = max(map(len, rows))
        return tuple(tuple(row + [None] * (width - len(row))) for row in rows)

    def grid(self) -> str:
        """The schedule as text: a line for each rank, a column for each tick, ``.`` where it idles."""
        return draw(self.ticks())

    def validate(self) -> Schedule:
        """Check that every action is there once, in its place, and that no rank waits for ever.

        Returns:
            The schedule itself.

        Raises:
            ScheduleError: what is wrong, and the grid with the cell marked.
        """
        from ppkit.validate import validate  # it imports this module

        return validate(self)

    def compute_only(self) -> Schedule:
        """The same schedule without its communication."""
        return replace(self, actions=tuple(tuple(a for a in row if a.op.is_compute) for row in self.actions))

    def forward_part(self) -> Schedule:
        """What evaluates the model only: the same schedule without its backward and its gradients' all-reduce."""
        rows = (tuple(action for action in row if action.op.is_forward) for row in self.actions)
        return replace(self, actions=tuple(rows), forward_only=True)

    def with_comms(self) -> Schedule:
        """The same schedule with its messages between ranks; one that has them already, as it is.

        A SEND stands right after the action that makes the value, a RECV right before the one that needs it,
        or earlier if its sender sends the messages of this link in that order. Stages on one rank send each
        other nothing.

        Raises:
            ScheduleError: the schedule is not valid.
        """
        if self.has_comms:
            return self
        from ppkit.messages import add_messages  # it imports this module

        return add_messages(self.validate())

    def with_reduce(self) -> Schedule:
        """The same schedule with the gradient all-reduce of each stage, ``REDUCE``, as early as it can start.

        It stands right after the stage's last B or W on its rank, and after the message that one sends. The
        data-parallel replicas of a pipeline all run such a schedule. One that has a ``REDUCE`` is left as it is.

        Raises:
            ScheduleError: the schedule is not valid, or forward only.
        """
        from ppkit.reduce import with_reduce  # it imports this module

        return with_reduce(self)

    def to_csv(self, *, comms: bool = False) -> str:
        """The schedule as torch reads it: a row for each rank, an action a cell.

        Args:
            comms: False: torch's ``compute_only`` format, a column for each tick, blank where the rank idles;
                torch adds the communication, ``REDUCE`` included. True: its ``compute_comms`` format, with every
                action of ``with_comms()`` and no blanks.

        Raises:
            ScheduleError: with ``comms``, the schedule is not valid.
        """
        rows: Sequence[Row] = self.with_comms().actions if comms else self.compute_only().ticks()
        cells = ([str(cell or "").replace("REDUCE", "REDUCE_GRAD") for cell in row] for row in rows)
        return "".join(",".join(row) + "\n" for row in cells)

    @classmethod
    def from_csv(cls, source: str | Path, name: str | None = None, *, forward_only: bool = False) -> Schedule:
        """The schedule that a CSV text or file holds, as ``to_csv`` and torch write it.

        Stages and micro-batches are counted from the actions; a stage is on the rank that has most of its actions.
        A blank cell is an idle tick; the ``.`` of ``grid()`` is none, as torch doesn't read it.

        Args:
            source: the text, or the path of a file.
            name: what to call it; left out: the file's name, else ``"schedule"``.
            forward_only: it is to have no backward.

        Raises:
            ScheduleError: no such file, no action in it, or a cell that is none; with its line and column.
        """
        from ppkit.csv_text import parse, read  # it imports this module

        text, called = read(source)
        return replace(parse(text, name or called), forward_only=forward_only)


def check_count(name: str, value: object, least: int = 1) -> int:
    """``value`` as an int, if it is a whole number of at least ``least``.

    Raises:
        ScheduleError: it is not; the message names the parameter and says what is allowed.
    """
    count = whole(value)
    if count is None or count < least:
        raise ScheduleError(f"{name} must be a whole number, {least} or more; got {value!r}", values={name: value})
    return count


# Stages times micro-batches, about 1 GB of actions: more is a mistake, and would take the machine's memory first.
_MOST = 4_000_000


def check_size(**counts: int) -> None:
    """Raise ScheduleError where a schedule of so many stages, micro-batches, chunks could not be held in memory."""
    if prod(counts.values()) > _MOST:
        given = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise ScheduleError(
            f"{given}: a schedule has at most {_MOST:,} stages times micro-batches; give smaller counts",
            values=counts,
        )


def _plural(what: str) -> str:
    return "es" if what.endswith("ch") else "s"


def _rows(given: Any, n_ranks: int) -> tuple[tuple[Action, ...], ...]:
    rows = listed(given)
    if rows is None or len(rows) != n_ranks:
        got = repr(given) if rows is None else f"{len(rows)} row{'s' * (len(rows) != 1)}"
        raise ScheduleError(
            f"actions needs one row of actions for each of the {n_ranks} ranks; got {got}",
            values={"n_ranks": n_ranks},
        )
    return tuple(_row(rank, row) for rank, row in enumerate(rows))


def _row(rank: int, row: Any) -> tuple[Action, ...]:
    if type(row) is tuple and all(type(cell) is Action for cell in row):
        return row
    cells = row.split() if isinstance(row, str) else listed(row)
    if cells is None:
        raise ScheduleError(f"the actions of rank {rank} must be a list; got {row!r}", rank=rank)
    actions = []
    for position, cell in enumerate(cells):
        if cell is None or (isinstance(cell, str) and cell.strip() in ("", ".")):
            continue
        try:
            actions.append(cell if isinstance(cell, Action) else Action.parse(cell))
        except ScheduleError as error:
            message = f"rank {rank}, position {position}: {error.message}"
            raise ScheduleError(message, rank=rank, action=error.action, values={"position": position}) from None
    return tuple(actions)


def _ranks(given: Any, n_stages: int, n_ranks: int) -> tuple[int, ...]:
    ranks = listed(given)
    if ranks == []:
        return tuple(stage % n_ranks for stage in range(n_stages))
    found = tuple(rank for rank in map(whole, ranks or ()) if rank is not None and 0 <= rank < n_ranks)
    if ranks is None or not len(ranks) == len(found) == n_stages:
        raise ScheduleError(
            f"stage_to_rank needs a rank from 0 to {n_ranks - 1} for each of the {n_stages} stages; got {given!r}",
            values={"stage_to_rank": given},
        )
    return found
