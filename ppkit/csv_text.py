"""Reading a schedule from CSV, and saying where it is wrong."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Set
from pathlib import Path

from ppkit.errors import ScheduleError
from ppkit.schedule import Action, Schedule

__all__ = ["parse", "read"]


def read(source: str | Path) -> tuple[str, str]:
    """The text that ``source`` is or names, and a name for it.

    A text has a line break, a comma or an action; everything else is the path of a file.
    """
    if not isinstance(source, (str, Path)):
        raise ScheduleError(f"from_csv reads CSV text or the path of a file; got {source!r}")
    if isinstance(source, str) and ("\n" in source or not source.strip()):
        return source, "schedule"
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8"), path.stem
    except (OSError, ValueError) as error:  # no such file, not text, or no possible path
        if isinstance(source, str) and ("," in source or _is_action(source)):
            return source, "schedule"
        raise ScheduleError(
            f"cannot read a schedule from {str(source)!r}: {getattr(error, 'strerror', None) or error}; "
            "give CSV text or the path of a CSV file",
            values={"source": str(source)},
        ) from None


def _is_action(text: str) -> bool:
    try:
        Action.parse(text)
    except ScheduleError:
        return False
    return True


def parse(text: str, name: str) -> Schedule:
    """The schedule in CSV ``text``: a row for each rank, an action a cell, blank where the rank idles."""
    text = text.removeprefix("\ufeff")  # the mark that spreadsheets put first
    try:
        table = list(csv.reader(text.rstrip().splitlines()))
    except csv.Error as error:  # a cell longer than csv takes
        raise ScheduleError(f"this is no CSV of actions: {error}; a cell holds one action, such as 0F0") from None
    rows = [_row(line, cells) for line, cells in enumerate(table, start=1)]
    everything = [action for row in rows for action in row]
    if not everything:
        raise ScheduleError("the CSV holds no action: it needs a row for each rank, with actions such as 0F0")
    owners: dict[int, Counter[int]] = {}
    for rank, row in enumerate(rows):
        for action in row:
            owners.setdefault(action.stage, Counter())[rank] += 1
    n_stages = _count("stage", owners.keys())
    return Schedule(
        name,
        n_ranks=len(rows),
        n_stages=n_stages,
        n_microbatches=_count("micro-batch", {action.microbatch or 0 for action in everything}),
        actions=tuple(rows),
        stage_to_rank=tuple(owners[stage].most_common(1)[0][0] for stage in range(n_stages)),
    )


def _count(what: str, present: Set[int]) -> int:
    """How many there are, if none is left out: a typo such as 100000F0 would make a giant schedule."""
    absent = next(number for number in range(len(present) + 1) if number not in present)
    if absent < len(present):
        raise ScheduleError(
            f"the CSV has {what} {max(present)}, but no action of {what} {absent}: they are counted from 0",
            values={what: absent},
        )
    return len(present)


def _row(line: int, cells: list[str]) -> tuple[Action, ...]:
    if not cells:
        raise ScheduleError(
            f"line {line} of the CSV is empty: each line is a rank. Remove it, or write a comma for a rank "
            "that never does anything",
            values={"line": line},
        )
    actions = []
    for column, cell in enumerate(cells, start=1):
        if cell.strip():
            try:
                actions.append(Action.parse(cell))
            except ScheduleError as error:
                raise ScheduleError(
                    f"line {line} of the CSV, column {column}: {error.message}",
                    rank=line - 1,
                    action=cell.strip(),
                    values={"line": line, "column": column},
                ) from None
    return tuple(actions)
