"""`import ppkit`: its time and what it loads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.result import Result

_CODE = """
import sys, time
begun = time.perf_counter()
import ppkit
print(time.perf_counter() - begun, *(name for name in ("torch", "numpy", "plotly") if name in sys.modules))
"""


def importing() -> Iterator[Result]:
    """Import ppkit in fresh interpreters."""
    runs = [subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True) for _ in range(5)]
    seconds = median(float(run.stdout.split()[0]) for run in runs)
    loaded = runs[0].stdout.split()[1:]
    yield Result("import ppkit", f"{seconds:.3f} s", "0.15 s", seconds <= 0.15)
    yield Result("of torch, numpy and plotly it loads", ", ".join(loaded) or "none", "none", not loaded)
