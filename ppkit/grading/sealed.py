"""A learner's answers on their way to the grader: plain data as it is, functions as bytes that only ranks open."""

from __future__ import annotations

import base64
import inspect
from typing import Any

from ppkit.launch.packing import Packed, pack
from ppkit.schedule import Action, Schedule

__all__ = ["close", "open_in_grader"]

_DEPTH = 6  # of lists in lists; an answer needs two
_MOST = 10**300  # JSON cannot read thousands of digits


def _parameter(name: str, kind: int, has_default: bool) -> inspect.Parameter:
    # The value of a default is of no interest, and any text would have to be evaluated.
    default = ... if has_default else inspect.Parameter.empty
    return inspect.Parameter(name, inspect._ParameterKind(kind), default=default)


def close(value: Any, depth: int = 0) -> dict[str, Any]:
    """Turn an answer into what JSON holds; runs in the process that ran the learner's cells."""
    try:
        return _close(value, depth)
    except Exception as error:  # of a learner's own `__repr__`, say; the other answers are handed over all the same
        return {"other": [type(value).__name__, f"<a value that cannot be read: {type(error).__name__}>"]}


def _close(value: Any, depth: int) -> dict[str, Any]:
    match value:
        case int() if not isinstance(value, bool) and abs(value) >= _MOST:
            return {"other": ["int", "<a number of more than 300 digits>"]}
        case None | bool() | int():
            return {"plain": value}
        case str():
            return {"plain": value.encode(errors="replace").decode()}  # half a character would fail when it is written
        case float():
            return {"float": repr(value)}
        case _ if value is Ellipsis:
            return {"blank": True}
        case Action():
            return {"plain": str(value)}
        case list() | tuple() if depth < _DEPTH:
            # A named tuple and torch.Size are tuples.
            return {"list" if isinstance(value, list) else "tuple": [close(item, depth + 1) for item in value]}
        case dict() if depth < _DEPTH:
            return {"pairs": [[close(key, depth + 1), close(item, depth + 1)] for key, item in value.items()]}
        case Schedule():
            sizes = [value.n_ranks, value.n_stages, value.n_microbatches]
            rows = [[str(action) for action in row] for row in value.actions]
            return {"schedule": [value.name, sizes, rows, list(value.stage_to_rank)]}
    if callable(value):
        return _close_function(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of torch or numpy
        return close(value.item())
    if hasattr(value, "tolist") and depth == 0:
        return close(value.tolist())
    return {"other": [type(value).__name__, repr(value)[:200]]}


def _close_function(function: Any) -> dict[str, Any]:
    name = str(getattr(function, "__name__", type(function).__name__))
    try:
        signature = inspect.signature(function)
        parameters = [
            (one.name, int(one.kind), one.default is not inspect.Parameter.empty)
            for one in signature.parameters.values()
        ]
    except (TypeError, ValueError):
        parameters = None
    try:
        content, sources = pack(function)
    except Exception as error:
        return {"function": [name, None, parameters, f"{type(error).__name__}: {error}", []]}
    return {"function": [name, base64.b64encode(content).decode(), parameters, "", sorted(sources)]}


class _Other:
    """A value that is no possible answer; it shows itself as it did in the notebook."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        return self._shown


def open_in_grader(closed: dict[str, Any]) -> Any:
    """Make of what `close` gave what a check can judge; nothing of it is executed."""
    ((kind, value),) = closed.items()
    match kind:
        case "plain":
            return value
        case "float":
            return float(value)
        case "blank":
            return ...
        case "list":
            return [open_in_grader(item) for item in value]
        case "tuple":
            return tuple(open_in_grader(item) for item in value)
        case "pairs":
            return {open_in_grader(key): open_in_grader(item) for key, item in value}
        case "schedule":
            name, sizes, rows, stage_to_rank = value
            return Schedule(name, sizes[0], sizes[1], sizes[2], rows, tuple(stage_to_rank))
        case "function":
            name, payload, parameters, problem, sources = value
            signature = None if parameters is None else inspect.Signature([_parameter(*one) for one in parameters])
            return Packed(name, payload and base64.b64decode(payload), signature, problem, sources)
    return type(value[0], (_Other,), {})(value[1])
