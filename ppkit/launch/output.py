"""Shows what the ranks print: under their names, in an order that doesn't depend on timing."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

_AFTER = 1.0  # seconds before a run is worth a live line
_EVERY = 0.2
_WINDOW = 5.0  # seconds over which steps a second are taken
_WIDTH = 100


def read_output(path: Path) -> str:
    """Return what a rank has printed so far; bytes that are no UTF-8 are shown as escapes."""
    try:
        return path.read_bytes().decode("utf-8", errors="backslashreplace")
    except FileNotFoundError:
        return ""


def labelled(outputs: tuple[str, ...]) -> str:
    """Return the lines of all ranks, rank by rank, each line under its rank's name."""
    width = len(str(len(outputs) - 1))
    lines = [f"rank {rank:>{width}} | {line}" for rank, text in enumerate(outputs) for line in text.splitlines()]
    return "".join(line + "\n" for line in lines)


class LiveLine:
    """One line that tells, while a run takes more than a second, how far it is and what was printed last.

    Where ranks take optimizer steps, it names the rank that is furthest behind, its step, and its steps a second. It
    is written over itself and wiped at the end. Set the environment variable PPKIT_LIVE=0 for none, as tests do that
    compare a notebook's output.

    Args:
        paths: of each rank's output.
        steps: returns how many optimizer steps each rank has taken.
    """

    def __init__(self, paths: list[Path], steps: Callable[[], list[int]]) -> None:
        self._paths = paths
        self._steps = steps
        self._seen: deque[tuple[float, int]] = deque()  # when the last rank was at which step, over the last seconds
        self._start = self._shown = time.perf_counter()
        self._length = 0
        self._enabled = os.environ.get("PPKIT_LIVE", "1") != "0" and "PYTEST_VERSION" not in os.environ

    def update(self, doing: str) -> None:
        """Write the line anew, if it is time to."""
        now = time.perf_counter()
        if not self._enabled or now - self._start < _AFTER or now - self._shown < _EVERY:
            return
        self._shown = now
        self._write(f"{now - self._start:5.1f} s, {doing}{self._progress(now)}{self._last_print()}"[:_WIDTH])

    def _progress(self, now: float) -> str:
        """Return where the rank that is furthest behind is, and how fast it goes."""
        steps = self._steps()
        if not any(steps):
            return ""
        last, first = min(steps), max(steps)
        self._seen.append((now, last))
        while now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        since, then = self._seen[0] if len(self._seen) > 1 else (self._start, 0)
        ahead = f" (rank {steps.index(first)}: {first})" if first > last else ""
        return f"; rank {steps.index(last)} at step {last}{ahead}, {(last - then) / (now - since):.3g} steps/s"

    def _last_print(self) -> str:
        """Return the last line of the rank that printed last."""
        written = [(path.stat().st_mtime, rank, path) for rank, path in enumerate(self._paths) if path.exists()]
        if not written:
            return ""
        _, rank, path = max(written)
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4 * _WIDTH))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"; rank {rank} | {last.strip()}" if last else ""

    def _write(self, text: str) -> None:
        sys.stdout.write("\r" + text.ljust(self._length))
        sys.stdout.flush()
        self._length = len(text)

    def close(self) -> None:
        """Wipe the line."""
        if self._length:
            sys.stdout.write("\r" + " " * self._length + "\r")
            sys.stdout.flush()
