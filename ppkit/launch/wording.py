"""Words for what every report names: a line of the learner's code, and a call of `torch.distributed`."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Sequence
from typing import Any

from ppkit.launch.frames import Frame


def place(frame: Frame) -> str:
    """Name a line as the learner knows it: by its cell, or by its file."""
    filename, line, function = frame
    return f"{cell_name(filename)}, line {line}" + ("" if function == "<module>" else f", in {function}")


def source_line(frame: Frame) -> str:
    """Return the text of a frame's line, if this process knows it."""
    return linecache.getline(frame[0], frame[1]).strip()


def cell_name(filename: str) -> str:
    """Return "cell In[5]" for the file name of a notebook's cell, and other names as they are."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and hasattr(shell.compile, "format_code_name"):
        found = shell.compile.format_code_name(filename)
        if found is not None:
            return " ".join(found).replace("Cell", "cell")
    return filename


def at(frames: Sequence[Frame]) -> str:
    """Quote the innermost of the learner's lines."""
    if not frames:
        return ""
    source = source_line(frames[-1])
    return f", at {place(frames[-1])}" + (f": {source}" if source else "")


def describe_call(call: dict[str, Any]) -> str:
    """Return a pending call as text, such as `recv(from rank 1, tag 0, float32 of shape [8, 16])`."""
    parts = []
    if call["peer"] is not None:
        parts.append(f"{'to' if sends(call) else 'from'} rank {call['peer']}, tag {call['tag']}")
    if call["shape"] is not None:
        parts.append(f"{call['dtype']} of shape {list(call['shape'])}")
    return f"{call['name']}({', '.join(parts)})"


def sends(call: dict[str, Any]) -> bool:
    """Tell whether a call hands a message over."""
    return str(call["name"]).endswith("send")
