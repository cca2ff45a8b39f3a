"""What a process has started, read from /proc."""

from __future__ import annotations

from pathlib import Path

from ppkit.launch.server import SERVER_NAME, SPARE_NAME


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


def names(root: int) -> list[str]:
    """What a process has started, by name; ppkit's own processes say what they are."""
    found = []
    for pid in descendants(root):
        try:
            found.append(Path(f"/proc/{pid}/comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def busy(root: int) -> list[str]:
    """The same without the fork server and its spares, which stay while nothing runs."""
    return [name for name in names(root) if name not in (SERVER_NAME, SPARE_NAME)]
