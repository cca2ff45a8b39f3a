"""Reading a schedule from CSV, and saying where it is wrong."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from ppkit.errors import ScheduleError
from ppkit.schedule import Action, Schedule

__all__ = ["parse", "read"]


def read(source: str | Path) -> tuple[str, str]:
    """The text that ``source`` is or names, and a name for it.

    A text has a line break, a comma or an action; everything else is the path of a file.
    """
    if isinstance(source, str) and ("\n" in source or not source.strip()):
        return source, "schedule"
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8-sig"), path.stem
    except (OSError, UnicodeDecodeError) as error:
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
    lines = list(csv.reader(text.rstrip().splitlines()))
    rows = [_row(line, cells) for line, cells in enumerate(lines, start=1)]
    if not any(rows):
        raise ScheduleError("the CSV holds no action: it needs a row for each rank, with actions such as 0F0")
    everything = [action for row in rows for action in row]
    n_stages = 1 + max(action.stage for action in everything)
    owners: list[Counter[int]] = [Counter() for _ in range(n_stages)]
    for rank, row in enumerate(rows):
        for action in row:
            owners[action.stage][rank] += 1
    for stage, owner in enumerate(owners):
        if not owner:
            raise ScheduleError(f"the CSV has stages up to {n_stages - 1}, but no action of stage {stage}", stage=stage)
    return Schedule(
        name,
        n_ranks=len(rows),
        n_stages=n_stages,
        n_microbatches=1 + max(action.microbatch or 0 for action in everything),
        actions=tuple(rows),
        stage_to_rank=tuple(owner.most_common(1)[0][0] for owner in owners),
    )


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
