"""The form as widgets: radio buttons and number fields, each with its label, by mouse or keyboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from ppkit.checks.form import Number, Words, python_text

if TYPE_CHECKING:
    from ppkit.checks.form import Form

__all__ = ["view"]

_WIDE = {"description_width": "initial"}


def view(
    form: Form, questions: Sequence[Number | Words], shown: dict[str, str], written: dict[str, str]
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Make the widgets of a form.

    Args:
        form: is told each answer.
        questions: to show.
        shown: the answers to begin with, by name, as Python.
        written: those that have just come into the cell's text.

    Returns:
        what Jupyter displays, by mimetype, and a function that takes the widgets away.
    """
    status = widgets.HTML(_said("Now this cell says", [f"{name} = {text}" for name, text in written.items()]))
    refused: dict[str, str] = {}  # by name, what stands in a field and is no number
    fields = [_field(form, question, shown[question.name], status, refused) for question in questions]
    box = widgets.VBox([*fields, status])
    data = {kind: value for kind, value in box._repr_mimebundle_().items() if kind != "text/plain"}

    def close() -> None:
        for widget in (box, *box.children):
            widget.close()

    return data, close


def _field(form: Form, question: Number | Words, shown: str, status: Any, refused: dict[str, str]) -> Any:
    wide = widgets.Layout(width="max-content")
    common = {"description": question.label, "tooltip": question.label, "style": _WIDE, "layout": wide}
    if isinstance(question, Words):
        field = widgets.RadioButtons(options=question.words, value=question.value(shown), **common)
    else:
        field = widgets.Text(shown, placeholder="a number, or 3 / 4", continuous_update=False, **common)
    field.observe(lambda change: _answered(form, question, change["new"], status, refused), "value")
    return field


def _answered(form: Form, question: Number | Words, value: Any, status: Any, refused: dict[str, str]) -> None:
    text = python_text(value) if isinstance(question, Words) else value.strip()
    refused.pop(question.name, None)
    if text and question.value(text) is None:
        refused[question.name], text = text, ""
    form.answer(question.name, text)
    begin = "<b>Run this cell once more</b>, so that it says" if form.can_write else "Write into this cell"
    status.value = "".join(map(_no_number, refused.values())) + _said(begin, form.lines)


def _no_number(text: str) -> str:
    return f"<div><code>{escape(text)}</code> is no number. Write it as in Python, such as 0.75 or 3 / 4.</div>"


def _said(begin: str, lines: Sequence[str]) -> str:
    return f"{begin}<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
