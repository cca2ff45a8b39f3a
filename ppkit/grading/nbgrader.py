"""nbgrader's autograde with this kit's grades: the checks run on fresh ranks, not in the notebook's own kernel."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from ppkit.grading.grade import grade
from ppkit.grading.page import card

__all__ = ["GradeOnRanks"]


class GradeOnRanks(NbGraderPreprocessor):  # type: ignore[misc]  # nbgrader ships no types
    """Stands in `Autograde.autograde_preprocessors` where `Execute` does.

    Each check cell gets as its output the report of its task: the points as plain text, which nbgrader reads, and the
    card with its hints, which the feedback shows. What else the notebook shows is left out.
    """

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        """Grade the notebook, and write the reports into its check cells."""
        name = resources["unique_key"] if "unique_key" in resources else resources["metadata"]["name"]
        with tempfile.TemporaryDirectory(prefix="ppkit-") as folder:
            path = Path(folder) / f"{Path(name).name}.ipynb"
            nbformat.write(nb, path)
            graded = grade(path)
        tasks = {task.task.cell: task for task in graded.tasks}
        for cell in nb.cells:
            if cell.cell_type != "code":
                continue
            cell.outputs, cell.execution_count = [], None
            task = tasks.get(cell.metadata.get("nbgrader", {}).get("grade_id", ""))
            if task:
                data = {"text/plain": repr(task.points), "text/html": card(task)}
                cell.outputs = [nbformat.v4.new_output("execute_result", data, execution_count=None)]
        return nb, resources
