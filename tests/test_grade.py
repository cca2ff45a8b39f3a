"""`ppkit grade`: points for what the code computes, in a notebook, a class and nbgrader, and none for anything else."""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ppkit.checks.tasks import labs
from ppkit.cli import main
from ppkit.grading.answers import Answers, collect
from ppkit.grading.classroom import find_submissions
from ppkit.grading.forbidden import imported_names, suspicions
from ppkit.grading.grade import Grade, grade
from ppkit.grading.page import page
from ppkit.grading.sealed import close, open_in_grader
from ppkit.grading.submission import GradingError, Runnable, read
from ppkit.schedule import Schedule

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).parents[1]
LABS = labs()


def load_cheats() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("cheats", Path(__file__).parent / "submissions" / "cheats.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cheats"] = module
    spec.loader.exec_module(module)
    cheats: dict[str, Any] = module.CHEATS
    return cheats


CHEATS = load_cheats()


def notebook(folder: str, lab: str = "lab01") -> Path:
    name = LABS[lab].folder
    return ROOT / folder / name / f"{name}.ipynb"


Edit = Callable[[Any], None]


def edited(target: Path, edit: Edit, folder: str = "exercises") -> Path:
    """A copy of a lab's notebook, changed."""
    content = nbformat.read(notebook(folder), as_version=4)
    edit(content)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, target)
    return target


def answering(answers: dict[str, str], before: str = "") -> Edit:
    def edit(content: Any) -> None:
        for cell in content.cells:
            grade_id = cell.metadata.get("nbgrader", {}).get("grade_id", "")
            if grade_id in answers:
                cell.source = answers[grade_id]
        if before:
            setup = next(n for n, cell in enumerate(content.cells) if cell.cell_type == "code")
            content.cells.insert(setup + 1, nbformat.v4.new_code_cell(before, id="before"))

    return edit


def points(result: Grade) -> list[float]:
    return [task.points for task in result.tasks]


# --- the kit's list of tasks ---


@pytest.mark.parametrize("name", LABS)
def test_tasks_are_those_of_the_notebook(name: str) -> None:
    lab = LABS[name]
    cells = nbformat.read(notebook("solutions", name), as_version=4).cells
    checks = [cell for cell in cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert [cell.metadata.nbgrader.grade_id for cell in checks] == [task.cell for task in lab.tasks]
    for cell, task in zip(checks, lab.tasks, strict=True):
        assert cell.source == f"{name}.{task.check.__name__}({', '.join(task.answers)})"
        assert cell.metadata.nbgrader.points == task.points
    assert sum(task.points for task in lab.tasks) == 100
    assert len({task.title for task in lab.tasks}) == len(lab.tasks)


# --- one notebook ---


@pytest.mark.slow
@pytest.mark.parametrize("name", LABS)
def test_solution_gets_every_point(name: str) -> None:
    right = grade(notebook("solutions", name))
    assert (right.points, right.out_of, right.cells) == (100, 100, {})


def test_exercise_gets_no_point() -> None:
    """One of them; the tests of the checks execute all."""
    untouched = grade(notebook("exercises"))
    assert untouched.points == 0
    assert {task.state for task in untouched.tasks} == {"not done yet"}


def test_page_and_json_say_what_was_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = (
        "def backward_stage(stage_input, output, loss, rank, n_ranks):\n"
        "    if rank == n_ranks - 1:\n        loss.backward()\n    else:\n"
        "        dist.recv(torch.empty_like(output), src=rank + 1)\n        output.sum().backward()\n"
        "    if rank > 0:\n        dist.send(stage_input.grad, dst=rank - 1)\n"
    )
    path = edited(tmp_path / "answer.ipynb", answering({"task-4": source}))
    assert main(["grade", str(path), "--json", str(tmp_path / "g.json"), "--html", str(tmp_path / "g.html")]) == 1
    assert "[N12]" in capsys.readouterr().out
    result = json.loads((tmp_path / "g.json").read_text())
    task = result["tasks"][3]
    assert (task["cell"], task["points"], task["out_of"], task["mistake"]) == ("check-4", 0, 20, "N12")
    assert len(task["hints"]) == 3
    html = (tmp_path / "g.html").read_text()
    assert "Hint 1 of 3" in html
    assert "<svg" in html
    assert "0 of 100 points" in html


def test_an_error_names_the_learners_cell_and_line(tmp_path: Path) -> None:
    source = "def forward_stage(stage, batch, shape, rank, n_ranks):\n    return stage(batch), undefined_name"
    result = grade(edited(tmp_path / "a.ipynb", answering({"task-3": source})))
    facts = "\n".join(result.tasks[2].report.facts)
    assert "undefined_name" in facts
    assert "line 2" in facts


def test_cell_that_fails_costs_only_its_own_task(tmp_path: Path) -> None:
    solution = {
        cell.metadata.nbgrader.grade_id: cell.source
        for cell in nbformat.read(notebook("solutions"), as_version=4).cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }
    broken = {
        "task-1": "my_schedule = [[\n",
        "task-2": solution["task-2"],
        "task-3": "import os\nos._exit(3)",
        "task-4": solution["task-4"],
        "task-5": "raise ValueError('no idea')",
    }
    result = grade(edited(tmp_path / "a.ipynb", answering(broken)))
    assert points(result) == [0, 10, 0, 20, 0, 0]
    said = " ".join(result.cells.values())
    assert "exit code 3" in said
    assert "ValueError: no idea" in said
    assert len(result.cells) == 3


def test_endless_cell_and_one_that_ignores_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppkit.grading.answers.CELL_SECONDS", 1.0)
    monkeypatch.setattr("ppkit.grading.answers._GRACE", 4.0)
    stubborn = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    sources = ["a = 1", stubborn, "b = 2"]
    cells = [Runnable(n, source) for n, source in enumerate(sources, start=1)]
    answers = collect(cells, ["a", "b", "c"])
    assert answers.values == {"a": 1, "b": 2}
    assert list(answers.errors) == [2]


def test_memory_of_a_cell_is_limited() -> None:
    cells = [Runnable(1, "a = bytearray(20 * 2**30)"), Runnable(2, "b = 2")]
    answers = collect(cells, ["a", "b"])
    assert answers.values == {"b": 2}
    assert answers.errors[1].startswith("MemoryError")


# --- answers ---


@pytest.mark.parametrize("value", [None, ..., True, 3, 0.5, float("inf"), "0F0", [1, (2, "x")], {"a": [1.5]}])
def test_data_arrives_as_it_was(value: Any) -> None:
    assert open_in_grader(json.loads(json.dumps(close(value)))) == value


def test_schedule_function_and_others_arrive() -> None:
    schedule = Schedule("mine", 1, 1, 1, [["0F0", "0B0"]])
    assert open_in_grader(close(schedule)) == schedule
    sealed = open_in_grader(json.loads(json.dumps(close(lambda a, b=2, *c: a))))
    assert str(sealed.__signature__) == "(a, b=Ellipsis, *c)"
    with pytest.raises(TypeError, match="runs on ranks only"):
        sealed(1)
    other = open_in_grader(close(object()))
    assert repr(other).startswith("<object object")
    assert not callable(other)


def test_unusual_values_arrive_and_none_costs_another_answer() -> None:
    source = """
import collections, torch
class Odd:
    def __repr__(self): raise KeyError("no")
class Slow:
    def __repr__(self):
        while True: pass
Pair = collections.namedtuple("Pair", "x y")
pair, size, odd, slow, large = Pair(1, 2), torch.Size([3, 4]), Odd(), Slow(), 10**5000
half, good = "a\\ud800", 7
"""
    found = collect([Runnable(1, source)], ["pair", "size", "odd", "slow", "large", "half", "good"])
    assert found.errors == {}
    assert (found.values["pair"], found.values["size"], found.values["good"]) == ((1, 2), (3, 4), 7)
    assert found.values["half"] == "a?"
    assert {repr(found.values[name]) for name in ("odd", "slow", "large")} == {
        "<a value that cannot be read: KeyError>",
        "<a value that cannot be read: _TooLong>",
        "<a number of more than 300 digits>",
    }


@pytest.mark.parametrize("text", ["no json\\n", "[[1]]\\n", "[" * 100_000 + "\\n", '{"begin": "x"}\\n'])
def test_what_a_cell_writes_to_the_grader_costs_that_cell(text: str) -> None:
    write = f"import os\nfor n in range(3, 1024):\n    try: os.write(n, b'{text}')\n    except OSError: pass\nb = 2"
    cells = [Runnable(1, "a = 1"), Runnable(2, write), Runnable(3, "c = 3")]
    found = collect(cells, ["a", "b", "c", "d"])
    assert found.values == {"a": 1, "c": 3}
    assert "wrote into the grader's connection" in found.errors[2]


def test_an_answer_that_nobody_understands_is_none() -> None:
    forged = b'{"values": {"a": {"function": [1]}, "b": {"plain": 2}, "c": {}, "d": 5}}\n'
    write = f"import os\nfor n in range(3, 1024):\n    try: os.write(n, {forged!r})\n    except OSError: pass"
    assert collect([Runnable(1, write)], ["a"]).values == {"b": 2}


def test_an_error_without_words() -> None:
    source = "class Mute(Exception):\n    def __str__(self): raise self\nraise Mute"
    assert collect([Runnable(1, source), Runnable(2, "a = 1")], ["a"]) == Answers({"a": 1}, {1: "Mute: "})


# --- which lab ---


def test_lab_is_found_by_name_or_by_import_or_said(tmp_path: Path) -> None:
    by_import = edited(tmp_path / "x.ipynb", lambda content: None)
    assert read(by_import, LABS).lab.name == "lab01"

    def without_import(content: Any) -> None:
        for cell in content.cells:
            cell.source = cell.source.replace("from ppkit.checks import lab01", "")

    by_name = edited(tmp_path / "ada_01_naive_model_parallelism.ipynb", without_import)
    assert read(by_name, LABS).lab.name == "lab01"
    nameless = edited(tmp_path / "y.ipynb", without_import)
    with pytest.raises(GradingError, match="names no lab"):
        read(nameless, LABS)
    assert read(nameless, LABS, "lab01").lab.name == "lab01"
    with pytest.raises(GradingError, match="there is no lab 'lab99'"):
        read(nameless, LABS, "lab99")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--json", "g.json", "--html", "g.html"],
            "leave out --json and --html, for a notebook only, and it is a folder",
        ),
        (["--output", "there"], "leave out --output, for a folder only, which it is not"),
    ],
)
def test_an_option_of_the_other_kind_is_refused(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path if "--json" in options else notebook("exercises")
    assert main(["grade", str(path), *options]) == 2
    assert says in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_said_before_grading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grade", str(notebook("exercises")), "--html", str(tmp_path)]) == 2
    assert "is a folder; name a file to write" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no json", "{}", '{"nbformat": 3}'])
def test_what_is_no_notebook_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    assert main(["grade", str(path)]) == 2
    assert "cannot be graded" in capsys.readouterr().err


# --- cheating ---


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_is_paid(name: str, tmp_path: Path) -> None:
    cheat = CHEATS[name]

    def edit(content: Any) -> None:
        answering(cheat.answers, cheat.before)(content)
        for cell in list(content.cells):
            grading = cell.metadata.get("nbgrader", {})
            if grading.get("grade") and cheat.points is not None:
                grading["points"] = cheat.points
            if grading.get("grade_id") in cheat.checks:
                source = cheat.checks[grading["grade_id"]]
                if source is None:
                    content.cells.remove(cell)
                else:
                    cell.source = source

    result = grade(edited(tmp_path / "a.ipynb", edit))
    assert result.points == 0
    assert result.out_of == 100
    if cheat.flag:
        (flagged,) = [task for task in result.tasks if task.flags]
        assert any(cheat.flag in flag for flag in flagged.flags)
        assert float(flagged.report) > 0, "without the flag it would be paid"


def test_flag_inside_an_answer_is_no_other_tasks(tmp_path: Path) -> None:
    source = "def forward_stage(*args):\n    return eval('args')"
    submission = read(edited(tmp_path / "a.ipynb", answering({"task-3": source})), LABS)
    assert [task.cell for task in submission.lab.tasks if submission.flags(task)] == ["check-3"]
    outside = read(edited(tmp_path / "b.ipynb", answering({"task-3": "eval('1')\n" + source})), LABS)
    assert all(outside.flags(task) for task in outside.lab.tasks)


def test_there_are_fifteen_cheats_and_more() -> None:
    assert len(CHEATS) >= 15


@pytest.mark.parametrize("name", LABS)
def test_no_solution_is_suspicious(name: str) -> None:
    submission = read(notebook("solutions", name), LABS)
    assert [task.cell for task in submission.lab.tasks if submission.flags(task)] == []


@pytest.mark.parametrize(
    "source",
    [
        "for module in stage.modules(): print(module.__class__.__name__)",
        "class A(nn.Module):\n    def __init__(self):\n        super().__init__()",
        "import os\nrank = int(os.environ['RANK'])",
        "from ppkit.checks import lab01",
        "value = getattr(stage, 'weight', None)",
        "from concurrent.futures import ThreadPoolExecutor\nfrom types import SimpleNamespace\nimport pandas as pd",
        "import numpy as np, torch.nn.functional as F\nnp.save_to = torch.distributed.send\nos.path.join('a', 'b')",
    ],
)
def test_what_is_ordinary_is_not_suspicious(source: str) -> None:
    assert _suspicions(source) == []


def _suspicions(source: str) -> list[str]:
    body = ast.parse(source).body
    names = imported_names(body)
    return [flag for node in body for flag in suspicions(node, "lab01", names)]


@pytest.mark.parametrize("name", LABS)
def test_no_right_answer_is_suspicious(name: str) -> None:
    assert _suspicions((Path(__file__).parent / "submissions" / name / "right.py").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from sys import _getframe",
        "from sys import modules as loaded",
        "import sys as s\ns.modules",
        "import sys\nt = sys\nt.modules",
        "import sys\ngetattr(sys, 'modules')",
        "from os import popen",
        "import os as o\no.read(o.open('x', 0), 9)",
        "import linecache",
        "import codecs, tokenize",
        "import numpy as np\nnp.genfromtxt('x')",
        "from torch import load",
        "def f():\n    import torch as t\n    t.save(1, 'x')",
        "from operator import attrgetter",
        "import timeit",
        "from threading import settrace",
        "from ppkit.checks import lab01 as kit",
        "import ppkit as p\np.checks.reference",
        "import urllib3",
        "import torch.distributed as dist\ndist.FileStore('x', 2)",
        "match f:\n    case object(__globals__=g): pass",
    ],
)
def test_a_detour_is_suspicious_too(source: str) -> None:
    assert _suspicions(source)


@pytest.mark.parametrize(
    "source",
    [
        "import ppkit as p\nmy_schedule = p.naive(3)",
        "import ppkit\nmy_schedule = ppkit.builders.naive(3)",
        "from ppkit import *\nmy_schedule = naive(3)",
        "from ppkit import gpipe as g\nmy_schedule = g(3, 1)",
        "from ppkit.quick import build\nmy_schedule = build('GPipe', 3, 1, 1)",
        "import ppkit\nclass A:\n    def make(self): return ppkit.naive(3)\nmade = A()\nmy_schedule = made.make()",
        "from ppkit import naive\nmy_schedule = naive(3)\ndef naive(n): pass",
    ],
)
def test_what_the_task_asks_to_build_is_found_behind_other_names_and_costs_no_other_task(
    source: str, tmp_path: Path
) -> None:
    *before, answer = source.split("\n")
    if answer.startswith("def"):
        before, answer = [], source
    edit = answering({"task-1": answer}, "\n".join(before))
    submission = read(edited(tmp_path / "a.ipynb", edit), LABS)
    flagged = {task.cell: submission.flags(task) for task in submission.lab.tasks}
    assert any("which the task asks to build" in flag for flag in flagged.pop("check-1"))
    assert not any(flagged.values())


def test_the_kits_own_may_be_used_where_the_task_does_not_ask_for_it(tmp_path: Path) -> None:
    source = "from ppkit import naive, simulate\nbusy_fraction = 1 - simulate(naive(3)).bubble_fraction"
    submission = read(edited(tmp_path / "a.ipynb", answering({"task-2": source})), LABS)
    assert not any(map(submission.flags, submission.lab.tasks))


# --- a class ---


def test_learners_are_named_by_their_folders(tmp_path: Path) -> None:
    for name in (
        "ada.ipynb",
        "bob/lab.ipynb",
        "eve/a.ipynb",
        "eve/b.ipynb",
        ".ipynb_checkpoints/x.ipynb",
        "grades/y.ipynb",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [name for name, _ in find_submissions(tmp_path)] == ["ada", "bob", "eve/a", "eve/b"]


def class_of(folder: Path, copies: int, hang: int, crash: int) -> None:
    """A class in which `copies` hand in the solution; others hang, crash, or hand in something else."""
    for n in range(copies):
        edited(folder / f"right{n:02}" / "a.ipynb", lambda content: None, "solutions")
    endless = {"task-4": "def backward_stage(*_):\n    while True: pass", "task-1": "while True: pass"}
    for n in range(hang):
        edited(folder / f"hang{n:02}" / "a.ipynb", answering(endless), "solutions")
    overflow = "import sys\nsys.setrecursionlimit(10**9)\ndeep = []\nfor _ in range(10**6): deep = [deep]\nrepr(deep)"
    for n in range(crash):
        edited(
            folder / f"crash{n:02}" / "a.ipynb",
            answering({"task-3": overflow, "task-6": "import os\ndef train_step(*_):\n    os._exit(11)"}),
            "solutions",
        )
    (folder / "broken.ipynb").write_text("{}")


def check_class(folder: Path, copies: int, hang: int, crash: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grade", str(folder)]) == 2  # one could not be graded
    rows = {row["learner"]: row for row in csv.DictReader((folder / "grades/grades.csv").open())}
    assert len(rows) == copies + hang + crash + 1
    for name, row in rows.items():
        if name.startswith("right"):
            assert (row["points"], row["problem"]) == ("100.0", "")
        elif name.startswith("hang"):
            assert [row[f"check-{n}"] for n in range(1, 7)] == ["0", "10", "20", "0", "10", "25"]
        elif name.startswith("crash"):
            assert [row[f"check-{n}"] for n in range(1, 7)] == ["15", "10", "0", "20", "10", "0"]
        else:
            assert "cannot be graded" in row["problem"]
    mistakes = (folder / "grades/mistakes.csv").read_text()
    assert "Task 4" in mistakes
    assert (folder / "grades/reports/hang00.html").exists()
    assert f"{copies + hang + crash + 1} graded" not in capsys.readouterr().out  # progress is for terminals


@pytest.mark.slow
def test_class_with_one_that_hangs_and_one_that_crashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_of(tmp_path, copies=1, hang=1, crash=1)
    check_class(tmp_path, 1, 1, 1, capsys)


@pytest.mark.exhaustive
def test_class_of_thirty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_of(tmp_path, copies=25, hang=3, crash=2)
    check_class(tmp_path, 25, 3, 2, capsys)


# --- nbgrader ---


def nbgrader(course: Path, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *command],
        cwd=course,
        env=os.environ | {"PPKIT_LIVE": "0", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.notebooks
def test_nbgraders_three_commands_give_the_same_points(tmp_path: Path) -> None:
    from nbgrader.api import Gradebook

    lab = LABS["lab01"]
    shutil.copytree(ROOT / "solutions" / lab.folder, tmp_path / "solutions" / lab.folder)
    shutil.copy(ROOT / "nbgrader_config.py", tmp_path)
    nbgrader(tmp_path, "generate_assignment", lab.folder)
    released = tmp_path / "release" / lab.folder / f"{lab.folder}.ipynb"
    assert nbformat.read(released, as_version=4).cells == nbformat.read(notebook("exercises"), as_version=4).cells

    handed_in = tmp_path / "submitted" / "ada" / lab.folder / f"{lab.folder}.ipynb"
    wrong = "def forward_stage(stage, batch, shape, rank, n_ranks):\n    return batch, stage(batch)"
    edited(handed_in, answering({"task-3": wrong}), "solutions")
    nbgrader(tmp_path, "autograde", lab.folder, "--create")
    nbgrader(tmp_path, "generate_feedback", lab.folder)

    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as gradebook:
        submission = gradebook.find_submission(lab.folder, "ada")
        scores = {one.cell.name: one.score for book in submission.notebooks for one in book.grades}
    assert scores == {task.task.cell: task.points for task in grade(handed_in).tasks}
    assert sum(scores.values()) == 80
    feedback = (tmp_path / "feedback" / "ada" / lab.folder / f"{lab.folder}.html").read_text()
    assert "Hint 1 of 3" in feedback


def test_page_escapes_what_a_learner_wrote(tmp_path: Path) -> None:
    path = edited(tmp_path / "a.ipynb", answering({"task-5": "raise ValueError('<script>alert(1)</script>')"}))
    assert "<script>" not in page(grade(path))
