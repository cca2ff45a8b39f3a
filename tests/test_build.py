"""`ppkit build`: exercises come from solutions, hold no solution, and are the same bytes each time."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ppkit.cli import main
from ppkit.course import execute
from ppkit.course.build import build, find_differences
from ppkit.course.errors import CourseError
from ppkit.course.release import release

SECRET = "secret_answer"
SOLUTION = {"schema_version": 3, "solution": True, "grade": False, "locked": False, "task": False}
TEST = {"schema_version": 3, "solution": False, "grade": True, "locked": True, "task": False, "points": 2}
ANSWER = {"schema_version": 3, "solution": True, "grade": True, "locked": False, "task": False, "points": 1}


def code(source: str, *, outputs: bool = False, cell_id: str | None = None, **metadata: Any) -> dict[str, Any]:
    printed = {"output_type": "stream", "name": "stdout", "text": "stored\n"}
    cell = {
        "cell_type": "code",
        "execution_count": 7 if outputs else None,
        "metadata": metadata,
        "outputs": [printed] if outputs else [],
        "source": source,
    }
    return {**cell, "id": cell_id} if cell_id else cell


def text(source: str, **metadata: Any) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": metadata, "source": source}


def task(source: str, grade_id: str = "task", **metadata: Any) -> dict[str, Any]:
    return code(source, nbgrader={**SOLUTION, "grade_id": grade_id}, **metadata)


def region(body: str = f"    return {SECRET}") -> str:
    return f"def step(x):\n    ### BEGIN SOLUTION\n{body}\n    ### END SOLUTION\n"


def notebook(*cells: dict[str, Any]) -> str:
    metadata = {
        "kernelspec": {"display_name": "mine", "language": "python", "name": "my-kernel"},
        "language_info": {"name": "python", "version": "3.99.1"},
        "widgets": {"state": {}},
    }
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": list(cells)})


def released(*cells: dict[str, Any]) -> Any:
    return nbformat.reads(release(notebook(*cells), "lab.ipynb"), as_version=4)


LAB = (
    text("# A lab"),
    task(region(), outputs=True),
    code(
        "check(step)\n### BEGIN HIDDEN TESTS\nhidden()\n### END HIDDEN TESTS",
        nbgrader={**TEST, "grade_id": "test"},
    ),
    text(f"### BEGIN SOLUTION\n{SECRET}\n### END SOLUTION", nbgrader={**ANSWER, "grade_id": "answer"}),
)


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A course of one lab with a data file beside the notebook, built once."""
    lab = tmp_path / "solutions" / "01_lab"
    (lab / "data").mkdir(parents=True)
    (lab / "01_lab.ipynb").write_text(notebook(*LAB), encoding="utf-8")
    (lab / "data" / "digits.bin").write_bytes(b"\x00\xff\r\n")
    (lab / ".ipynb_checkpoints").mkdir()
    (lab / ".ipynb_checkpoints" / "01_lab-checkpoint.ipynb").write_text("{}", encoding="utf-8")
    build(tmp_path)
    return tmp_path


@pytest.fixture
def exercise(course: Path) -> Path:
    return course / "exercises" / "01_lab" / "01_lab.ipynb"


# --- one notebook ---


def test_solution_is_replaced_by_the_default_stub() -> None:
    (cell,) = released(task(region())).cells
    assert cell.source == 'def step(x):\n    raise NotImplementedError("your code here")\n'


def test_each_task_has_its_own_stub_indented_as_its_region() -> None:
    stub = "# Two lines of yours.\n\nreturn ..."
    first, second, third = released(
        task(region(), "one", ppkit={"stub": stub}),
        task(region(), "two"),
        task(
            f"x = 1\n### BEGIN SOLUTION\ny = {SECRET}\n### END SOLUTION\nz = 2",
            "three",
            ppkit={"stub": "y = ..."},
        ),
    ).cells
    assert first.source == "def step(x):\n    # Two lines of yours.\n\n    return ...\n"
    assert "NotImplementedError" in second.source
    assert third.source == "x = 1\ny = ...\nz = 2"


def test_nothing_of_the_solution_or_its_run_is_left() -> None:
    built = release(notebook(*LAB), "lab.ipynb")
    for leak in (SECRET, "hidden()", "BEGIN", "END ", "stored", "my-kernel", "3.99.1", "widgets", '"stub"'):
        assert leak not in built
    assert all(cell.get("execution_count") is None for cell in nbformat.reads(built, as_version=4).cells)


def test_written_answer_gets_a_text_stub() -> None:
    assert released(*LAB).cells[3].source == "*Your answer here.*"


def test_cells_are_locked_and_carry_checksums_as_nbgrader_makes_them() -> None:
    _, solution, test, _ = released(*LAB).cells
    assert solution.metadata.deletable is False
    assert "editable" not in solution.metadata
    assert test.metadata.editable is False
    assert len(test.metadata.nbgrader.checksum) == 32
    assert test.source == "check(step)"


def test_kernel_is_the_plain_python3() -> None:
    metadata = released(*LAB).metadata
    assert metadata.kernelspec.name == "python3"
    assert "version" not in metadata.language_info


def test_metadata_of_a_run_goes_and_other_metadata_stays() -> None:
    (cell,) = released(code("1", execution={"iopub.status.busy": "2026"}, tags=["keep"], ppkit={"level": 1})).cells
    assert cell.metadata == {"tags": ["keep"], "ppkit": {"level": 1}}


def test_cell_ids_are_kept_and_missing_ones_are_stable() -> None:
    cells = (code("1", cell_id="mine"), task(region()), code("2"))
    assert [cell.id for cell in released(*cells).cells] == ["mine", "cell-002", "cell-003"]
    assert release(notebook(*cells), "a") == release(notebook(*cells), "a")


def test_building_an_exercise_again_changes_nothing_but_its_stubs() -> None:
    built = release(notebook(text("# Only text"), code("x = 1")), "lab.ipynb")
    assert release(built, "lab.ipynb") == built


def test_stored_form_is_sorted_and_ends_with_one_newline() -> None:
    built = release(notebook(*LAB), "lab.ipynb")
    assert built.endswith("}\n")
    assert not built.endswith("\n\n")
    assert built == json.dumps(json.loads(built), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([task("### BEGIN SOLUTION\nx")], r"cell 1: line 1: 'BEGIN SOLUTION' is never closed"),
        (
            [text("a"), task(f"{SECRET}\n### END SOLUTION")],
            r"cell 2: line 2: 'END SOLUTION' without 'BEGIN SOLUTION'",
        ),
        (
            [task("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION")],
            r"cell 1: line 2: .* opened on line 1",
        ),
        (
            [code("### BEGIN HIDDEN TESTS", nbgrader={**TEST, "grade_id": "t"})],
            r"'BEGIN HIDDEN TESTS' is never closed",
        ),
        ([code("x = 1", ppkit={"stub": "x = ..."})], r"cell 1: metadata ppkit\.stub has no solution region"),
        ([task(region(), ppkit={"stub": ["x"]})], r"cell 1: metadata ppkit\.stub must be text, not list"),
        ([task("x = 1")], r"cell 1: a code cell marked as a solution has no solution region"),
        ([code(region())], r"cell 1: .*metadata does not say 'solution': true"),
        ([task(region(), "a"), text("b"), task(region(), "a")], r"cells 1 and 3: the same grade id 'a'"),
        ([code("1", cell_id="c"), code("2", cell_id="c")], r"cells 1 and 2: the same cell id 'c'"),
        ([code("1", nbgrader={**TEST, "points": None})], r"nbgrader refused it"),
        ([task(region(), "")], r"grade_id is empty"),
    ],
)
def test_badly_written_lab_is_refused_with_its_cell(cells: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(CourseError, match=message) as caught:
        release(notebook(*cells), "solutions/lab/lab.ipynb")
    assert str(caught.value).startswith("solutions/lab/lab.ipynb")


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(CourseError) as caught:
        release(notebook(task("x = 1"), task("### END SOLUTION", "b")), "lab.ipynb")
    assert "cell 1" in str(caught.value)
    assert "cell 2" in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "no json", "[]", "{}", '{"nbformat": 3, "nbformat_minor": 0, "worksheets": []}']
)
def test_no_notebook(content: str) -> None:
    with pytest.raises(CourseError, match=r"lab\.ipynb is no notebook of format 4"):
        release(content, "lab.ipynb")


# --- a course ---


def test_every_file_of_a_lab_is_built(course: Path) -> None:
    built = sorted(path.relative_to(course).as_posix() for path in (course / "exercises").rglob("*") if path.is_file())
    assert built == ["exercises/01_lab/01_lab.ipynb", "exercises/01_lab/data/digits.bin"]
    assert (course / built[1]).read_bytes() == b"\x00\xff\r\n"
    assert find_differences(course) == []


def test_second_build_writes_nothing(course: Path) -> None:
    report = build(course)
    assert report.written == []
    assert len(report.unchanged) == 2


def test_check_names_what_differs(course: Path, exercise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--check", str(course)]) == 0
    exercise.write_text(exercise.read_text(encoding="utf-8").replace("# A lab", "# B lab"), encoding="utf-8")
    (course / "exercises/01_lab/data/digits.bin").unlink()
    (course / "exercises/02_gone").mkdir()
    (course / "exercises/02_gone/02_gone.ipynb").write_text("{}", encoding="utf-8")
    capsys.readouterr()
    before = exercise.read_bytes()
    assert main(["build", "--check", str(course)]) == 1
    printed = capsys.readouterr().out
    assert "exercises/01_lab/01_lab.ipynb differs from its solution, first on line" in printed
    assert "exercises/01_lab/data/digits.bin is missing" in printed
    assert "exercises/02_gone/02_gone.ipynb has no source in solutions/" in printed
    assert "ppkit build" in printed.splitlines()[-1]
    assert exercise.read_bytes() == before


def test_build_repairs_all_but_what_it_does_not_own(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (course / "exercises/01_lab/data/digits.bin").unlink()
    stranger = course / "exercises/notes/notes.ipynb"
    stranger.parent.mkdir()
    stranger.write_text("mine", encoding="utf-8")
    assert main(["build", str(course)]) == 0
    assert "wrote exercises/01_lab/data/digits.bin" in (printed := capsys.readouterr().out)
    assert "exercises/notes/notes.ipynb has no source" in printed
    assert stranger.read_text(encoding="utf-8") == "mine"


def test_work_of_a_learner_is_not_overwritten(course: Path, exercise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = exercise.read_text(encoding="utf-8").replace("raise NotImplementedError", "return 3  # raise")
    exercise.write_text(work, encoding="utf-8")
    assert main(["build", str(course)]) == 2
    assert "holds somebody's work in cell 2" in capsys.readouterr().err
    assert exercise.read_text(encoding="utf-8") == work
    assert main(["build", "--force", str(course)]) == 0
    assert find_differences(course) == []


def test_changed_stub_replaces_an_untouched_exercise(course: Path, exercise: Path) -> None:
    source = course / "solutions/01_lab/01_lab.ipynb"
    source.write_text(notebook(task(region(), ppkit={"stub": "return NEW"})), encoding="utf-8")
    build(course)
    assert "return NEW" in exercise.read_text(encoding="utf-8")


def test_one_bad_lab_leaves_everything_as_it_was(course: Path, exercise: Path) -> None:
    before = exercise.read_bytes()
    (course / "solutions/01_lab/01_lab.ipynb").write_text(notebook(text("# New")), encoding="utf-8")
    (course / "solutions/02_bad").mkdir()
    (course / "solutions/02_bad/02_bad.ipynb").write_text(notebook(task("x")), encoding="utf-8")
    with pytest.raises(CourseError, match=r"solutions/02_bad/02_bad\.ipynb"):
        build(course)
    assert exercise.read_bytes() == before


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: shutil.rmtree(root / "solutions"), "there is no folder solutions/ in"),
        (lambda root: (root / "solutions/01_lab/01_lab.ipynb").unlink(), "holds no notebook"),
    ],
)
def test_nothing_to_build(
    course: Path, prepare: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(course)
    assert main(["build", str(course)]) == 2
    assert message in capsys.readouterr().err


# --- the command, and the real course ---


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("ppkit 0.")


def test_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "command" in capsys.readouterr().err


def test_exercises_are_up_to_date(project_root: Path) -> None:
    if not list((project_root / "solutions").glob("*/*.ipynb")):
        pytest.skip("solutions/ holds no lab yet")
    assert find_differences(project_root) == [], "run: make build"


# --- executing notebooks in place ---


@pytest.mark.notebooks
def test_executed_twice_a_notebook_is_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    path.write_text(
        notebook(code("import os, sys; print(sys.executable, os.getcwd(), os.environ['PPKIT_LIVE'])", cell_id="a")),
        encoding="utf-8",
    )
    assert execute.main([str(tmp_path)]) == 0
    once = path.read_bytes()
    assert execute.main([str(path)]) == 0
    assert path.read_bytes() == once
    (output,) = nbformat.reads(once.decode(), as_version=4).cells[0].outputs
    assert output.text.split() == [sys.executable, str(tmp_path), "0"]


def test_nothing_to_execute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute.main([str(tmp_path)]) == 1
    assert "no notebooks in" in capsys.readouterr().err
