"""`ppkit export`: the script holds what the function needs and no more, and torchrun runs it with the same result."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppkit import torchrun
from ppkit.cells import ExportError, read_cells
from ppkit.cli import main
from ppkit.export import export
from ppkit.needs import Needs
from ppkit.scopes import bound_names, changed_names, uses_of
from ppkit.timeline import Timeline

ONE_HOST = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "CUDA_VISIBLE_DEVICES": "",
}


def notebook(folder: Path, *sources: str, name: str = "lesson.ipynb") -> Path:
    """Write a notebook of code cells, with a text cell before the first one."""
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "metadata": {}, "source": "# Text, not Python"}]
    for i, source in enumerate(sources):
        lines: str | list[str] = source if i % 2 else source.splitlines(keepends=True)  # both forms are allowed
        cells.append({"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": lines})
    path = folder / name
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}), encoding="utf-8")
    return path


@pytest.fixture
def learners_part(tmp_path: Path) -> Callable[..., str]:
    """What a script has of the cells, without comments and empty lines."""

    def part(*sources: str, function: str = "f") -> str:
        text = export(notebook(tmp_path, *sources), function, tmp_path / "out.py").text
        tree = ast.parse(text)
        ours = {copied.__name__ for copied in torchrun.COPIED}
        called = {f"{name}()" for name in ours}
        kept = [node for node in tree.body if getattr(node, "name", "") not in ours]
        return "\n".join(line for node in kept[:-1] if (line := ast.unparse(node)) not in called)

    return part


# --- what is taken along ---


def test_what_is_used_is_taken_transitively_in_the_order_of_the_cells(learners_part: Callable[..., str]) -> None:
    part = learners_part(
        "import os, sys\nfrom itertools import chain, islice\nimport torch.nn.functional as F",
        "N = 3\nUNUSED = 4\ndef helper(x):\n    return list(islice(x, N)) + [M]",
        "print('not taken')\ndef other():\n    return os.sep",
        "def f(x):\n    return helper(x), F",
        "M = N + 1",
    )
    assert part == (
        "from itertools import islice\nimport torch.nn.functional as F\nN = 3\n"
        "def helper(x):\n    return list(islice(x, N)) + [M]\ndef f(x):\n    return (helper(x), F)\nM = N + 1"
    )


def test_classes_decorators_defaults_annotations_and_bases_are_needed(learners_part: Callable[..., str]) -> None:
    sources = (
        "import functools\nfrom torch import nn\nSIZE: int = 4\nDEFAULT = 1",
        "class Base(nn.Module):\n    pass",
        "class Model(Base):\n    size = SIZE\n    def forward(self, x):\n        return helper(x)",
        "def helper(x): return x",
        "@functools.cache\ndef f(x: Model = DEFAULT) -> int:\n    return x",
    )
    part = learners_part(*sources)
    assert [line for line in part.splitlines() if line and not line.startswith(" ")] == [
        "import functools", "from torch import nn", "SIZE: int = 4", "DEFAULT = 1", "class Base(nn.Module):",
        "class Model(Base):", "def helper(x):", "@functools.cache", "def f(x: Model=DEFAULT) -> int:",
    ]  # fmt: skip


def test_a_name_set_twice_means_its_last_value_in_a_function_and_the_one_above_in_a_statement(
    learners_part: Callable[..., str],
) -> None:
    part = learners_part("x = 1", "y = x", "x = 2", "def f():\n    return x, y", "def g(): return x\nx = 3")
    assert part == "x = 1\ny = x\ndef f():\n    return (x, y)\nx = 3"
    assert learners_part("def f(): return 1", "def f(): return 2") == "def f():\n    return 2"


def test_a_function_called_by_a_statement_sees_the_values_of_that_moment(learners_part: Callable[..., str]) -> None:
    part = learners_part("n = 1\ndef g(): return n", "y = g()", "n = 2", "def f(): return y")
    assert part == "n = 1\ndef g():\n    return n\ny = g()\ndef f():\n    return y"


def test_changes_in_place_are_needed(learners_part: Callable[..., str]) -> None:
    part = learners_part(
        "from torch import nn\nxs = [1]\nd = {}\nn = 1\nlayer = nn.Linear(2, 2)\nother = []",
        "xs.append(2)\nd['a'] = 1\nn += 1\nother.append(1)\nlayer.weight.data = 0\n"
        "nn.init.zeros_(layer.bias)\nprint(xs)",
        "def f(): return xs, d, n, layer",
    )
    assert part.splitlines()[1:-2] == [
        "xs = [1]", "d = {}", "n = 1", "layer = nn.Linear(2, 2)", "xs.append(2)", "d['a'] = 1", "n += 1",
        "layer.weight.data = 0", "nn.init.zeros_(layer.bias)",
    ]  # fmt: skip


def test_what_may_run_or_not_is_taken_with_what_was_before(learners_part: Callable[..., str]) -> None:
    part = learners_part(
        "import torch\ndevice = 'cpu'",
        "if torch.cuda.is_available():\n    device = 'cuda'",
        "try:\n    import nothing\nexcept ImportError:\n    nothing = None",
        "def f(): return device, nothing",
    )
    assert "device = 'cpu'\nif torch.cuda.is_available():\n    device = 'cuda'\ntry:" in part


def test_values_that_are_computed_come_with_the_seed_and_are_alike_on_all_ranks(tmp_path: Path) -> None:
    path = notebook(
        tmp_path,
        "import random, torch\ntorch.manual_seed(7)\ntorch.set_num_threads(1)",
        "x = torch.rand(3)\ntorch.manual_seed(8)",
        "def f(): return x",
    )
    done = export(path, "f", tmp_path / "out.py")
    assert done.computed == ("torch.manual_seed(7) (cell 2, line 2)", "x (cell 3, line 1)")
    assert done.cells == (2, 3, 4)
    statements = [ast.unparse(node) for node in ast.parse(done.text).body]
    assert statements.index("_prepare_rank()") < statements.index("torch.manual_seed(7)")
    assert not {"import random", "torch.set_num_threads(1)", "torch.manual_seed(8)"} & set(statements)
    assert "import torch" in statements


def test_submodules_that_were_imported_by_themselves_are_imported(learners_part: Callable[..., str]) -> None:
    part = learners_part("import torch\nimport torch.nn, os\nimport torch.optim", "def f(): return torch.nn")
    assert part.startswith("import torch\nimport torch.nn\nimport torch.optim\n")


def test_from_future_stands_first(tmp_path: Path) -> None:
    path = notebook(tmp_path, "x = 1", "from __future__ import annotations", "def f(y: Later): return x")
    with pytest.raises(ExportError, match="f uses Later"):  # an annotation counts as a use
        export(path, "f", tmp_path / "out.py")
    path = notebook(tmp_path, "x = 1", "from __future__ import annotations", "def f(): return x")
    compile(export(path, "f", tmp_path / "out.py").text, "out.py", "exec")


def test_a_star_import_may_hold_any_name(learners_part: Callable[..., str]) -> None:
    assert learners_part("from math import *\nfrom os import *", "def f(): return pi").startswith(
        "from math import *\nfrom os import *"
    )
    assert "import *" not in learners_part("from math import *", "def f(): return 1")


def test_source_is_taken_as_it_is_written(tmp_path: Path) -> None:
    source = "def f():  # why\n    return {'a': 1}    # two  spaces\n\n\nx = 1; y = 2  # both"
    text = export(notebook(tmp_path, source, "def g(): return y, f"), "g", tmp_path / "out.py").text
    assert "# Cell 2\ndef f():  # why\n    return {'a': 1}    # two  spaces\n\n\ny = 2\n\n\n# Cell 3\n" in text


def test_names_of_the_learner_stay_free(tmp_path: Path) -> None:
    path = notebook(tmp_path, "def _prepare_rank(): return 1\nx = _prepare_rank()\ndef main(): return x")
    text = export(path, "main", tmp_path / "out.py").text
    assert text.rstrip().endswith("main_(main)")
    names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert sorted(names) == sorted(["_prepare_rank", "main", "_prepare_rank_", "_read_options", "main_"])


# --- IPython ---


def test_magics_are_left_out(learners_part: Callable[..., str]) -> None:
    part = learners_part(
        "import os\n%load_ext ppkit\n%matplotlib inline\n"
        "!echo it's \\\n   long\nos?\nfiles = !ls\nif True:\n    %time 1",
        "%%time\nN = 3",
        "%%ranks 4 --out run\nM = 5",
        "%%bash\necho no python at all (",
        "\ntext = '''\n%not a magic\n'''\ndef f(): return N, text, os",
    )
    assert part == "import os\nN = 3\ntext = '\\n%not a magic\\n'\ndef f():\n    return (N, text, os)"


@pytest.mark.parametrize(
    ("sources", "function", "message"),
    [
        (["def f(): return M", "%%ranks 4\nM = 5"], "f", "f uses M, but .* only %%ranks of cell 3 sets it"),
        (["def f(): return r", "%%ranks 4 --out r\n1"], "f", "%%ranks of cell 3 sets it to what a run gave"),
        (["files = !ls\ndef f(): return files"], "f", "cell 2, line 1, sets it by IPython: files = !ls"),
        (["def f(): display(1)"], "f", "IPython gives it to notebooks alone"),
        (
            ["for i in range(3): pass", "def g(): return i", "def f(): g()"],
            "f",
            "f uses g, which uses i, .* a loop sets it in cell 2, line 1",
        ),
        (
            ["xs = []\nfor i in range(3): xs.append(i)", "def f(): return xs"],
            "f",
            "f uses xs, .* a loop changes it in cell 2, line 2",
        ),
        (["x = 1", "del x", "def f(): return x"], "f", "a del statement sets it in cell 3"),
        (
            ["y = x", "x = 1", "def f(): return y"],
            "f",
            "f uses y, which uses x, .* it is set only below, in cell 3, line 1",
        ),
        (["def f(): return nowhere"], "f", "no code cell sets it. Give it to f as an argument"),
        (
            ["def init():\n    global s\n    s = 1", "def f(): return s"],
            "f",
            r"only a call of init\(\) sets it \(cell 2, line 1\)",
        ),
        (
            ["from ppkit import launch as go", "def g(): pass\nrun = go(g)", "def f(): return run"],
            "f",
            "f uses run, which uses go, which starts ranks",
        ),
        (
            ["import ppkit", "run = ppkit.launch(len)", "def f(): return run"],
            "f",
            r"f uses run, which starts ranks \(cell 3, line 1\)",
        ),
        (
            ["def train(): pass\ndef other(): pass"],
            "trian",
            r"no function 'trian' \(did you mean 'train'\?\). It has train, other",
        ),
        (["x = 1"], "f", "there is no function 'f'. It has no function at all"),
        (["class C: pass"], "C", r"'C' \(cell 2, line 1\) is no plain function but a class"),
        (["async def f(): pass"], "f", "no plain function but a coroutine"),
        (["from math import pi as f"], "f", "no plain function but imported"),
        (["%%ranks 2\ndef f(): pass"], "f", "'f' is no function that a script can have: only %%ranks of cell 2"),
        (["x = 1", "def f(:\n  pass"], "f", r"lesson\.ipynb, cell 3, line 1: .*: def f\(:"),
        (["def f(): pass", "x = 1\n%load_ext a\ny = = 2"], "f", r"cell 3, line 3: .*: y = = 2"),
    ],
)
def test_what_cannot_be_exported_says_why(tmp_path: Path, sources: list[str], function: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(notebook(tmp_path, *sources), function, tmp_path / "out.py")
    assert not (tmp_path / "out.py").exists()


def test_a_global_that_the_script_sets_itself_is_no_obstacle(learners_part: Callable[..., str]) -> None:
    part = learners_part("def init():\n    global s\n    s = 1", "def f():\n    init()\n    return s")
    assert part.startswith("def init()")


@pytest.mark.parametrize(
    "content", ["", "no json", "[]", "{}", '{"nbformat": 3}', '{"nbformat": 4, "cells": [{}]}',
                '{"nbformat": 4, "cells": [], "metadata": {"kernelspec": {"language": "julia"}}}']
)  # fmt: skip
def test_no_notebook(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lesson.ipynb"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ExportError, match=r"lesson\.ipynb is no Python notebook of format 4: "):
        read_cells(path)


def test_unreadable_source(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"gone\.ipynb cannot be read: "):
        read_cells(tmp_path / "gone.ipynb")
    with pytest.raises(ExportError, match="neither a notebook"):
        read_cells(tmp_path / "notes.txt")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'")
    with pytest.raises(ExportError, match=r"latin\.py cannot be read"):
        read_cells(tmp_path / "latin.py")


def test_script_as_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import os\nN = 2\n\ndef f():\n    return N\n\n"
        "if __name__ == '__main__':\n    M = 1\n\ndef g():\n    return M\n",
        encoding="utf-8",
    )
    done = export(path, "f", tmp_path / "out.py")
    assert done.cells == ()
    assert "\nN = 2\n\n\ndef f():\n    return N\n" in done.text
    with pytest.raises(ExportError, match=r'g uses M, .* under `if __name__ == "__main__"` \(line 7\)'):
        export(path, "g", tmp_path / "out.py")
    path.write_text("def f(:", encoding="utf-8")
    with pytest.raises(ExportError, match=r"mine\.py, line 1: "):
        export(path, "f", tmp_path / "out.py")


# --- names and scopes ---


@pytest.mark.parametrize(
    ("source", "now", "later"),
    [
        ("def f(a, *b, c=d, **e): a, b, c, e, g", {"d"}, {"g"}),
        ("def f():\n x = 1\n def g(): return x + y\n return g", set(), {"y"}),
        ("def f():\n global x\n x = y", set(), {"y"}),
        ("lambda a: a + b", set(), {"b"}),
        ("class A(B):\n x = y\n z = x\n def f(self): return x", {"B", "y"}, {"x"}),
        ("class A:\n x = x", {"x"}, set()),
        ("[x for x in x if x > n]", {"x", "n"}, set()),
        ("{k: v for k, v in d.items() for k in k}", {"d"}, set()),
        ("x.y.z = a[b]", {"x", "a", "b"}, set()),
        ("x += 1", {"x"}, set()),
        ("def f(x):\n match x:\n  case {'a': b, **c}: b, c\n  case [d, *e] as g: return d, e, g, h", set(), {"h"}),
        ("def f():\n try: pass\n except E as e: print(e)\n with o() as w: w\n import a.b, c as d\n a, d", set(),
         {"E", "print", "o"}),
        ("def f():\n return [(y := x) for x in z], y", set(), {"z"}),
        ("@deco\ndef f(a: T) -> R: pass", {"deco", "T", "R"}, set()),
        ("f'{a} {b!r:>{c}}'", {"a", "b", "c"}, set()),
    ],
)  # fmt: skip
def test_names_a_statement_uses(source: str, now: set[str], later: set[str]) -> None:
    uses = uses_of(*ast.parse(source).body)
    assert (uses.now, uses.later) == (now, later)


def test_names_a_statement_sets_and_changes() -> None:
    assert bound_names(ast.parse("a, (b, *c) = 1; d: int = 2\nimport e.f, g as h\nfor i in j: k = 1").body) == set(
        "abcdehik"
    )
    assert bound_names(ast.parse("[x for x in y if (z := x)]\nlambda a: (b := a)").body) == {"z"}
    assert changed_names(ast.parse("if x:\n a.b[0].c = 1\n d.e().f()\n g.h(i)\n j.fill_(k)").body[0]) == set("adgjk")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="syntax of Python 3.12")
def test_type_parameters_are_names_of_the_function() -> None:
    source = "def f[T](x: T = D) -> T:\n    y: T = x\n    return y\nclass A[U](B[U]):\n    z: U"
    uses = uses_of(*ast.parse(source).body)
    assert (uses.now, uses.later) == ({"B", "D"}, set())


# --- the command ---


def test_command_writes_and_says_how_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(tmp_path, "import os\nx = len('ab')", "def step(n, m=1, *, lr): return os, x")
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(path), "--function", "step"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "wrote step_torchrun.py from cells 2, 3",
        "computed on every rank when it starts: x (cell 2, line 2)",
        'start it: torchrun --standalone --nproc-per-node=2 step_torchrun.py --args "N, LR=LR"',
    ]
    assert main(["export", str(path), "--function", "step"]) == 0, "an export may be made anew"
    assert main(["export", str(path), "--function", "stop"]) == 2
    assert "did you mean 'step'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("script.txt", "must end in .py"),
        ("random.py", "would hide the module 'random'"),
        ("torch.py", "would hide the module 'torch'"),
        ("yaml.py", "would hide the module 'yaml'"),
        ("mine.py", "`ppkit export` has not made it"),
        ("gone/script.py", "cannot be written"),
    ],
)
def test_nothing_is_overwritten_or_hidden(
    tmp_path: Path, output: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n", encoding="utf-8")
    path = notebook(tmp_path, "import yaml\ndef f(): return yaml")
    assert main(["export", str(path), "--function", "f", "-o", str(tmp_path / output)]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "mine.py").read_text(encoding="utf-8") == "x = 1\n"


@pytest.mark.parametrize("lesson", ["00_ranks_and_messages", "01_naive_model_parallelism"])
def test_every_function_of_a_lesson_is_exported_or_refused_for_starting_ranks(
    project_root: Path, tmp_path: Path, lesson: str
) -> None:
    path = project_root / "notebooks" / f"{lesson}.ipynb"
    cells = read_cells(path)
    names = {one.node.name for cell in cells for one in cell.statements if isinstance(one.node, ast.FunctionDef)}
    exported = 0
    for name in sorted(names):
        try:
            text = export(path, name, tmp_path / "out.py").text
        except ExportError as error:
            refused = str(error)
            if "starts ranks" not in refused:
                pytest.fail(f"{name}: {refused}")
        else:
            compile(text, name, "exec")
            exported += 1
    assert exported > len(names) * 0.8


# --- the script's own arguments ---


def options(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, hosts: int = 1, function: object = None
) -> tuple[list[object], dict[str, object], str]:
    def step(n, m="", *, lr=0.0):  # type: ignore[no-untyped-def]  # as in a cell
        pass

    for name, value in {"RANK": 0, "WORLD_SIZE": 2 * hosts, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    return torchrun._read_options(function or step)


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        ("3", [3], {}),
        ("3, 'x, y)', lr=-0.5", [3, "x, y)"], {"lr": -0.5}),
        ("[1, (2,), {'a': None}],", [[1, (2,), {"a": None}]], {}),
        ("n=1", [], {"n": 1}),
    ],
)
def test_arguments_are_literals(
    monkeypatch: pytest.MonkeyPatch, given: str, args: list[object], kwargs: dict[str, object]
) -> None:
    assert options(monkeypatch, "--args", given) == (args, kwargs, "")


def test_no_arguments_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(monkeypatch, function=lambda: 1) == ([], {}, "")


@pytest.mark.parametrize(
    ("arguments", "hosts", "message"),
    [
        ([], 1, "step(n, m='', *, lr=0.0) cannot be called with --args '': missing a required argument: 'n'"),
        (["--args", "1, 2, 3"], 1, "too many positional arguments"),
        (["--args", "open('x')"], 1, "are not all Python literals"),
        (["--args", "N_STEPS"], 1, "export a function that makes anything else by itself"),
        (["--args", "1) + g(2"], 1, "brackets that do not pair"),
        (["--args", "'x"], 1, "are not all Python literals"),
        (["--args", "1", "--timeline", "gone/t.json"], 1, "there is no such folder"),
        (["--args", "1", "--timeline", "gone/t.json"], 2, "there is no such folder"),
    ],
)
def test_bad_options_end_the_script_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], hosts: int, message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(monkeypatch, *arguments, hosts=hosts)
    assert message in capsys.readouterr().err


def test_timeline_without_ppkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ppkit.torchrun", None)
    with pytest.raises(SystemExit, match="2"):
        options(monkeypatch, "--args", "1", "--timeline", "t.json")
    assert "--timeline needs ppkit, which this Python cannot import" in capsys.readouterr().err


def test_script_started_without_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit, match="2"):
        torchrun._read_options(lambda: None)
    assert "torchrun starts this script" in capsys.readouterr().err


# --- under torchrun ---


def run_under_torchrun(script: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, *arguments], env=os.environ | ONE_HOST, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def defined_by(path: Path, function: str) -> Any:
    """Return a function as the notebook has it: from its cells, run here."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in read_cells(path):
        for one in cell.statements:
            exec(compile(ast.Module([one.node], []), "cell", "exec"), namespace)
    return namespace[function]


SMALL = (
    "import sys\nimport torch\nimport torch.distributed as dist\n"
    "from torch.distributed import all_reduce\n%load_ext ppkit",
    "torch.manual_seed(3)\nx = torch.rand(4)\nSCALE = 2",
    "def scaled(tensor):\n    return tensor * SCALE",
    "def f(n, *, shift=0.0):\n"
    "    total = scaled(x) * (dist.get_rank() + n)\n"
    "    all_reduce(total)\n"
    "    if dist.get_rank() == 0:\n"
    "        dist.send(total, dst=1)\n"
    "    else:\n"
    "        dist.recv(total, src=0)\n"
    "    return total + shift, torch.rand(2), dist.get_backend(), 'ppkit' in sys.modules",
)


@pytest.mark.ranks
@pytest.mark.slow
def test_torchrun_prints_what_launch_returns_and_needs_no_ppkit(tmp_path: Path) -> None:
    from ppkit import launch

    path = notebook(tmp_path, *SMALL)
    script = export(path, "f", tmp_path / "out.py").path
    printed = run_under_torchrun(script, "--args", "5, shift=0.5").splitlines()
    f = defined_by(path, "f")
    *values, with_ppkit = launch(lambda: f(5, shift=0.5), n_ranks=2, device="cpu", show=False).results[0]
    assert printed == [repr((*values, False))]
    assert with_ppkit is True


@pytest.mark.ranks
@pytest.mark.slow
def test_timeline_of_torchrun_holds_what_launch_observes(tmp_path: Path) -> None:
    from ppkit import launch

    path = notebook(tmp_path, *SMALL)
    script = export(path, "f", tmp_path / "out.py").path
    printed = run_under_torchrun(script, "--args", "5", "--timeline", str(tmp_path / "t.json"))
    assert printed.count("\n") == 1, "one result, of rank 0"
    timeline = Timeline.from_json((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert (timeline.n_ranks, timeline.source, timeline.name) == (2, "measured", "f")
    assert timeline.notes == {"started by": "torchrun"}
    assert [[event.label for event in timeline.of_rank(rank)] for rank in range(2)] == [
        ["all_reduce", "send→1"],
        ["all_reduce", "recv←0"],
    ]
    ((send, received),) = timeline.messages
    assert (send.nbytes, received.nbytes) == (16, 16)
    assert send.start <= received.end
    f = defined_by(path, "f")
    launched = launch(f, 5, n_ranks=2, device="cpu", show=False).timeline
    assert timeline.bytes_sent == launched.bytes_sent


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads by /proc")
def test_no_thread_of_gloo_outlives_the_process_group(tmp_path: Path) -> None:
    """One that is left touches Python while it ends, and now and then aborts the rank."""
    cells = (
        "import atexit\nfrom pathlib import Path\nimport torch\nimport torch.distributed as dist",
        """\
def threads():
    print("threads", sorted(path.read_text() for path in Path("/proc/self/task").glob("*/comm")), flush=True)


def f():
    atexit.register(threads)
    weight = torch.nn.Parameter(torch.ones(2))
    torch.optim.Adam([weight])  # imports what may keep the group
    dist.all_reduce(weight.detach())
""",
    )
    printed = run_under_torchrun(export(notebook(tmp_path, *cells), "f", tmp_path / "out.py").path)
    assert "threads" in printed
    assert "gloo" not in printed


@pytest.mark.ranks
@pytest.mark.slow
def test_a_lessons_training_under_torchrun_does_what_it_does_under_launch(project_root: Path, tmp_path: Path) -> None:
    from ppkit import launch

    path = project_root / "notebooks" / "01_naive_model_parallelism.ipynb"
    script = export(path, "train", tmp_path / "out.py").path
    printed = run_under_torchrun(script, "--args", "2", "--timeline", str(tmp_path / "t.json"))
    needed = Needs(read_cells(path), "train", "lesson").statements.values()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(ast.Module([one.node for one in needed], []), "cells", "exec"), namespace)
    run = launch(namespace["train"], 2, n_ranks=2, device="cpu", show=False)
    assert printed.strip() == repr(run.results[0])
    timeline = Timeline.from_json((tmp_path / "t.json").read_text(encoding="utf-8"))
    for rank in range(2):
        done, expected = ([event.label for event in one.of_rank(rank)] for one in (timeline, run.timeline))
        assert done == expected
    assert timeline.n_steps == 2
    assert timeline.bytes_sent == run.timeline.bytes_sent
