"""Grades a folder of submissions, several at a time; each in a process of its own, so that none can touch another."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppkit.grading.submission import GradingError

__all__ = ["Outcome", "find_submissions", "grade_class", "write_results"]

LIMIT = 300.0  # seconds for one submission; one that hangs in every task takes half of it
_MEMORY_PER_JOB = 2 * 2**30  # bytes: a grader, its cells' process and four ranks


@dataclass(frozen=True)
class Outcome:
    """What came of one submission.

    Attributes:
        learner: who, by the path of the notebook.
        path: of the notebook.
        grade: as `Grade.as_json` gives it; None if it could not be graded.
        problem: why not.
    """

    learner: str
    path: Path
    grade: dict[str, Any] | None
    problem: str = ""


def find_submissions(folder: Path) -> list[tuple[str, Path]]:
    """Return every notebook below a folder, with the learner's name.

    The name is the path below the folder: ``ada/lab.ipynb`` is ada's if it is her only notebook; ``ada.ipynb`` is
    ada's as well. A course's ``submitted/`` of nbgrader reads the same.

    Raises:
        GradingError: there is no notebook.
    """
    paths = sorted(
        path
        for path in folder.rglob("*.ipynb")
        if not any(part.startswith(".") or part == "grades" for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise GradingError(f"{folder} holds no notebook (.ipynb), in no folder of it either")
    names = [path.relative_to(folder).with_suffix("").parts for path in paths]
    firsts = Counter(parts[0] for parts in names)
    return [
        (parts[0] if firsts[parts[0]] == 1 else "/".join(parts), path) for parts, path in zip(names, paths, strict=True)
    ]


def default_jobs() -> int:
    """How many submissions this machine grades at a time."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return max(1, min(os.cpu_count() or 1, memory // _MEMORY_PER_JOB))


def grade_class(
    submissions: Sequence[tuple[str, Path]],
    reports: Path,
    *,
    lab: str | None = None,
    jobs: int | None = None,
    limit: float = LIMIT,
    tell: Callable[[int, Outcome], None] = lambda *_: None,
) -> list[Outcome]:
    """Grade every submission.

    Args:
        submissions: learner and notebook.
        reports: folder for a page and a JSON file each.
        lab: which lab they answer; found out for each by default.
        jobs: how many at a time; by default what the machine's cores and memory allow.
        limit: seconds for each.
        tell: is called with the number of those that are done, and the newest.

    Returns:
        what came of them, in their order.
    """
    reports.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs or default_jobs()) as pool:
        begun = {pool.submit(_grade_one, *one, reports, lab, limit): n for n, one in enumerate(submissions)}
        outcomes: dict[int, Outcome] = {}
        try:
            for done in as_completed(begun):
                outcomes[begun[done]] = done.result()
                tell(len(outcomes), outcomes[begun[done]])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [outcomes[n] for n in sorted(outcomes)]


def _grade_one(learner: str, path: Path, reports: Path, lab: str | None, limit: float) -> Outcome:
    stem = reports / learner.replace("/", "-")
    found, html = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.html")
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ppkit", "grade", str(path), "--json", str(found), "--html", str(html)]
    process = subprocess.Popen(
        command + (["--lab", lab] if lab else []),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"PPKIT_LIVE": "0"},
    )
    try:
        _, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Outcome(learner, path, None, f"took more than {limit:g} s and was ended")
    try:
        return Outcome(learner, path, json.loads(found.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        lines = said.decode(errors="replace").strip().splitlines()
        return Outcome(learner, path, None, lines[-1] if lines else f"grading ended with {process.returncode}")


def write_results(outcomes: Sequence[Outcome], folder: Path) -> tuple[Path, Path]:
    """Write who has how many points, and which mistakes were made how often.

    Args:
        outcomes: of all submissions.
        folder: for ``grades.csv`` and ``mistakes.csv``.

    Returns:
        both paths.
    """
    grades, mistakes = folder / "grades.csv", folder / "mistakes.csv"
    cells = list(dict.fromkeys(task["cell"] for one in outcomes if one.grade for task in one.grade["tasks"]))
    with grades.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["learner", "lab", "points", "out of", *cells, "to be looked at", "problem"])
        for one in outcomes:
            writer.writerow(_row(one, cells))
    with mistakes.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["lab", "task", "mistake", "how often"])
        for (lab, task, mistake), times in sorted(count_mistakes(outcomes).items(), key=lambda item: -item[1]):
            writer.writerow([lab, task, mistake, times])
    return grades, mistakes


def _row(outcome: Outcome, cells: Sequence[str]) -> Iterator[Any]:
    grade = outcome.grade or {"lab": "", "points": "", "out_of": "", "tasks": []}
    points = {task["cell"]: f"{task['points']:g}" for task in grade["tasks"]}
    flagged = " ".join(task["cell"] for task in grade["tasks"] if task["flags"])
    yield from (outcome.learner, grade["lab"], grade["points"], grade["out_of"])
    yield from (points.get(cell, "") for cell in cells)
    yield from (flagged, outcome.problem)


def count_mistakes(outcomes: Sequence[Outcome]) -> Counter[tuple[str, str, str]]:
    """Count by lab, task and the mistake's number in the catalogue, or the state where none was recognised."""
    return Counter(
        (one.grade["lab"], task["title"], task["mistake"] or task["state"])
        for one in outcomes
        if one.grade
        for task in one.grade["tasks"]
        if task["state"] != "passed"
    )
