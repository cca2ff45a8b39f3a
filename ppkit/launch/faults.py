"""Where a rank is, told by `faulthandler`: when it crashes, or when it holds Python's lock and cannot answer."""

from __future__ import annotations

import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path


def report_faults(path: Path) -> None:
    """Let this process write where it is when it crashes, or at a signal, whatever holds Python's lock.

    A core file would be hundreds of megabytes in the learner's folder, and seconds late: none is written.
    """
    with suppress(ImportError, OSError, ValueError):  # Windows has neither
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    file = path.open("w")
    file.write(f"process {os.getpid()}\n\n")
    file.flush()
    faulthandler.enable(file)  # of all threads: an abort in gloo's own thread is about the learner's line
    if hasattr(faulthandler, "register"):  # not on Windows
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)
    _open_files[:] = [file]


_open_files: list[object] = []  # open as long as the process


def ask_for_stack(path: Path) -> bool:
    """Ask the process that reports to `path` to write where it is; False if it cannot be asked."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        os.kill(int(path.read_text().split()[1]), signal.SIGUSR1)
        return True
    return False
