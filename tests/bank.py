"""Banks of submissions to a lab, right and wrong, run as a notebook runs its cells."""

from __future__ import annotations

import linecache
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ppkit.checks.report import Report

BANKS = Path(__file__).parent / "submissions"


class Submission(NamedTuple):
    """An answer (a tuple where a task asks for several functions), with what the check must say of a wrong one.

    `points` are those that a wrong one has all the same.
    """

    lab: str
    check: str
    function: Any
    code: str | None = None
    words: tuple[str, ...] = ()
    points: float = 0.0


def bank(lab: str, kind: str) -> dict[str, Submission]:
    """Run a lab's file of submissions, "right" or "wrong"; its functions belong to `__main__`, as a notebook's do."""
    found: dict[str, Submission] = {}

    def mark(
        check: str, code: str | None = None, *words: str, name: str = "", points: float = 0.0
    ) -> Callable[[Any], Any]:
        def keep(function: Any) -> Any:
            found[name or function.__name__] = Submission(lab, check, function, code, words, points)
            return function

        return keep

    path = str(BANKS / lab / f"{kind}.py")
    source = "".join(linecache.getlines(path))
    decorator = {"right": "answers", "wrong": "fails"}[kind]
    exec(compile(source, path, "exec"), {"__name__": "__main__", decorator: mark})
    return found


def graded(submission: Submission) -> tuple[Report, float]:
    """Run a submission's check; return its report and the seconds that it took."""
    began = time.perf_counter()
    answers = submission.function if isinstance(submission.function, tuple) else (submission.function,)
    report = getattr(import_module(f"ppkit.checks.{submission.lab}"), submission.check)(*answers)
    return report, time.perf_counter() - began
