"""Attempts to get points for lab 01 without the work; none may be paid.

Each says what a notebook's answer cells hold in place of the exercise's stubs, by their grade id; `before` stands in a
cell at the top, and `checks` replaces the check cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cheat:
    """One attempt.

    Attributes:
        answers: source of answer cells by grade id.
        before: of a cell at the notebook's top.
        checks: of check cells by grade id; None deletes one.
        points: in the check cells' metadata, instead of theirs.
        flag: words of what a person is asked to look at; "" where the code itself earns nothing.
    """

    answers: dict[str, str] = field(default_factory=dict)
    before: str = ""
    checks: dict[str, str | None] = field(default_factory=dict)
    points: float | None = None
    flag: str = ""


CHEATS = {
    "the check is replaced": Cheat(before="from ppkit.checks import lab01\nlab01.check_train_step = lambda *_: 25.0"),
    "the report is replaced": Cheat(
        before="import ppkit.checks.report as r\nr.Report.__new__ = lambda cls, *a, **k: float.__new__(cls, 100)\n"
        "r.Report.passed = True"
    ),
    "the kit is replaced": Cheat(
        before="import sys, types\nfake = types.ModuleType('ppkit.checks')\n"
        "class Yes:\n    def __getattr__(self, name):\n        return lambda *_: 25.0\n"
        "fake.lab01 = Yes()\nsys.modules['ppkit.checks'] = fake\nsys.modules['ppkit.grading'] = fake"
    ),
    "the check cell says its points": Cheat(checks={"check-6": "25.0", "check-3": "print('passed')\n20.0"}),
    "the check cells are gone": Cheat(checks={f"check-{n}": None for n in range(1, 7)}, before="print('100 of 100')"),
    "the points are raised": Cheat(points=1000.0),
    "the reference is called": Cheat(
        {
            "task-3": "def forward_stage(*args):\n    from ppkit.checks.reference.naive import forward_stage as right\n"
            "    return right(*args)"
        },
        flag="imports `ppkit.checks.reference.naive",
    ),
    "the reference is imported at the top": Cheat(
        {"task-6": "train_step = naive.train_step"},
        before="import ppkit.checks.reference.naive as naive",
        flag="imports `ppkit.checks.reference.naive`",
    ),
    "the reference is found by a computed name": Cheat(
        {
            "task-4": "def backward_stage(*args):\n    name = 'ppkit.che' + 'cks.reference.naive'\n"
            "    return __import__(name, fromlist=['x']).backward_stage(*args)"
        },
        flag="uses `__import__`",
    ),
    "the reference is evaluated from text": Cheat(
        {
            "task-4": "exec(bytes([105, 109, 112, 111, 114, 116]) + b' ppkit.checks.reference.naive as n')\n"
            "backward_stage = lambda *args: n.backward_stage(*args)"
        },
        flag="uses `exec`",
    ),
    "the right numbers are read from the caller": Cheat(
        {
            "task-3": "def forward_stage(stage, batch, shape, rank, n_ranks):\n    import sys\n"
            "    right = sys._getframe(1).f_locals['passes'][rank]\n"
            "    x = right.input.clone().requires_grad_(rank > 0)\n    y = stage(x)\n"
            "    if rank > 0:\n        dist.recv(torch.empty_like(x), src=rank - 1)\n"
            "    if rank < n_ranks - 1:\n        dist.send(y.detach(), dst=rank + 1)\n    return x, y"
        },
        flag="uses `._getframe`",
    ),
    "the solution is read from its file": Cheat(
        before="import json, glob, os, ppkit\nroot = os.path.dirname(os.path.dirname(ppkit.__file__))\n"
        "cells = [c for p in glob.glob(root + '/solutions/01*/*.ipynb') for c in json.load(open(p))['cells']]\n"
        "for c in cells:\n    if c['metadata'].get('nbgrader', {}).get('solution'):\n"
        "        exec(''.join(c['source']))",
        answers={f"task-{n}": "pass" for n in range(1, 7)},
    ),
    "the solution is fetched": Cheat(
        before="import urllib.request\nexec(urllib.request.urlopen('http://127.0.0.1:9/solution.py', timeout=2).read())"
    ),
    "the notebook exits before its end": Cheat(before="import sys\nprint('100 points')\nsys.exit(0)"),
    "a rank exits as if all were well": Cheat(
        {"task-6": "def train_step(*_):\n    import os\n    print('passed, 25 of 25', flush=True)\n    os._exit(0)"}
    ),
    "every exception is swallowed": Cheat(
        {
            "task-4": "def backward_stage(*args):\n    try:\n        raise SystemExit\n    except BaseException:\n"
            "        return 20.0"
        }
    ),
    "a number equals everything": Cheat(
        {
            "task-2": "class Right(float):\n    def __eq__(self, other): return True\n"
            "    def __sub__(self, other): return 0.0\n"
            "    def __float__(self): return self\n    __hash__ = float.__hash__\n"
            "busy_fraction = bytes_per_step = Right(7)"
        }
    ),
    "a pickle runs code in the grader": Cheat(
        {
            "task-1": 'class Evil:\n    def __reduce__(self):\n        return exec, ("import ppkit.checks.report as r; '
            'r.Report.points = 100; import ppkit.checks.lab01.paper as p; p.naive = None",)\n'
            "    def __call__(self): ...\nmy_schedule = Evil()"
        }
    ),
    "forged answers on every open descriptor": Cheat(
        before="import os\nfor n in range(3, 64):\n    try:\n"
        '        os.write(n, b\'{"values": {"busy_fraction": {"plain": 0}}}\\n{"points": 100}\\n\')\n'
        "    except OSError:\n        pass"
    ),
    "the kit's schedule is handed in": Cheat(
        {"task-1": "from ppkit import naive\nmy_schedule = naive(3).with_comms()"}, flag="which the task asks to build"
    ),
    "the kit's schedule is handed in by a helper with another name": Cheat(
        {"task-1": "my_schedule = mine()"},
        before="import ppkit as p\ndef mine():\n    return p.gpipe(3, 1).with_comms()",
        flag="which the task asks to build",
    ),
    "the reference is imported under another name": Cheat(
        {"task-6": "import ppkit.checks.reference.naive as kit\ntrain_step = kit.train_step"},
        flag="imports `ppkit.checks",
    ),
    "the measuring is turned off on the ranks": Cheat(
        {
            "task-3": "def forward_stage(stage, batch, shape, rank, n_ranks):\n"
            "    import ppkit.checks.drivers.lab01 as d\n    d.gradients = lambda stage: {}\n"
            "    x = batch if rank == 0 else torch.empty(shape, dtype=torch.float64)\n"
            "    return x, stage(x)"
        }
    ),
}
