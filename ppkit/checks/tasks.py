"""What each lab asks for: its tasks, the names of the answers, and the check of each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import ppkit.checks
from ppkit.checks.report import Report

__all__ = ["Lab", "Task", "labs"]


@dataclass(frozen=True)
class Task:
    """A task of a lab.

    Attributes:
        cell: grade id of the cell that checks it, such as ``"check-3"``; ``"task-3"`` holds the answer.
        check: called with the answers.
        answers: names that the learner's cells give to the answers.
        built: names of `ppkit` that the task asks to build: an answer may not use them.
    """

    cell: str
    check: Callable[..., Report]
    answers: tuple[str, ...]
    built: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the report calls it."""
        return str(vars(self.check)["task"])

    @property
    def points(self) -> float:
        """For a right answer."""
        return float(vars(self.check)["points"])


@dataclass(frozen=True)
class Lab:
    """A lab, as its package in `ppkit.checks` describes it.

    Attributes:
        module: of its checks, such as ``ppkit.checks.lab01``.
        folder: its notebook's name and that of its folder.
        tasks: in the notebook's order.
    """

    module: ModuleType
    folder: str
    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        """The name that notebooks import, such as ``"lab01"``."""
        return self.module.__name__.rpartition(".")[2]


def labs() -> dict[str, Lab]:
    """Return every lab by its name."""
    found = sorted(info.name for info in pkgutil.iter_modules(ppkit.checks.__path__) if info.name.startswith("lab"))
    modules: list[Any] = [importlib.import_module(f"ppkit.checks.{name}") for name in found]
    return {name: Lab(module, module.FOLDER, module.TASKS) for name, module in zip(found, modules, strict=True)}
