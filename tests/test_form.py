"""Questions below a cell: the answers come into the cell's own text, which is what is graded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ppkit.checks import form as forms
from ppkit.checks.cell_text import assigned, number_of, with_values
from ppkit.checks.estimates import Estimate, judge_estimates
from ppkit.checks.form import Form, Number, Words
from ppkit.checks.judge import Unfinished

STUB = "held = ...  # a guess\ncompared = ...\nask(held, compared)"


class Shell:
    """Stands for the notebook's shell; a cell that runs may replace its text."""

    def __init__(self) -> None:
        self.user_ns: dict[str, Any] = {}
        self.source = STUB

    def get_parent(self) -> dict[str, Any]:
        return {"content": {"code": self.source}}

    def set_next_input(self, text: str, replace: bool) -> None:
        assert replace
        self.source = text

    def run(self, form: Form) -> None:
        exec(self.source, self.user_ns | {"ask": form})


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the notebook was given to show."""
    outputs: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
    yield outputs
    forms.unwritten.clear()


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell()
    monkeypatch.setattr(forms, "_shell", lambda: shell)
    return shell


@pytest.fixture
def form() -> Form:
    return Form(Number("held", "Held at most"), Words("compared", "Compared", ("shorter", "as long")))


# --- the cell's text ---


def test_only_the_values_of_a_cells_text_change() -> None:
    source = '# π\na = ...; b = (1 +\n  2)  # two\nc = "x"\nif c:\n    a = 5\n'
    assert assigned(source, ["a", "b", "missing"]) == {"a": "...", "b": "1 +\n  2"}
    assert with_values(source, {"a": "7", "b": "4"}) == '# π\na = 7; b = (4)  # two\nc = "x"\nif c:\n    a = 5\n'
    assert assigned("%magic\na = 1", ["a"]) == {}
    assert with_values("%magic\na = 1", {"a": "2"}) == "%magic\na = 1"


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), (" 3 / 12 ", 0.25), ("-(2 + 1) * 4.5", -13.5), ("7 // 2", 3), ("0.2", 0.2)]
    + [(text, None) for text in ("", "three", "2,5", "20 %", "1 / 0", "9 ** 9", "True", "open('x')", "(" * 999)],
)
def test_number_is_arithmetic_and_nothing_else(text: str, value: float | None) -> None:
    assert number_of(text) == value


# --- the form ---


def test_answers_come_into_the_cell_when_it_runs_again(
    form: Form, shell: Shell, shown: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPKIT_LIVE", "0")
    shell.run(form)
    assert shown[-1] == {
        "text/plain": "Your answers, as this cell says them:\n"
        "  held     = ...   Held at most: a number\n"
        '  compared = ...   Compared: "shorter" or "as long"'
    }
    form.answer("held", "2 + 1")
    form.answer("compared", '"as long"')
    assert forms.unwritten == {"held", "compared"}
    assert shell.source == STUB  # a click alone changes no cell
    shell.run(form)
    assert shell.source == 'held = 2 + 1  # a guess\ncompared = "as long"\nask(held, compared)'
    assert (shell.user_ns["held"], shell.user_ns["compared"]) == (3, "as long")
    assert forms.unwritten == set()
    assert 'compared = "as long"' in shown[-1]["text/plain"]


def test_what_is_typed_after_a_click_counts(form: Form, shell: Shell, shown: list[dict[str, Any]]) -> None:
    shell.run(form)
    form.answer("held", "3")
    form.answer("compared", '"as long"')
    shell.source = shell.source.replace("held = ...", "held = 4")
    shell.run(form)
    assert shell.source == 'held = 4  # a guess\ncompared = "as long"\nask(held, compared)'
    shell.run(form)
    assert shell.source.startswith("held = 4")


def test_answer_taken_back_is_none(form: Form, shell: Shell, shown: list[dict[str, Any]]) -> None:
    shell.run(form)
    form.answer("held", "3")
    form.answer("held", "")
    assert (form.lines, forms.unwritten) == ([], set())
    shell.run(form)
    assert shell.source == STUB


def test_cell_without_the_lines_shows_what_to_write(form: Form, shell: Shell, shown: list[dict[str, Any]]) -> None:
    shell.source = "ask(..., ...)"
    shell.run(form)
    form.answer("held", "3")
    assert (form.lines, form.can_write) == (["held = 3"], False)
    shell.run(form)
    assert shell.source == "ask(..., ...)"


def test_check_says_that_a_click_is_not_yet_in_the_cell(form: Form, shell: Shell, shown: list[dict[str, Any]]) -> None:
    shell.run(form)
    form.answer("held", "3")
    with pytest.raises(Unfinished) as caught:
        judge_estimates([Estimate("held", ..., 3.0)], 10)
    assert caught.value.facts[-1] == "In the form you answered `held`: run its cell once more, then this one."


def test_without_a_notebook_nothing_happens(form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    form(..., "as long")
    assert capsys.readouterr().out == ""


# --- the widgets ---


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PPKIT_LIVE", "1")
    return pytest.importorskip("ipywidgets")


def widgets_of(live: Any, data: dict[str, Any]) -> Any:
    box = live.widgets.widget._instances[data["application/vnd.jupyter.widget-view+json"]["model_id"]]
    return box.children


def test_widgets_are_labelled_and_hand_their_answers_on(
    form: Form, shell: Shell, shown: list[dict[str, Any]], live: Any
) -> None:
    shell.run(form)
    number, words, status = widgets_of(live, shown[-1])
    assert (number.description, number.value) == ("Held at most", "")
    assert (words.description, words.options, words.value) == ("Compared", ("shorter", "as long"), None)
    assert "text/plain" in shown[-1]  # for a page without widgets
    number.value = "2,5"
    assert "is no number" in status.value
    assert form.lines == []
    number.value = "5 / 2"
    words.value = "shorter"
    assert form.lines == ["held = 5 / 2", 'compared = "shorter"']
    assert "Run this cell once more" in status.value
    assert "held = 5 / 2\ncompared = &quot;shorter&quot;" in status.value
    shell.run(form)
    number, words, status = widgets_of(live, shown[-1])
    assert (number.value, words.value) == ("5 / 2", "shorter")
    assert "Now this cell says" in status.value


def test_without_ipywidgets_it_is_a_text(
    form: Form, shell: Shell, shown: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPKIT_LIVE", "1")
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "ppkit.checks.form_view", raising=False)
    shell.run(form)
    assert list(shown[-1]) == ["text/plain"]


def test_labs_load_neither_widgets_nor_ipython() -> None:
    code = "import sys, ppkit.checks.lab03; print({'ipywidgets', 'IPython'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
