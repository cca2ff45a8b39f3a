"""Limits on the memory of a process, so that a mistake costs that process and not the machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["has_memory_limits", "limit_memory", "memory_limit"]

_STATUS = Path("/proc/self/status")


def has_memory_limits() -> bool:
    """Tell whether this system keeps such limits: Linux does; macOS ignores them, and Windows has none."""
    return sys.platform == "linux" and _STATUS.exists()


def limit_memory(nbytes: int) -> None:
    """Let this process have `nbytes` of memory more than it has now, for good; nothing happens without limits.

    A request for more fails at once: torch raises a RuntimeError, Python a MemoryError. It is the RLIMIT_DATA of
    https://man7.org/linux/man-pages/man2/setrlimit.2.html, so address space that is only reserved does not count.
    """
    if has_memory_limits():
        import resource

        most = _in_use() + nbytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@contextmanager
def memory_limit(nbytes: int) -> Iterator[None]:
    """Limit the memory as `limit_memory` does, inside the block alone: who reports a failure needs some, too."""
    if not has_memory_limits():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = _in_use() + nbytes
    if before[1] != resource.RLIM_INFINITY:
        most = min(most, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _in_use() -> int:
    """Bytes of this process that count against its limit."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
