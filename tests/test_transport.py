"""The kernels of executed and tested notebooks are reached by sockets that no rank can take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
kernels = pytest.importorskip("ppkit.course.kernels")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs Unix sockets")

ASKED = "assert get_ipython().kernel.parent.transport == 'ipc'"


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    path = tmp_path / "asks.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ASKED)]), path)
    return path


def test_the_way_is_by_sockets_where_their_paths_are_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", "/home/someone/.local/share/jupyter/runtime")
    assert kernels.SocketKernelManager().transport == "ipc"
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", "/home/" + 100 * "x")
    assert kernels.SocketKernelManager().transport == "tcp"


@pytest.mark.slow
@pytest.mark.parametrize("command", [["pytest", "-q", "-p", "conftest", "--nbval"], ["ppkit.course.execute"]])
def test_kernels_are_reached_by_sockets(command: list[str], notebook: Path, project_root: Path) -> None:
    if kernels.SocketKernelManager().transport != "ipc":
        pytest.skip("the path of this account's runtime folder is too long for a socket")
    ran = subprocess.run(
        [sys.executable, "-m", *command, str(notebook)], cwd=project_root, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
