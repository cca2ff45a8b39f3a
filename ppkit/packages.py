"""The versions of Python and of packages that the course takes."""

from __future__ import annotations

import re
import sys

__all__ = ["PYTHON", "RANGES", "in_range", "install"]

# From the lowest version on, and below the highest one; as in pyproject.toml, which a test compares.
RANGES = {
    "cloudpickle": ("3.0", ""),
    "ipykernel": ("6.29", ""),
    "ipyparallel": ("8.6", ""),
    "ipython": ("8.18", ""),
    "ipywidgets": ("8.1", ""),
    "jupyterlab": ("4.2", "5"),
    "nbgrader": ("0.9.5", "0.10"),
    "numpy": ("1.26", ""),
    "plotly": ("6", "8"),
    "torch": ("2.6", "3"),
}
PYTHON = ("3.10", "3.14")  # the versions that are tested


def in_range(version: str, lowest: str, below: str) -> bool:
    """Tell whether a version is at least `lowest`, and lower than `below` where that is not ""."""
    return _numbers(version) >= _numbers(lowest) and (not below or _numbers(version) < _numbers(below))


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: 2.13.0+cpu gives (2, 13, 0)."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version)[0])))


def install(*names: str) -> str:
    """Return the advice to install packages in the versions that the course takes."""
    wanted = " ".join(
        f'"{name}>={RANGES[name][0]}' + (f',<{below}"' if (below := RANGES[name][1]) else '"') for name in names
    )
    return f"Run: {sys.executable} -m pip install {wanted}"
