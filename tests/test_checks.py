"""What all labs share: reports, the judge's safety net, values in words, hints without answers, nbgrader's points."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from nbgrader.utils import determine_grade, is_grade

from ppkit.checks import oracle
from ppkit.checks.judge import Passed, Unfinished, Wrong, graded, require_function
from ppkit.checks.mistakes import Mistake
from ppkit.checks.report import Report
from ppkit.checks.values import difference
from ppkit.course.execute import execute
from ppkit.errors import CheckFailed
from ppkit.launch import launch

ROOT = Path(__file__).parents[1]
LABS = sorted(path.stem for path in (ROOT / "solutions").glob("*/*.ipynb"))
MISTAKE = Mistake("N99", "You see `x`.", "Because <y>.", "Look at z.")


def wrong(**extra: Any) -> Report:
    return Report(
        2.5, task="Task 9, f", out_of=10, facts=["rank 1: `f` & <g> differ.", "A grid:\n0F0 .\n.   1F0"], **extra
    )


# --- the report ---


def test_report_is_the_points() -> None:
    report = wrong(mistake=MISTAKE)
    assert report == 2.5
    assert sum([report, Report(10.0, out_of=10)]) == 12.5
    assert (report.passed, report.done, report.mistake, report.timeline) == (False, True, "N99", None)
    assert Report(10.0, out_of=10).passed
    assert not Report(0.0, out_of=10, done=False).passed


def test_plain_text_is_the_float_and_the_card_comes_beside_it() -> None:
    data, _ = InteractiveShell.instance().display_formatter.format(wrong(mistake=MISTAKE))  # type: ignore[union-attr]
    assert data["text/plain"] == "2.5"
    assert set(data) == {"text/plain", "text/html"}


def test_card_says_its_state_in_words_and_escapes_what_it_quotes() -> None:
    card = wrong(mistake=MISTAKE, output=("hello\n<b>",))._repr_html_()
    assert "Task 9, f: not right yet. 2.5 of 10 points." in card
    assert "<code>f</code> &amp; &lt;g&gt;" in card
    assert ">0F0 .\n.   1F0</pre>" in card
    assert "rank 0 | hello\nrank 0 | &lt;b&gt;" in card
    assert re.findall(r"Hint \d of 3: [a-z ]+", card) == [
        "Hint 1 of 3: what you see",
        "Hint 2 of 3: why",
        "Hint 3 of 3: where to look",
    ]
    assert card.count("<details") == card.count("</details>") == 4
    assert card.index("Hint 2") < card.index("</details>")  # inside the first, so opened after it


def test_hints_come_one_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    report = wrong(mistake=MISTAKE)
    for _ in range(4):
        report.hint()
    assert capsys.readouterr().out.splitlines() == [
        "Hint 1 of 3, what you see: You see `x`.",
        "Hint 2 of 3, why: Because <y>.",
        "Hint 3 of 3, where to look: Look at z.",
        "Hint 3 of 3, where to look: Look at z.",
    ]
    Report(10.0, out_of=10).hint()
    Report(0.0, out_of=10, done=False).hint()
    assert "passed" in capsys.readouterr().out


def test_require_raises_unless_passed() -> None:
    with pytest.raises(CheckFailed, match="not right yet") as caught:
        wrong(mistake=MISTAKE).require()
    assert caught.value.mistake == "N99"
    passed = Report(10.0, out_of=10)
    assert passed.require() is passed


def test_report_survives_a_pickle() -> None:
    copy = pickle.loads(pickle.dumps(wrong(mistake=MISTAKE)))
    assert (copy, str(copy), copy.hints) == (2.5, str(wrong(mistake=MISTAKE)), MISTAKE.hints)


def test_long_output_is_cut_to_its_end() -> None:
    text = str(wrong(output=("\n".join(f"line {i}" for i in range(50)),)))
    assert "… 30 lines before these" in text
    assert "line 29" not in text
    assert "line 30" in text


# --- the judge ---


@graded("Task 9, f", 10)
def check(answer: Any) -> Passed:
    require_function(answer, "f", ("a", "b"))
    raise answer(1, 2)


def test_verdicts_become_reports() -> None:
    assert check(lambda a, b: Wrong("no", points=4)) == 4
    assert not check(lambda a, b: Unfinished("half", points=5)).done
    assert check.__name__ == "check"


def test_what_no_check_foresaw_is_no_error_trace() -> None:
    report = check(lambda a, b: KeyError("x"))
    assert (float(report), report.passed) == (0.0, False)
    assert "could not judge" in str(report)


@pytest.mark.parametrize("answer", [None, ...])
def test_blank_is_unfinished(answer: Any) -> None:
    assert not check(answer).done


@pytest.mark.parametrize(("answer", "words"), [(3, "of type int"), (lambda a: a, "takes `(a)`"), (print, "judge")])
def test_what_cannot_be_called_so_is_wrong(answer: Any, words: str) -> None:
    assert words in str(check(answer))


# --- values in words ---

X = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (X, ""),
        (X + 1e-12, ""),
        (None, "is missing"),
        ("a list", "is a list"),
        (X[0], "has shape [2] instead of [2, 2]"),
        (X.float(), "is float32 instead of float64"),
        (X / 0, "holds infinite numbers or NaN"),
        (X * 0, "is zero everywhere"),
        (X * 3, "is exactly 3 times what one process computes"),
        (-X / 4, "is exactly -0.25 times what one process computes"),
        (
            X + torch.eye(2) * torch.tensor([0.1, 0.5]),
            "differs from what one process computes, most at [1, 1]: 4.5 instead of 4",
        ),
    ],
)
def test_differences_are_told_in_words(got: Any, words: str) -> None:
    assert difference(got, X) == words


# --- what one process computes ---


@pytest.mark.parametrize("n_stages", [1, 2, 4])
def test_oracle_is_plain_training_of_the_whole_model(n_stages: int) -> None:
    stages = oracle.build_stages((6, 5, 4, 5, 3)[-n_stages - 1 :])
    data = [(torch.randn(n, stages[0][0].in_features, dtype=torch.float64), torch.arange(n) % 3) for n in (7, 7, 4)]
    told = oracle.train(stages, data)
    model = torch.nn.Sequential(*copy.deepcopy(stages))
    optimizer = torch.optim.SGD(model.parameters(), oracle.LEARNING_RATE, oracle.MOMENTUM)
    for step, (inputs, targets) in enumerate(data):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        assert told.losses[step] == pytest.approx(loss.item())
        for stage, weights in zip(model, told.weights[step], strict=True):
            assert {
                name: difference(value, weights[name]) for name, value in stage.state_dict().items()
            } == dict.fromkeys(weights, "")
    assert all(parameter.grad is None for stage in stages for parameter in stage.parameters())


# --- hints ---


def mistakes() -> Iterator[tuple[str, Mistake]]:
    for path in sorted((ROOT / "ppkit/checks/mistakes").glob("[a-z]*.py")):
        module = import_module(f"ppkit.checks.mistakes.{path.stem}")
        yield from ((name, value) for name, value in vars(module).items() if isinstance(value, Mistake))


def solution_lines() -> set[str]:
    """Lines of code that a learner has to write, without spaces, those of ppkit's own answers included."""
    lines: list[str] = []
    for path in (ROOT / "solutions").glob("*/*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            for region in re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", source, re.DOTALL):
                lines += region.splitlines()
    squeezed = {re.sub(r"\s+|#.*", "", line) for line in lines}
    return {line for line in squeezed if len(line) >= 6}


@pytest.mark.parametrize(
    ("name", "mistake"), list(mistakes()), ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_hints_have_three_levels_and_no_answer(name: str, mistake: Mistake) -> None:
    assert mistake.code in ("", name.split("_")[0])
    assert len({*mistake.hints}) == 3
    for hint in mistake.hints:
        assert hint[0].isupper()
        assert hint[-1] in ".?"
        squeezed = re.sub(r"\s+", "", hint)
        assert [line for line in solution_lines() if line in squeezed] == []
        assert not re.search(r"requires_grad|\w\.grad\b|\w\(\w*\)|dist\.|torch\.", hint), hint  # no code at all


# --- nbgrader ---


def notebook(folder: str, lab: str) -> Any:
    return nbformat.read(ROOT / folder / lab / f"{lab}.ipynb", as_version=4)


@pytest.mark.parametrize("lab", LABS)
def test_solution_has_earned_100_points(lab: str) -> None:
    """As stored; the tests of `ppkit grade` compute the points anew, and `make labs` executes it."""
    earned = [determine_grade(cell) for cell in notebook("solutions", lab).cells if is_grade(cell)]
    assert sum(score or 0 for score, _ in earned) == sum(most for _, most in earned) == 100


@pytest.mark.slow
@pytest.mark.notebooks
def test_exercises_run_to_their_ends_and_earn_nothing(tmp_path: Path) -> None:
    """All in one kernel, which saves minutes; emptied before each, so that none finds another's names."""
    together = nbformat.v4.new_notebook()
    for lab in LABS:
        cells = [nbformat.v4.new_code_cell("%reset -f"), *notebook("exercises", lab).cells]
        for number, cell in enumerate(cells):
            cell.update(id=f"{lab[:2]}-{number}")
        together.cells += cells
    path = tmp_path / "exercises.ipynb"
    nbformat.write(together, path)
    execute(path)  # a cell that fails would raise
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", cell.id
    checks = [cell for cell in cells if is_grade(cell)]
    assert {cell.id[:2] for cell in checks} == {lab[:2] for lab in LABS}
    for cell in checks:
        assert determine_grade(cell)[0] == 0, cell.id
        assert "not done yet" in cell.outputs[-1].data["text/html"], cell.id


# --- the ranks ---


def imported() -> list[str]:
    import sys

    before = set(sys.modules)
    for path in sorted((ROOT / "ppkit/checks/drivers").glob("lab*.py")):
        import_module(f"ppkit.checks.drivers.{path.stem}")
    return sorted({name.split(".")[0] for name in set(sys.modules) - before if not name.startswith("ppkit.checks")})


def test_drivers_import_nothing_else_on_a_rank() -> None:
    """Every rank of every check pays for it."""
    assert launch(imported, n_ranks=1).results == ([],)
