"""Generate exercises/ from solutions/, file for file, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ppkit.course.errors import CourseError
from ppkit.course.release import edited_cells, release

__all__ = ["Report", "build", "find_differences"]

SOLUTIONS, EXERCISES = "solutions", "exercises"


@dataclass
class Report:
    """What a build did; paths are relative to the course's root."""

    written: list[PurePosixPath] = field(default_factory=list)
    unchanged: list[PurePosixPath] = field(default_factory=list)
    leftover: list[PurePosixPath] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines to print."""
        return [
            *(f"wrote {path}" for path in self.written),
            *(f"{path} has no source in {SOLUTIONS}/; delete it if you can" for path in self.leftover),
            f"{len(self.written)} written, {len(self.unchanged)} unchanged.",
        ]


def build(root: Path, *, force: bool = False) -> Report:
    """Write the exercises of every lab.

    Args:
        root: The folder that holds `solutions/`; `exercises/` is made beside it.
        force: Overwrite exercises even where an answer has been filled in.

    Returns:
        What was written and what was already right. Files without a source are named, never deleted.

    Raises:
        CourseError: There are no solutions, one is badly written, or an exercise holds somebody's work.
            Nothing has been written then.
    """
    wanted = _wanted(root)
    report = Report(leftover=_leftover(root, wanted))
    for path, content in wanted.items():
        same = _stored(root / path) == content
        (report.unchanged if same else report.written).append(path)
    if not force:
        _refuse_to_overwrite_work(root, report.written)
    for path in report.written:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(wanted[path])
    return report


def find_differences(root: Path) -> list[str]:
    """Compare exercises/ with what the solutions give, and write nothing.

    Args:
        root: The folder that holds `solutions/` and `exercises/`.

    Returns:
        One line for each file that is missing, differs or has no source; none where all are right.

    Raises:
        CourseError: There are no solutions, or one is badly written.
    """
    wanted = _wanted(root)
    differences = []
    for path, content in wanted.items():
        stored = _stored(root / path)
        if stored is None:
            differences.append(f"{path} is missing")
        elif stored != content:
            differences.append(f"{path} differs from its solution, {_first_difference(stored, content)}")
    return [*differences, *(f"{path} has no source in {SOLUTIONS}/" for path in _leftover(root, wanted))]


def _wanted(root: Path) -> dict[PurePosixPath, bytes]:
    """Return every exercise file that the solutions give, by its path under the root."""
    solutions = root / SOLUTIONS
    if not solutions.is_dir():
        raise CourseError(
            f"there is no folder {SOLUTIONS}/ in {root.resolve()}. "
            "Run this in the root of the course, or name the root: ppkit build PATH"
        )
    wanted = {}
    for source in _files(solutions):
        path = PurePosixPath(EXERCISES, *source.relative_to(solutions).parts)
        if source.suffix == ".ipynb":
            where = f"{SOLUTIONS}/{source.relative_to(solutions).as_posix()}"
            wanted[path] = release(source.read_text(encoding="utf-8"), where).encode()
        else:
            wanted[path] = source.read_bytes()
    if not any(path.suffix == ".ipynb" for path in wanted):
        raise CourseError(f"{solutions.resolve()} holds no notebook; a lab is {SOLUTIONS}/NAME/NAME.ipynb")
    return wanted


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of all labs in order, without caches and hidden files."""
    for path in sorted(folder.glob("*/**/*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in parts):
            yield path


def _leftover(root: Path, wanted: dict[PurePosixPath, bytes]) -> list[PurePosixPath]:
    """Return the notebooks in exercises/ that no solution gives; other files there may be a learner's."""
    exercises = root / EXERCISES
    found = (PurePosixPath(EXERCISES, *path.relative_to(exercises).parts) for path in _files(exercises))
    return [path for path in found if path.suffix == ".ipynb" and path not in wanted]


def _stored(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _refuse_to_overwrite_work(root: Path, paths: list[PurePosixPath]) -> None:
    """Stop before an answer that a learner has filled in is replaced by a stub."""
    for path in paths:
        stored = _stored(root / path)
        if stored is None or path.suffix != ".ipynb":
            continue
        edited = edited_cells(stored.decode("utf-8"), str(path))
        if edited:
            cells = "cell" if len(edited) == 1 else "cells"
            raise CourseError(
                f"{path} holds somebody's work in {cells} {', '.join(map(str, edited))}. "
                "Move that file away first, or overwrite it with: ppkit build --force"
            )


def _first_difference(stored: bytes, content: bytes) -> str:
    pairs = zip(stored.split(b"\n"), content.split(b"\n"), strict=False)
    for number, (ours, theirs) in enumerate(pairs, start=1):
        if ours != theirs:
            return f"first on line {number}"
    return "in length"
