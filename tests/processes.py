"""What a process has started, read from /proc."""

from __future__ import annotations

from pathlib import Path


def descendants(root: int) -> set[int]:
    """Process ids of all that a process has started, and of what these have started in turn."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}
