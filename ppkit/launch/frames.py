"""The learner's part of a stack: what is left without the frames of ppkit, torch and the interpreter."""

from __future__ import annotations

import importlib.util
import os
import threading
from functools import lru_cache
from pathlib import Path
from types import FrameType

Frame = tuple[str, int, str]
"""File name, line, function."""

RANK_FILE = str(Path(__file__).with_name("rank.py"))  # what stands below it started the rank


def learner_frames(frame: FrameType | None) -> list[Frame]:
    """Return the learner's frames below and at `frame`, the outermost first."""
    found = []
    while frame is not None and frame.f_code.co_filename != RANK_FILE:
        if not is_internal(frame.f_code.co_filename):
            found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


def is_internal(filename: str) -> bool:
    """Tell whether a file belongs to ppkit, torch or the interpreter's own threads and imports."""
    return filename.startswith(_internal_folders()) or filename.startswith("<frozen")


@lru_cache(maxsize=1)
def _internal_folders() -> tuple[str, ...]:
    specs = [importlib.util.find_spec(name) for name in ("ppkit", "torch")]
    folders = [folder for spec in specs if spec for folder in spec.submodule_search_locations or ()]
    return (*(str(folder) + os.sep for folder in folders), threading.__file__)


_known: dict[str, bool] = {}  # what `is_internal` said of a file


def learner_line(frame: FrameType | None) -> Frame | None:
    """Return the innermost of the learner's lines at or below `frame`, or None; quick, for each call of a rank."""
    while frame is not None:
        code = frame.f_code
        filename = code.co_filename
        internal = _known.get(filename)
        if internal is None:
            internal = _known[filename] = is_internal(filename)
        if not internal:
            return filename, frame.f_lineno, code.co_name
        frame = frame.f_back
    return None
