"""Turn a solution notebook into its exercise, with nbgrader's own preprocessors and no database."""

from __future__ import annotations

import json
import re
from typing import Any

import nbformat
from nbformat import NotebookNode

from ppkit.course.errors import CourseError
from ppkit.course.problems import find_problems

try:
    from nbgrader.nbgraderformat import MetadataValidator
    from nbgrader.preprocessors import (
        CheckCellMetadata,
        ClearHiddenTests,
        ClearMarkScheme,
        ClearOutput,
        ClearSolutions,
        ComputeChecksums,
        LockCells,
    )
    from nbgrader.utils import compute_checksum
except ImportError as error:
    raise CourseError(
        "`ppkit build` needs nbgrader, which is not installed here. Run: pip install 'ppkit[course]'"
    ) from error

__all__ = ["StubSolutions", "edited_cells", "release"]

CODE_STUB = 'raise NotImplementedError("your code here")'
TEXT_STUB = "*Your answer here.*"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# The version of the Python that last ran the solution must not show in the exercise.
LANGUAGE_INFO = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"}
# Metadata of a cell that a run or a viewer leaves.
OF_A_RUN = ("execution", "ExecuteTime", "collapsed", "scrolled")


class StubSolutions(ClearSolutions):  # type: ignore[misc]  # nbgrader ships no types
    """Replaces a solution region by the stub in its cell's metadata `{"ppkit": {"stub": …}}`."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: dict[str, Any], cell_index: int
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Clear a cell's solution region."""
        stub = cell.metadata.get("ppkit", {}).pop("stub", None)
        if not cell.metadata.get("ppkit", True):
            del cell.metadata["ppkit"]
        self.code_stub = {"python": stub or CODE_STUB}
        self.text_stub = stub or TEXT_STUB
        result: tuple[NotebookNode, dict[str, Any]] = super().preprocess_cell(cell, resources, cell_index)
        cell.source = re.sub(r"(?m)^[ \t]+$", "", cell.source)  # it indents the empty lines of a stub, too
        return result


# The order of nbgrader's own `generate_assignment`; the second checksum covers what is left at the end.
CHAIN = (
    LockCells,
    StubSolutions,
    ClearOutput,
    CheckCellMetadata,
    ComputeChecksums,
    ClearHiddenTests,
    ClearMarkScheme,
    ComputeChecksums,
)


def release(text: str, where: str) -> str:
    """Make the exercise of a solution notebook; the same text always gives the same bytes.

    Args:
        text: The solution notebook, as stored in its file.
        where: The file's name, for messages.

    Returns:
        The exercise notebook, as to be stored.

    Raises:
        CourseError: The notebook cannot be read, or a cell is not written as nbgrader and ppkit need it.
    """
    raw = _parse(text, where)
    problems = find_problems(raw["cells"])  # before nbformat, which replaces a cell id that occurs twice
    if problems:
        raise CourseError("\n  ".join([f"{where} cannot become an exercise:", *problems]))
    notebook = _open(raw, where)
    try:
        MetadataValidator().validate_nb(notebook)
        resources: dict[str, Any] = {}
        notebook.metadata["kernelspec"] = KERNELSPEC
        for preprocessor in CHAIN:
            notebook, resources = preprocessor().preprocess(notebook, resources)
        _strip_metadata(notebook)
        nbformat.validate(notebook)
    except Exception as error:  # nbgrader raises RuntimeError, ValidationError and bare KeyError alike
        reason = str(error).strip().split("\n")[0]
        raise CourseError(f"{where}: nbgrader refused it: {type(error).__name__}: {reason}") from error
    return str(nbformat.writes(notebook, version=4)).rstrip("\n") + "\n"


def edited_cells(text: str, where: str) -> list[int]:
    """Find the answers that somebody has already begun in an exercise notebook.

    Args:
        text: An exercise notebook, as stored in its file.
        where: The file's name, for messages.

    Returns:
        The numbers, from 1, of the solution cells whose text is no longer the one that was generated.
    """
    return [
        number
        for number, cell in enumerate(_open(_parse(text, where), where).cells, start=1)
        if cell.metadata.get("nbgrader", {}).get("solution")
        and cell.metadata.nbgrader.get("checksum") != compute_checksum(cell)
    ]


def _parse(text: str, where: str) -> dict[str, Any]:
    """Read a notebook as plain data, with an id for every cell."""
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw["nbformat"] != 4:
            raise ValueError(f"its nbformat is {raw['nbformat']}")
        raw["nbformat_minor"] = max(5, raw["nbformat_minor"])
        for number, cell in enumerate(raw["cells"], start=1):
            # Without an id nbformat would draw one at random, another one each time.
            cell.setdefault("id", f"cell-{number:03d}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CourseError(f"{where} is no notebook of format 4: {type(error).__name__}: {error}") from error
    return raw


def _open(raw: dict[str, Any], where: str) -> NotebookNode:
    try:
        notebook: NotebookNode = nbformat.reads(json.dumps(raw), as_version=4)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CourseError(f"{where} is no notebook of format 4: {type(error).__name__}: {error}") from error
    return notebook


def _strip_metadata(notebook: NotebookNode) -> None:
    """Leave nothing of the run or of the solution in the metadata."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = LANGUAGE_INFO
    for cell in notebook.cells:
        for key in OF_A_RUN:
            cell.metadata.pop(key, None)
