"""What is raised when the course's own files are at fault."""

from __future__ import annotations

from ppkit.errors import PpkitError

__all__ = ["CourseError"]


class CourseError(PpkitError, ValueError):
    """A lab or a notebook is not written as the course needs it."""
