"""`%%ranks` runs a cell's body on every rank, in a real IPython."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell

from ppkit.errors import LaunchError, RankError

pytestmark = pytest.mark.ranks


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "ppkit")
    shell.run_cell("import torch.distributed as dist")
    yield shell
    InteractiveShell.clear_instance()


def test_a_cell_runs_on_every_rank(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_cell("%%ranks 3\nprint('rank', dist.get_rank(), 'of', dist.get_world_size())").raise_error()
    assert capsys.readouterr().out == "".join(f"rank {r} | rank {r} of 3\n" for r in range(3))


def test_the_notebooks_variables_travel_and_what_the_cell_sets_does_not_come_back(shell: InteractiveShell) -> None:
    shell.run_cell("factor = 3\ndef triple(x):\n    return factor * x")
    shell.run_cell("%%ranks --out run\nmine = triple(dist.get_rank())\nmine").raise_error()
    assert shell.user_ns["run"].results == (0, 3)
    assert "mine" not in shell.user_ns


def test_the_last_lines_value_is_printed_as_in_a_cell(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("%%ranks 2\n'a' * (dist.get_rank() + 1)").raise_error()
    assert capsys.readouterr().out == "rank 0 | 'a'\nrank 1 | 'aa'\n"


def test_the_number_of_ranks_may_be_a_variable(shell: InteractiveShell) -> None:
    shell.run_cell("p = 3")
    shell.run_cell("%%ranks p --out run\n1").raise_error()
    assert shell.user_ns["run"].n_ranks == 3


def test_a_cell_can_be_emulated_and_drawn(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_cell("import torch, ppkit\nslow = ppkit.Emulation(forward=0.01)")
    shell.run_cell("%%ranks 2 --emulate slow --timeline --out run\ntorch.nn.Linear(2, 2)(torch.ones(2))").raise_error()
    assert shell.user_ns["run"].timeline.source == "measured, emulated"
    assert shell.user_ns["run"].timeline.name == "cell"
    assert "measured, emulated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nope", "the number of ranks is 'nope', which is no number and no variable"),
        ("0", "n_ranks=0: the number of ranks is a whole number from 1 to 200"),
        ('"4', '%%ranks "4: No closing quotation'),
        ("2 --out 3x", "'3x' is no name of a variable"),
        ("2 --frobnicate", "unrecognized arguments: --frobnicate"),
        ("2 --device tpu", "device='tpu' is not known"),
        ("2 --emulate missing", "--emulate is 'missing', which is no number and no variable"),
    ],
)
def test_a_wrong_line_says_what_it_takes(shell: InteractiveShell, line: str, message: str) -> None:
    with pytest.raises(LaunchError) as caught:
        shell.run_cell(f"%%ranks {line}\n1").raise_error()
    assert message in caught.value.message


def test_a_syntax_error_names_the_line_of_the_cell(shell: InteractiveShell) -> None:
    with pytest.raises(LaunchError, match="at line 3 of the cell"):
        shell.run_cell("%%ranks 2\nx = 1\nx = = 2").raise_error()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("x = 1\nreturn x", "'return' outside function at line 3 of the cell: return x"),
        ("!ls", "line 2 of the cell: !ls. Ranks run plain Python: no magic, and no shell command"),
        ("%time 3", "line 2 of the cell: %time 3. Ranks run plain Python"),
    ],
)
def test_a_cell_that_is_no_plain_python_is_quoted(shell: InteractiveShell, body: str, says: str) -> None:
    with pytest.raises(LaunchError) as caught:
        shell.run_cell(f"%%ranks 2\n{body}").raise_error()
    assert says in caught.value.message


def test_an_error_quotes_the_cell_by_its_number_and_line(shell: InteractiveShell) -> None:
    with pytest.raises(RankError) as caught:
        shell.run_cell("%%ranks 2\nx = 0\ny = 1 / x  # here", store_history=True).raise_error()
    assert "cell In[1], line 3\n    y = 1 / x  # here" in caught.value.message


def test_an_error_shows_no_line_of_ppkit_in_the_notebook(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("import ppkit\ndef fail():\n    raise ValueError('mine')", store_history=True)
    shell.run_cell("ppkit.launch(fail)", store_history=True)
    shown = capsys.readouterr().out
    assert "RankError: rank 0 raised ValueError: mine" in shown
    assert "cell In[1], line 3, in fail\n    raise ValueError('mine')" in shown
    assert "ppkit/launch" not in shown


def test_what_cannot_travel_is_named(shell: InteractiveShell) -> None:
    shell.run_cell("import threading\nguard = threading.Lock()")
    with pytest.raises(LaunchError, match=r"the variable 'guard', used by the cell, a _thread\.lock"):
        shell.run_cell("%%ranks 2\nguard.acquire()").raise_error()
