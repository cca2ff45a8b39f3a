"""Questions to click or to fill in; the answers are plain Python in the text of the learner's cell."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppkit.checks.cell_text import assigned, number_of, with_values
from ppkit.checks.judge import is_blank

__all__ = ["Form", "Number", "Words", "python_text", "unwritten"]

unwritten: set[str] = set()  # names answered in a form whose cell does not say so yet


@dataclass(frozen=True)
class Number:
    """A question for a number.

    Attributes:
        name: of the learner's variable.
        label: the question in a few words, with the unit.
    """

    name: str
    label: str

    def value(self, text: str) -> float | None:
        """What an answer stands for; None for what is no number."""
        return number_of(text)

    @property
    def choices(self) -> str:
        """What may be answered, in words."""
        return "a number"


@dataclass(frozen=True)
class Words:
    """A question with fixed answers.

    Attributes:
        name: of the learner's variable.
        label: the question in a few words.
        words: the answers to choose from.
    """

    name: str
    label: str
    words: tuple[str, ...]

    def value(self, text: str) -> str | None:
        """What an answer, written in Python, stands for; None for none of the words."""
        return next((word for word in self.words if text in (repr(word), python_text(word))), None)

    @property
    def choices(self) -> str:
        """What may be answered, in words."""
        return " or ".join(map(python_text, self.words))


def python_text(value: Any) -> str:
    """A value as the course writes it in Python."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


class Form:
    """Shows questions below a cell, and writes the answers into the cell's text when the cell runs again.

    What is graded is the text of a cell, so an answer must stand there; a page may not write into a cell, but a cell
    that runs may replace its own text (IPython's ``set_next_input``). Without a notebook, as when a submission is
    graded, nothing happens; without ipywidgets, or with the environment variable PPKIT_LIVE=0, as for stored outputs,
    the form is a text.

    Args:
        *questions: in the order of the values.
    """

    def __init__(self, *questions: Number | Words) -> None:
        self._questions = questions
        self._given: dict[str, str] = {}  # in the form since the cell ran: by name, as Python
        self._stood: dict[str, str] = {}  # in the cell when it ran
        self._close: Callable[[], None] = lambda: None  # the widgets that were shown

    def __call__(self, *values: Any) -> None:
        """Show the form; last in the cell that assigns the values.

        Args:
            *values: what the cell gives to the names now.
        """
        shell = _shell()
        if shell is None:
            return
        source = str((shell.get_parent() or {}).get("content", {}).get("code", ""))
        stands = assigned(source, [question.name for question in self._questions])
        new = {name: text for name, text in self._given.items() if name in stands and stands[name] == self._stood[name]}
        self._forget()
        if new:
            shell.set_next_input(with_values(source, new), replace=True)
            for question in self._questions:
                if question.name in new:
                    shell.user_ns[question.name] = question.value(new[question.name])
        self._stood = stands | new
        shown = {
            question.name: new.get(question.name) or self._shown(question, value)
            for question, value in zip(self._questions, values, strict=True)
        }
        self._display(shown, new)

    def _shown(self, question: Number | Words, value: Any) -> str:
        """The answer that the form begins with, as Python; "" for none."""
        if is_blank(value):
            return ""
        text = self._stood.get(question.name, "")
        return text if question.value(text) is not None else python_text(value)

    def _forget(self) -> None:
        self._given = {}
        unwritten.difference_update(question.name for question in self._questions)

    def answer(self, name: str, text: str) -> None:
        """Note an answer given in the form; an empty one takes it back.

        Args:
            name: of the question.
            text: the answer as Python.
        """
        if text and text != self._stood.get(name):
            self._given[name] = text
            unwritten.add(name)
        else:
            self._given.pop(name, None)
            unwritten.discard(name)

    def _display(self, shown: dict[str, str], written: dict[str, str]) -> None:
        from IPython.display import display

        text = self.text(shown)
        data: dict[str, Any] = {"text/plain": text}
        if os.environ.get("PPKIT_LIVE", "1") != "0":
            try:
                from ppkit.checks.form_view import view
            except ImportError:  # no ipywidgets here
                pass
            else:
                self._close()
                widgets, self._close = view(self, self._questions, shown, written)
                data |= widgets
        display(data, raw=True)  # type: ignore[no-untyped-call]  # IPython's display has no types

    def text(self, shown: dict[str, str]) -> str:
        """The form as text, for a page without widgets.

        Args:
            shown: the answers so far, by name, as Python.
        """
        answers = {question.name: shown[question.name] or "..." for question in self._questions}
        names, texts = max(map(len, answers)), max(map(len, answers.values()))
        lines = [
            f"  {question.name:{names}} = {answers[question.name]:{texts}}   {question.label}: {question.choices}"
            for question in self._questions
        ]
        return "\n".join(["Your answers, as this cell says them:", *lines])

    @property
    def lines(self) -> list[str]:
        """The lines of Python for the answers that the cell does not have yet."""
        return [f"{name} = {text}" for name, text in self._given.items()]

    @property
    def can_write(self) -> bool:
        """Whether the cell, run again, can write these lines itself: it has a line for each of the names."""
        return self._given.keys() <= self._stood.keys()


def _shell() -> Any:
    """The shell of the notebook that this process is the kernel of, or None."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "get_parent") else None
