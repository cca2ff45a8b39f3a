"""A submitted notebook as data: its lab, the cells to run, and what in them a person should look at."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ppkit.cells import Cell, ExportError, Statement, code_cells, parse_cell
from ppkit.checks.tasks import Lab, Task
from ppkit.errors import PpkitError
from ppkit.grading.forbidden import borrowed, imported_names, suspicions

__all__ = ["GradingError", "Runnable", "Submission", "read"]


class GradingError(PpkitError, ValueError):
    """A notebook that cannot be graded."""


_IMPORTS = (ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Runnable:
    """A cell as it is run for its answers.

    Attributes:
        number: of the cell, from 1.
        source: without calls of the lab's checks and without magics, line for line as it was.
        flags: what in it a person should look at, each with the name of the function or class that holds it; "" where
            it stands outside of any, so that it runs with the cell.
    """

    number: int
    source: str
    flags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Submission:
    """What a notebook hands in.

    Attributes:
        path: of the notebook.
        lab: that it answers.
        cells: to run, in order.
        unread: why a cell cannot be run, by its number.
    """

    path: Path
    lab: Lab
    cells: tuple[Runnable, ...]
    unread: dict[int, str]

    def flags(self, task: Task) -> tuple[str, ...]:
        """What a person should look at before this task gets points: all but what is inside another task's answer."""
        others = {name for other in self.lab.tasks if other is not task for name in other.answers}
        return tuple(
            f"cell {cell.number} {flag}" for cell in self.cells for where, flag in cell.flags if where not in others
        )


def read(path: Path, labs: Mapping[str, Lab], lab: str | None = None) -> Submission:
    """Read a submitted notebook.

    Args:
        path: of the notebook.
        labs: all there are, by name.
        lab: which it is, such as ``"lab01"``; by default the one in its file's name, else the one whose checks it
            calls.

    Raises:
        GradingError: it is no notebook, or of no lab.
    """
    try:
        sources = list(code_cells(path.read_text(encoding="utf-8-sig"), path))
    except (OSError, UnicodeDecodeError, ExportError) as error:
        raise GradingError(f"{path} cannot be graded: {error}") from None
    chosen = _choose(path, [source for _, source in sources], labs, lab)
    parsed: dict[int, Cell] = {}
    unread: dict[int, str] = {}
    for number, source in sources:
        try:
            parsed[number] = parse_cell(source, number, path.name)
        except ExportError as error:
            unread[number] = error.message
    kept = {n: [one for one in cell.statements if not _calls_lab(one.node, chosen.name)] for n, cell in parsed.items()}
    flags = _flags(kept, chosen)
    texts = dict(sources)
    cells = tuple(Runnable(n, _text(kept[n], texts[n]), tuple(flags[n])) for n in parsed)
    return Submission(path, chosen, cells, unread)


def _choose(path: Path, sources: Iterable[str], labs: Mapping[str, Lab], lab: str | None) -> Lab:
    known = ", ".join(labs)
    if lab is not None:
        if lab not in labs:
            raise GradingError(f"there is no lab {lab!r}; there are {known}")
        return labs[lab]
    for one in labs.values():
        if one.folder in path.name:
            return one
    named = {name for source in sources for name in re.findall(r"from ppkit\.checks import (lab\d+)", source)}
    if len(found := named & labs.keys()) == 1:
        return labs[found.pop()]
    raise GradingError(
        f"{path} names no lab, neither in its file's name (such as {next(iter(labs.values())).folder}.ipynb) "
        f"nor by importing its checks. Say which it is: --lab NAME, one of {known}"
    )


def _text(kept: Iterable[Statement], source: str) -> str:
    """What is run of a cell: without the lab's checks and what only IPython understands; lines keep their numbers."""
    lines = [""] * (source.count("\n") + 1)
    for statement in kept:
        at = int(statement.where.rpartition(" ")[2]) - 1
        first, *others = statement.text.split("\n")
        lines[at : at + 1 + len(others)] = [f"{lines[at]}; {first}" if lines[at] else first, *others]
    return "\n".join(lines)


def _flags(cells: Mapping[int, list[Statement]], lab: Lab) -> dict[int, list[tuple[str, str]]]:
    """For each cell, what in it a person should look at, and where."""
    statements = [statement for kept in cells.values() for statement in kept]
    names = imported_names(statement.node for statement in statements)
    found = {
        number: [
            (getattr(statement.node, "name", ""), flag)
            for statement in kept
            for flag in suspicions(statement.node, lab.name, names)
        ]
        for number, kept in cells.items()
    }
    for task in lab.tasks:
        for statement in _answering(task, cells.values()) if task.built else ():
            # It counts for this task alone, wherever it stands.
            found[statement.cell] += [(task.answers[0], flag) for flag in borrowed(statement.node, task.built, names)]
    return found


def _answering(task: Task, cells: Iterable[list[Statement]]) -> list[Statement]:
    """The statements of the cells that set a task's answers, and those that they call upon."""
    cells = list(cells)
    chosen = [one for kept in cells if any(one.binds & set(task.answers) for one in kept) for one in kept]
    others = [one for kept in cells for one in kept if not isinstance(one.node, _IMPORTS)]
    for statement in chosen:  # which grows
        needed = statement.uses.now | statement.uses.later
        chosen += [one for one in others if one.binds & needed and one not in chosen]
    return chosen


def _calls_lab(node: ast.stmt, lab: str) -> bool:
    """Whether a statement is a call such as ``lab01.check_schedule(…)`` alone, its report kept or not."""
    value = node.value if isinstance(node, (ast.Expr, ast.Assign)) else None
    if not isinstance(value, ast.Call):
        return False
    function = value.func
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == lab
