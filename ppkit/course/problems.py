"""Find what is wrong in a solution notebook, before nbgrader works on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["find_problems"]

Cell = Mapping[str, Any]

# nbgrader drops a lone END line in silence, which would publish the solution above it.
REGIONS = ("SOLUTION", "HIDDEN TESTS", "MARK SCHEME")
MARKERS = "'### BEGIN SOLUTION' and '### END SOLUTION'"


def find_problems(cells: Sequence[Cell]) -> list[str]:
    """Say what keeps these cells from becoming an exercise.

    Args:
        cells: The cells of a solution notebook, as nbformat 4 holds them.

    Returns:
        One sentence a problem, each beginning with the number of its cell, counted from 1.
    """
    problems = [
        f"cell {number}: {problem}"
        for number, cell in enumerate(cells, start=1)
        for problem in (*_unbalanced_markers(cell), *_misplaced_stub(cell), *_missing_region(cell))
    ]
    return [*problems, *_duplicates(cells)]


def _unbalanced_markers(cell: Cell) -> Iterator[str]:
    lines = _source(cell).split("\n")
    for region in REGIONS:
        opened_at = 0
        for number, line in enumerate(lines, start=1):
            if f"BEGIN {region}" in line:
                if opened_at:
                    yield f"line {number}: 'BEGIN {region}' inside the region opened on line {opened_at}"
                opened_at = number
            elif f"END {region}" in line:
                if not opened_at:
                    yield f"line {number}: 'END {region}' without 'BEGIN {region}' before it"
                opened_at = 0
        if opened_at:
            yield f"line {opened_at}: 'BEGIN {region}' is never closed; add '### END {region}'"


def _misplaced_stub(cell: Cell) -> Iterator[str]:
    stub = cell["metadata"].get("ppkit", {}).get("stub")
    if stub is None:
        return
    if not isinstance(stub, str):
        yield f"metadata ppkit.stub must be text, not {type(stub).__name__}"
    if not _has_region(cell):
        yield f"metadata ppkit.stub has no solution region to replace; add {MARKERS}"


def _missing_region(cell: Cell) -> Iterator[str]:
    grading = cell["metadata"].get("nbgrader", {})
    if cell["cell_type"] == "code" and grading.get("solution") and not _has_region(cell):
        yield (
            "a code cell marked as a solution has no solution region, so the exercise would lose all of it; "
            f"add {MARKERS} around what the learner writes"
        )
    if _has_region(cell) and not grading.get("solution"):
        yield "a solution region in a cell whose nbgrader metadata does not say 'solution': true"


def _duplicates(cells: Sequence[Cell]) -> Iterator[str]:
    for what, key in (("grade id", _grade_id), ("cell id", _cell_id)):
        cells_of = defaultdict(list)
        for number, cell in enumerate(cells, start=1):
            cells_of[key(cell)].append(number)
        for value, numbers in cells_of.items():
            if value and len(numbers) > 1:
                yield f"cells {' and '.join(map(str, numbers))}: the same {what} {value!r}; make each its own"


def _grade_id(cell: Cell) -> str:
    return str(cell["metadata"].get("nbgrader", {}).get("grade_id", ""))


def _cell_id(cell: Cell) -> str:
    return str(cell.get("id", ""))


def _has_region(cell: Cell) -> bool:
    return "BEGIN SOLUTION" in _source(cell)


def _source(cell: Cell) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)
