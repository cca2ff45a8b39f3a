"""Execute notebooks in place and store their outputs: `python -m ppkit.course.execute FOLDER …`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import ipykernel.kernelspec
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets import default

from ppkit.course.kernels import SocketKernelManager

__all__ = ["execute", "main"]

CELL_TIMEOUT = 120  # seconds; as the tests give each cell


class _ThisPython(KernelSpecManager):
    """Finds one kernel, the Python that runs now, whatever kernels the machine has registered."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**ipykernel.kernelspec.get_kernel_dict())


class _Kernel(SocketKernelManager, AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return _ThisPython(parent=self)


def execute(path: Path) -> float:
    """Run a notebook top to bottom in its own folder, and store it with its outputs.

    Args:
        path: The notebook; overwritten once every cell has run.

    Returns:
        The seconds it took.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed. The file is as before.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        kernel_manager_class=_Kernel,
        timeout=CELL_TIMEOUT,
        record_timing=False,  # when a cell ran is no part of what it shows
        store_widget_state=False,  # megabytes, with other random ids in every run
        resources={"metadata": {"path": str(path.parent)}},
    )
    began = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - began
    notebook.metadata.get("language_info", {}).pop("version", None)  # differs from machine to machine
    path.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    return seconds


def main(arguments: Sequence[str]) -> int:
    """Execute every notebook under the given folders.

    Args:
        arguments: Folders or notebooks.

    Returns:
        The exit code: 0, or 1 where there was nothing to execute.
    """
    os.environ.setdefault("PPKIT_LIVE", "0")  # what is stored must not depend on a live display
    paths = list(_notebooks(Path(argument) for argument in arguments))
    for path in paths:
        print(f"{path} … ", end="", flush=True)
        print(f"{execute(path):.0f} s")
    if not paths:
        print(f"no notebooks in {', '.join(arguments) or 'no folder'}", file=sys.stderr)
    return 0 if paths else 1


def _notebooks(roots: Iterable[Path]) -> Iterable[Path]:
    for root in roots:
        if root.is_file():
            yield root
        else:
            yield from (path for path in sorted(root.rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
