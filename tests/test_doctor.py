"""`ppkit doctor`: what it says of a machine that is ready, and of each thing that can be missing."""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

import ppkit
from ppkit import doctor
from ppkit.cli import main
from ppkit.doctor import CHECKS, FIX, NOTE, OK, Finding, examine, is_ready
from ppkit.errors import RankError
from ppkit.launch import devices
from ppkit.packages import PYTHON, RANGES, in_range

from test_project import PROJECT, requirements  # isort: skip  # a test's neighbour


def finding(name: str) -> Finding:
    """What the doctor says on one line."""
    return next(one for one in examine() if one.name == name)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Leaves only some of the checks, so that a test need not wait for all."""

    def leave(**checks: Callable[[], Finding]) -> None:
        monkeypatch.setattr(doctor, "CHECKS", checks)

    return leave


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Finding]:
    """Carries out one check as `examine` does."""

    def one(name: str) -> Finding:
        monkeypatch.setattr(doctor, "CHECKS", {name: CHECKS[name]})
        return finding(name)

    return one


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_args: object, **_kwargs: object) -> Any:
        raise error

    return call


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let these be the versions of packages, and "" a package that is missing."""

    def version(name: str, real: Callable[[str], str] = metadata.version) -> str:
        if versions.get(name) == "":
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)


# --- the whole ---


@pytest.mark.ranks
def test_this_machine_is_ready_and_each_line_says_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert len(lines) == len(CHECKS) + 2
    for name, line in zip(CHECKS, lines, strict=False):
        assert re.match(rf"(ok|note)  +{re.escape(name)}  +\S", line), line
    assert f"Python                 {platform.python_version()}" in printed
    assert re.search(r"2 ranks, all-reduce +gloo: first \d+\.\d s, then \d+\.\d\d s\n", printed)
    assert lines[-1] == "This machine is ready for the course."


def test_what_is_missing_decides_the_exit_status_and_the_last_line(
    only: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    only(
        good=lambda: Finding(OK, "there"),
        broken=raising(OSError("torn\nand long")),
        bad=lambda: Finding(FIX, "not there", "Buy one"),
        spare=lambda: Finding(NOTE, "old", "It will do"),
        absent=raising(ModuleNotFoundError("No module named 'torch'", name="torch")),
    )
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    good                   there",
        f"fix   broken                 the check itself failed: OSError: torn and long. {doctor.INSTALL}",
        "fix   bad                    not there. Buy one",
        "note  spare                  old. It will do",
        f"fix   absent                 cannot be told without the module torch. {doctor.INSTALL}",
        "",
        "Not ready: broken, bad, absent.",
    ]


def test_a_note_is_no_obstacle(only: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    only(spare=lambda: Finding(NOTE, "old", "It will do"))
    assert main(["doctor"]) == 0


def test_json(only: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    only(good=lambda: Finding(OK, "there"), broken=raising(ValueError("no")))
    assert main(["doctor", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ppkit"] == ppkit.__version__
    assert result["ready"] is False
    assert result["checks"][0] == {"status": "ok", "found": "there", "advice": "", "name": "good"}
    assert [one["status"] for one in result["checks"]] == ["ok", "fix"]


# --- Python and packages ---


def test_ranges_are_those_of_pyproject() -> None:
    needed = requirements("lab", "course", "cluster")
    for name, (lowest, below) in RANGES.items():
        assert needed[name].specifier == SpecifierSet(f">={lowest}" + (f",<{below}" if below else "")), name
    assert set(requirements("lab")) <= set(RANGES)
    assert PROJECT["requires-python"] == f">={PYTHON[0]}"
    newest = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line][-1]
    assert in_range(newest, *PYTHON)
    assert not in_range(f"3.{int(newest.split('.')[1]) + 1}", *PYTHON)


@pytest.mark.parametrize(
    ("version", "lowest", "below", "expected"),
    [
        ("2.6", "2.6", "3", True),
        ("2.6.0", "2.6", "", True),
        ("2.13.0+cpu", "2.6", "3", True),
        ("2.5.1", "2.6", "3", False),
        ("3.0.0a1", "2.6", "3", False),
        ("0.10.0", "0.9.5", "0.10", False),
        ("8.0.0rc1", "8.18", "", False),
    ],
)
def test_version_ranges(version: str, lowest: str, below: str, expected: bool) -> None:
    assert in_range(version, lowest, below) is expected


@pytest.mark.parametrize(
    ("version", "status", "advice"),
    [
        ("3.9.18", FIX, "Make the environment with Python 3.10 or newer, below 3.14"),
        ("3.14.1", NOTE, "Newer than what was tested"),
        ("3.10.0", OK, ""),
    ],
)
def test_python(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], version: str, status: str, advice: str
) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: version)
    found = ask("Python")
    assert (found.status, version in found.found) == (status, True)
    assert advice in found.advice


@pytest.mark.parametrize(
    ("check", "package", "version", "advice"),
    [
        ("torch", "torch", "", '-m pip install "torch>=2.6,<3"'),
        ("torch", "torch", "2.5.1", '-m pip install "torch>=2.6,<3"'),
        ("numpy, cloudpickle", "numpy", "", '-m pip install "numpy>=1.26"'),
        ("numpy, cloudpickle", "cloudpickle", "2.2", '-m pip install "cloudpickle>=3.0"'),
        ("Jupyter", "jupyterlab", "3.6.8", '-m pip install "jupyterlab>=4.2,<5"'),
        ("Jupyter", "ipykernel", "", '-m pip install "ipykernel>=6.29"'),
        ("Jupyter", "ipython", "7.0", '-m pip install "ipython>=8.18"'),
        ("Jupyter", "ipywidgets", "", '-m pip install "ipywidgets>=8.1"'),
        ("plotly", "plotly", "5.24.1", '-m pip install "plotly>=6,<8"'),
    ],
)
def test_package_missing_or_out_of_range(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], check: str, package: str, version: str, advice: str
) -> None:
    installed(monkeypatch, **{package: version})
    found = ask(check)
    assert found.status == FIX
    assert f"{package} {version or 'is not installed'}" in found.found
    assert found.advice == f"Run: {sys.executable} {advice}"


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    installed(monkeypatch, jupyterlab="", ipywidgets="")
    assert '"jupyterlab>=4.2,<5" "ipywidgets>=8.1"' in ask("Jupyter").advice


def test_nbgrader_is_for_authors(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    installed(monkeypatch, nbgrader="")
    found = ask("nbgrader")
    assert found.status == NOTE
    assert found.advice.startswith("Only authors need it, for `ppkit build`. Run:")


@pytest.mark.parametrize("version", ["", "8.5.1"])
def test_ipyparallel_is_for_clusters(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], version: str
) -> None:
    installed(monkeypatch, ipyparallel=version)
    found = ask("ipyparallel")
    assert found.status == NOTE
    assert found.advice.startswith("Only `launch(..., cluster=)` needs it, for ranks on a cluster. Run:")
    assert found.advice.endswith('"ipyparallel>=8.6"')


# --- torch, and what it talks over ---


def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = ask("torch")
    assert found.status == FIX
    assert "cannot be imported" in found.found
    assert found.advice.endswith('"torch>=2.6,<3" --force-reinstall')


@pytest.mark.parametrize(
    ("cuda", "hip", "build"),
    [(None, None, "CPU build"), ("12.8", None, "CUDA 12.8 build"), (None, "6.4", "ROCm 6.4 build")],
)
def test_build_of_torch(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], cuda: str | None, hip: str | None, build: str
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert ask("torch").found == f"torch {torch.__version__}, {build}"


@pytest.mark.parametrize("lacking", ["is_available", "is_gloo_available"])
def test_no_gloo(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], lacking: str) -> None:
    import torch.distributed as dist

    monkeypatch.setattr(dist, lacking, lambda: False)
    found = ask("gloo")
    assert found.status == FIX
    assert "pip install" in found.advice


def fake_gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, nccl: bool = True) -> None:
    import torch
    import torch.distributed as dist

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU model {i}")
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)


def test_no_gpu_is_fine(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    fake_gpus(monkeypatch, 0)
    assert ask("GPUs") == Finding(OK, "none: emulated devices will do", name="GPUs")


def test_gpus_are_named_and_two_are_tried(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    fake_gpus(monkeypatch, 1)
    assert ask("GPUs").found == "1: GPU model 0; NCCL is there for a second one"
    fake_gpus(monkeypatch, 2)
    monkeypatch.setattr(ppkit, "launch", lambda *_, device, **__: SimpleNamespace(results=(3.0, 3.0), seconds=1.0))
    assert ask("GPUs").found == "2: GPU model 0, GPU model 1; NCCL: first 1.0 s, then 1.00 s"


def test_gpus_that_do_not_work(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    import torch

    fake_gpus(monkeypatch, 2, nccl=False)
    assert "lacks NCCL" in (found := ask("GPUs")).found
    assert "CUDA_VISIBLE_DEVICES=''" in found.advice
    fake_gpus(monkeypatch, 2)
    monkeypatch.setattr(ppkit, "launch", raising(RankError("rank 1 ended\nwith NCCL", rank=1)))
    assert "rank 1 ended with NCCL" in (found := ask("GPUs")).found
    assert found.status == FIX
    monkeypatch.setattr(torch.cuda, "get_device_name", raising(RuntimeError("driver too old")))
    assert "driver too old" in (found := ask("GPUs")).found
    assert "CUDA_VISIBLE_DEVICES=''" in found.advice


def test_how_ranks_start(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    monkeypatch.setattr(os, "fork", lambda: 0, raising=False)
    assert ask("start of ranks").status == OK
    monkeypatch.delattr(os, "fork")
    found = ask("start of ranks")
    assert (found.status, "WSL 2" in found.advice) == (NOTE, True)


def test_no_loopback(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "eth0")])
    found = ask("loopback interface")
    assert (found.status, found.found) == (FIX, "no interface lo among eth0")
    assert "ip link set lo up" in found.advice


def test_loopback_that_lets_nothing_through(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    monkeypatch.setattr(socket, "create_connection", raising(OSError("no route")))
    found = ask("loopback interface")
    assert (found.status, found.found) == (FIX, "127.0.0.1 cannot be reached: no route")
    assert "firewall" in found.advice


def test_ranks_that_fail(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    monkeypatch.setattr(ppkit, "launch", raising(RankError("rank 0 was ended\n  by signal 9", rank=0)))
    found = ask("2 ranks, all-reduce")
    assert (found.status, found.found) == (FIX, "failed: rank 0 was ended by signal 9")
    assert "launch in a notebook" in found.advice


def test_ranks_that_compute_nonsense(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    run = SimpleNamespace(results=(3.0, 1.0), seconds=0.1, backend="gloo")
    monkeypatch.setattr(ppkit, "launch", lambda *_, **__: run)
    found = ask("2 ranks, all-reduce")
    assert found.status == FIX
    assert "1 + 2 gave (3.0, 1.0)" in found.found


# --- the machine ---


@pytest.mark.parametrize(
    ("cores", "memory", "status", "expected"),
    [
        (2, 8e9, OK, "2 cores, 8.0 GB of memory free: up to 16 ranks are comfortable"),
        (1, None, OK, "1 core, memory unknown: up to 16 ranks are comfortable"),
        (64, 500e9, OK, "64 cores, 500.0 GB of memory free: up to 200 ranks are comfortable"),
        (8, 0.5e9, FIX, "8 cores, 0.5 GB of memory free: up to 3 ranks are comfortable"),
    ],
)
def test_ranks_at_once(
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[str], Finding],
    cores: int,
    memory: float | None,
    status: str,
    expected: str,
) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: cores)
    monkeypatch.setattr(devices, "available_bytes", lambda: memory if memory is None else int(memory))
    found = ask("ranks at once")
    assert (found.status, found.found) == (status, expected)
    assert ("more memory" in found.advice) == (status == FIX)


def test_temporary_folder(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    found = ask("temporary folder")
    assert found.status == FIX
    assert found.found.startswith("cannot be written to: ")
    assert "TMPDIR" in found.advice
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    found = ask("temporary folder")
    assert (found.status, found.found) == (FIX, f"{tmp_path}, 0.0 GB free")
    assert found.advice.startswith("Make room")


# --- what shows the lessons ---


@pytest.mark.parametrize("starts", ["python", "python3", sys.executable])
def test_kernel_is_this_python(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], starts: str) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: SimpleNamespace(argv=[starts]))
    assert ask("kernel") == Finding(OK, "python3 is this Python", name="kernel")


def test_kernel_is_another_python(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding]) -> None:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: SimpleNamespace(argv=["/opt/bin/python"]))
    found = ask("kernel")
    assert (found.status, found.found) == (FIX, "python3 is another Python, /opt/bin/python")
    assert f"{sys.executable} -m ipykernel install --sys-prefix" in found.advice
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", raising(NoSuchKernel("python3")))
    assert ask("kernel").status == FIX
    monkeypatch.setitem(sys.modules, "jupyter_client.kernelspec", None)
    assert ask("kernel").found == "cannot be told without the module jupyter_client.kernelspec"


def test_plotly_extension(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], tmp_path: Path) -> None:
    import jupyter_core.paths

    monkeypatch.setattr(jupyter_core.paths, "jupyter_path", lambda *_: [str(tmp_path / "a"), str(tmp_path / "b")])
    found = ask("plotly in JupyterLab")
    assert (found.status, found.found) == (FIX, f"not in {tmp_path / 'a'}")
    assert "--force-reinstall" in found.advice
    extension = tmp_path / "b" / "jupyterlab-plotly"
    extension.mkdir(parents=True)
    (extension / "package.json").write_text('{"version": "6.1.0"}', encoding="utf-8")
    assert ask("plotly in JupyterLab").found == f"6.1.0, {extension}"


def test_digits(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Finding], tmp_path: Path) -> None:
    readme = (Path(ppkit.__file__).parent / "_data" / "README.md").read_text(encoding="utf-8")
    assert f"`{doctor.DIGITS}`" in readme
    assert ask("digits") == Finding(OK, "intact", name="digits")
    (tmp_path / "_data").mkdir()
    copy = tmp_path / "_data" / "digits.bin.gz"
    real = (Path(ppkit.__file__).parent / "_data" / "digits.bin.gz").read_bytes()
    monkeypatch.setattr(ppkit, "__file__", str(tmp_path / "__init__.py"))
    for content, problem in (
        (None, "cannot be read"),
        (b"no gzip", "cannot be read"),
        (real[:1000], "cannot be read"),
        (real[:1000] + bytes(20) + real[1020:], ""),
        (gzip.compress(b"other"), "is damaged"),
    ):
        if content is not None:
            copy.write_bytes(content)
        found = ask("digits")
        assert (found.status, found.advice) == (FIX, "Install ppkit anew"), found
        assert problem in found.found


def test_nothing_found_is_not_ready_by_accident() -> None:
    assert is_ready([])
    assert not is_ready([Finding(OK, ""), Finding(FIX, "")])
