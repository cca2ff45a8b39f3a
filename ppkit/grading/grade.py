"""Grades one notebook: the kit's checks on the answers that its cells give."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ppkit
from ppkit.checks.report import Report
from ppkit.checks.tasks import Lab, Task, labs
from ppkit.grading.answers import collect
from ppkit.grading.submission import Submission, read

__all__ = ["Grade", "TaskGrade", "grade"]


@dataclass(frozen=True)
class TaskGrade:
    """One task of a submission.

    Attributes:
        task: which.
        report: the check's.
        flags: what a person should look at; as long as there is something, the task has no points.
    """

    task: Task
    report: Report
    flags: tuple[str, ...] = ()

    @property
    def points(self) -> float:
        """Points given."""
        return 0.0 if self.flags else float(self.report)

    @property
    def state(self) -> str:
        """In words: passed, not right yet, not done yet, or to be looked at."""
        return "to be looked at" if self.flags and float(self.report) else self.report.state

    def as_json(self) -> dict[str, Any]:
        """The task as plain data."""
        return {
            "cell": self.task.cell,
            "title": self.task.title,
            "points": self.points,
            "out_of": self.task.points,
            "state": self.state,
            "mistake": self.report.mistake,
            "facts": list(self.report.facts),
            "hints": list(self.report.hints),
            "flags": list(self.flags),
        }


@dataclass(frozen=True)
class Grade:
    """A graded submission.

    Attributes:
        path: of the notebook.
        lab: that it answers.
        tasks: in the lab's order.
        cells: what a cell ended with that could not be run to its end, by its number.
        seconds: that grading took.
    """

    path: Path
    lab: Lab
    tasks: tuple[TaskGrade, ...]
    cells: Mapping[int, str]
    seconds: float

    @property
    def points(self) -> float:
        """Points in all."""
        return sum(task.points for task in self.tasks)

    @property
    def out_of(self) -> float:
        """Points of a right submission."""
        return sum(task.task.points for task in self.tasks)

    def as_json(self) -> dict[str, Any]:
        """The grade as plain data."""
        return {
            "ppkit": ppkit.__version__,
            "notebook": str(self.path),
            "lab": self.lab.name,
            "points": self.points,
            "out_of": self.out_of,
            "tasks": [task.as_json() for task in self.tasks],
            "cells": {str(number): text for number, text in sorted(self.cells.items())},
            "seconds": round(self.seconds, 1),
        }

    def lines(self) -> list[str]:
        """The grade as lines to print."""
        width = max(len(task.task.title) for task in self.tasks)
        lines = [f"{self.path}: {self.lab.folder}"]
        for task in self.tasks:
            lines.append(
                f"  {task.task.title:{width}}  {task.points:4g} of {task.task.points:3g}  {task.state}"
                f"{f'  [{task.report.mistake}]' if task.report.mistake else ''}"
            )
            if task.state != "passed":
                facts = task.flags or task.report.facts[:1]
                lines += [f"      {line}" for fact in facts for line in fact.splitlines()[:3]]
        lines += [f"  cell {number}: {text.splitlines()[0]}" for number, text in sorted(self.cells.items()) if text]
        return [*lines, f"  {'in all':{width}}  {self.points:4g} of {self.out_of:3g}"]


def grade(path: Path, *, lab: str | None = None, tell: Callable[[str], None] = lambda _: None) -> Grade:
    """Grade a notebook by what its code computes.

    Its cells run in a process of their own, its functions on fresh ranks. Checks, points and the list of tasks are the
    kit's: check cells of the notebook are not looked at.

    Args:
        path: of the notebook.
        lab: which lab it is, such as ``"lab01"``; found out by default.
        tell: is called with the title of each task before it is checked.

    Raises:
        GradingError: it is no notebook of a lab.
    """
    start = time.monotonic()
    submission = read(path, labs(), lab)
    names = {name for task in submission.lab.tasks for name in task.answers}
    answers = collect(submission.cells, names)
    tasks = []
    for task in submission.lab.tasks:
        tell(task.title)
        tasks.append(_grade_task(task, submission, answers.values))
    return Grade(path, submission.lab, tuple(tasks), submission.unread | dict(answers.errors), time.monotonic() - start)


def _grade_task(task: Task, submission: Submission, values: Mapping[str, Any]) -> TaskGrade:
    report = task.check(*(values.get(name) for name in task.answers))
    return TaskGrade(task, report, submission.flags(task) if float(report) else ())
