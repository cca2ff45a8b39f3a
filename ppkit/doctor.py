"""Is this machine ready for the course? One check a line: what was found, and what to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import warnings
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import ppkit
from ppkit.packages import PYTHON, RANGES, in_range, install

__all__ = ["CHECKS", "Finding", "as_json", "examine", "is_ready", "verdict"]

DIGITS = "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"  # SHA-256; also in _data/README.md
RANKS = 4  # the most that a lesson starts
FREE_BYTES = 100e6  # of the temporary folder; a run leaves a few megabytes there while it lasts
TIMEOUT = 120  # seconds for one all-reduce of two ranks
INSTALL = "Install the course, in its folder: make lab, or pip install -e '.[lab]'"

OK, NOTE, FIX = "ok", "note", "fix"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        status: "ok"; "note", for what the course can do without; or "fix", for what it cannot.
        found: what there is.
        advice: what to do; "" where nothing is to be done.
        name: what was checked.
    """

    status: str
    found: str
    advice: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.status:4}  {self.name:21}  {self.found}" + (f". {self.advice}" if self.advice else "")


def examine() -> Iterator[Finding]:
    """Carry out all checks, one after the other; one that fails or raises hides no other. Nothing leaves the machine.

    Returns:
        What each check found, as soon as it has.
    """
    for name, check in CHECKS.items():
        try:
            finding = check()
        except ModuleNotFoundError as error:
            finding = Finding(FIX, f"cannot be told without the module {error.name}", INSTALL)
        except Exception as error:  # whatever a broken installation raises
            finding = Finding(FIX, f"the check itself failed: {type(error).__name__}: {error}", INSTALL)
        yield Finding(finding.status, " ".join(finding.found.split()), finding.advice, name)


def is_ready(findings: Iterable[Finding]) -> bool:
    """Tell whether there is all that the course needs."""
    return all(finding.status != FIX for finding in findings)


def verdict(findings: Iterable[Finding]) -> str:
    """Return the last line."""
    bad = [finding.name for finding in findings if finding.status == FIX]
    return f"Not ready: {', '.join(bad)}." if bad else "This machine is ready for the course."


def as_json(findings: Iterable[Finding]) -> str:
    """Return the results for other programs."""
    findings = list(findings)
    return json.dumps(
        {"ppkit": ppkit.__version__, "ready": is_ready(findings), "checks": [asdict(one) for one in findings]}, indent=2
    )


# Python and packages


def _packages(*names: str) -> Finding:
    """Tell whether packages are installed in the versions that the course takes, without importing them."""
    there, wrong = [], []
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            there.append(f"{name} is not installed")
            wrong.append(name)
        else:
            there.append(f"{name} {version}")
            if not in_range(version, *RANGES[name]):
                wrong.append(name)
    return Finding(FIX if wrong else OK, ", ".join(there), install(*wrong) if wrong else "")


def _python() -> Finding:
    version = platform.python_version()
    if not in_range(version, PYTHON[0], ""):
        return Finding(FIX, version, f"Make the environment with Python {PYTHON[0]} or newer, below {PYTHON[1]}")
    if not in_range(version, *PYTHON):
        return Finding(NOTE, version, f"Newer than what was tested: from {PYTHON[0]}, below {PYTHON[1]}")
    return Finding(OK, f"{version}, {sys.executable}")


# torch, and what it talks over


def _torch() -> Finding:
    finding = _packages("torch")
    if finding.status != OK:
        return finding
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding(FIX, f"{finding.found} cannot be imported: {error}", f"{install('torch')} --force-reinstall")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return Finding(
        OK, f"torch {torch.__version__}, {build if torch.version.cuda or torch.version.hip else 'CPU'} build"
    )


def _gloo() -> Finding:
    import torch.distributed as dist

    if dist.is_available() and dist.is_gloo_available():
        return Finding(OK, "there")
    return Finding(FIX, "this build of torch lacks it", f"{install('torch')} --force-reinstall")


def _gpus() -> Finding:
    import torch
    import torch.distributed as dist

    count = torch.cuda.device_count()
    if not count:
        return Finding(OK, "none: emulated devices will do")
    found, advice = f"{count}", "To leave them alone, set CUDA_VISIBLE_DEVICES='' before you start Jupyter"
    try:
        found += f": {', '.join(torch.cuda.get_device_name(i) for i in range(count))}"
        if not dist.is_nccl_available():
            return Finding(FIX, f"{found}; this build of torch lacks NCCL", advice)
        if count == 1:
            return Finding(OK, f"{found}; NCCL is there for a second one")
        return _all_reduce("auto", f"{found}; NCCL")
    except (RuntimeError, ValueError) as error:  # a driver that does not fit, a failed run
        return Finding(FIX, f"{found}; they do not work: {error}", advice)


def _how_ranks_start() -> Finding:
    if hasattr(os, "fork"):
        return Finding(OK, "forked from a server that has torch in memory")
    return Finding(NOTE, "each as an interpreter of its own", "Expect seconds a run; in WSL 2 they are forked")


def _loopback() -> Finding:
    from ppkit.launch.preload import LOOPBACK  # the one that the ranks are told to use

    wanted = LOOPBACK.get(sys.platform)
    names = [name for _, name in socket.if_nameindex()]
    if wanted and wanted not in names:
        return Finding(FIX, f"no interface {wanted} among {', '.join(names)}", f"Run: sudo ip link set {wanted} up")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        advice = "Ranks talk over 127.0.0.1: switch the interface on, and allow it in the firewall or container"
        return Finding(FIX, f"127.0.0.1 cannot be reached: {error}", advice)
    return Finding(OK, f"{wanted or '127.0.0.1'}, reachable")


def _sum_of_ranks() -> float:
    import torch
    import torch.distributed as dist

    total = torch.tensor([dist.get_rank() + 1.0], device="cuda" if torch.cuda.is_available() else "cpu")
    dist.all_reduce(total)
    return float(total)


def _all_reduce(device: str = "cpu", before: str = "") -> Finding:
    from ppkit import launch

    cold, warm = (launch(_sum_of_ranks, device=device, timeout=TIMEOUT, show=False) for _ in range(2))
    times = f"{before or cold.backend}: first {cold.seconds:.1f} s, then {warm.seconds:.2f} s"
    if cold.results != (3.0, 3.0) or warm.results != (3.0, 3.0):
        wrong = f"1 + 2 gave {cold.results}, then {warm.results}"
        return Finding(FIX, wrong, f"{install('torch')} --force-reinstall")
    return Finding(OK, times)


def _two_ranks() -> Finding:
    from ppkit.errors import PpkitError

    try:
        return _all_reduce()
    except PpkitError as error:
        return Finding(FIX, f"failed: {error}", "See the lines above first; then try launch in a notebook, for more")


# The machine


def _ranks_at_once() -> Finding:
    from ppkit.launch.devices import available_bytes, check_n_ranks, usable_cores
    from ppkit.launch.server import MAX_RANKS

    def is_too_many(n_ranks: int) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_n_ranks(n_ranks)
        return bool(caught)

    comfortable = bisect_left(range(1, MAX_RANKS + 1), True, key=is_too_many)
    cores, memory = usable_cores(), available_bytes()
    free = "memory unknown" if memory is None else f"{memory / 1e9:.1f} GB of memory free"
    found = f"{cores} core{'s' * (cores > 1)}, {free}: up to {comfortable} ranks are comfortable"
    if comfortable < RANKS:
        return Finding(FIX, found, f"Lessons start {RANKS}: end other programs, or take a machine with more memory")
    return Finding(OK, found)


def _temporary_folder() -> Finding:
    advice = "Make room there, or set TMPDIR to a folder that has some"
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
    except OSError as error:
        return Finding(FIX, f"cannot be written to: {error}", advice)
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / 1e9:.1f} GB free"
    return Finding(OK, found) if free >= FREE_BYTES else Finding(FIX, found, advice)


# What shows the lessons


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    starts = KernelSpecManager().get_kernel_spec("python3").argv[0]
    # Jupyter takes a bare name for the Python that it runs in itself.
    if starts in ("python", "python3", "python{}.{}".format(*sys.version_info)):
        return Finding(OK, "python3 is this Python")
    if os.path.normcase(os.path.abspath(starts)) == os.path.normcase(os.path.abspath(sys.executable)):
        return Finding(OK, "python3 is this Python")
    advice = f"Run: {sys.executable} -m ipykernel install --sys-prefix; or open the course by: make lab"
    return Finding(FIX, f"python3 is another Python, {starts}", advice)


def _plotly_extension() -> Finding:
    from jupyter_core.paths import jupyter_path

    folders = [Path(folder, "jupyterlab-plotly") for folder in jupyter_path("labextensions")]
    for folder in folders:
        if (folder / "package.json").is_file():
            version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
            return Finding(OK, f"{version}, {folder}")
    advice = f"Timelines would show as pictures that do not move. {install('plotly')} --force-reinstall"
    return Finding(FIX, f"not in {folders[0].parent}", advice)


def _optional(name: str, use: str) -> Finding:
    """Look for a package that the course can do without; `use` says who cannot."""
    finding = _packages(name)
    return finding if finding.status == OK else Finding(NOTE, finding.found, f"{use}. {finding.advice}")


def _digits() -> Finding:
    path = Path(ppkit.__file__).parent / "_data" / "digits.bin.gz"
    try:
        intact = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() == DIGITS
    except (OSError, EOFError, zlib.error) as error:
        return Finding(FIX, f"{path} cannot be read: {error}", "Install ppkit anew")
    return Finding(OK, "intact") if intact else Finding(FIX, f"{path} is damaged", "Install ppkit anew")


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": _python,
    "torch": _torch,
    "numpy, cloudpickle": lambda: _packages("numpy", "cloudpickle"),
    "gloo": _gloo,
    "GPUs": _gpus,
    "start of ranks": _how_ranks_start,
    "loopback interface": _loopback,
    "2 ranks, all-reduce": _two_ranks,
    "ranks at once": _ranks_at_once,
    "temporary folder": _temporary_folder,
    "Jupyter": lambda: _packages("jupyterlab", "ipykernel", "ipython", "ipywidgets"),
    "kernel": _kernel,
    "plotly": lambda: _packages("plotly"),
    "plotly in JupyterLab": _plotly_extension,
    "nbgrader": lambda: _optional("nbgrader", "Only authors need it, for `ppkit build`"),
    "ipyparallel": lambda: _optional("ipyparallel", "Only `launch(..., cluster=)` needs it, for ranks on a cluster"),
    "digits": _digits,
}
