"""Pickles a cell's function with all it uses, and says by name what cannot travel."""

from __future__ import annotations

import functools
import inspect
import io
import linecache
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import cloudpickle

from ppkit.errors import LaunchError

WARN_BYTES = 64 * 2**20


class Packed:
    """Stands for a function that another process has pickled: it travels to ranks, and cannot be called here.

    Args:
        name: of the function.
        payload: the function, pickled; None where that failed.
        signature: of the function; None where it does not tell.
        problem: why it could not be pickled.
        sources: file names of its code, whose lines `linecache` holds.
    """

    def __init__(
        self,
        name: str,
        payload: bytes | None,
        signature: inspect.Signature | None = None,
        problem: str = "",
        sources: Iterable[str] = (),
    ) -> None:
        self.__name__ = self.__qualname__ = name
        self._payload = payload
        self._problem = problem
        self.sources = frozenset(sources)
        if signature is not None:
            self.__signature__ = signature

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse: whoever holds it does not trust its code."""
        raise TypeError(f"`{self.__name__}` runs on ranks only")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._payload is None:
            raise pickle.PicklingError(self._problem)
        return pickle.loads, (self._payload,)


class Packer(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles by value what the notebook defined, moves GPU tensors to the CPU, and notes the sources it met."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.filenames: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        """Pickle GPU tensors by their CPU copy, a cell's cached functions by value, all else as cloudpickle does."""
        if isinstance(obj, types.FunctionType):
            self.filenames.add(obj.__code__.co_filename)
        elif isinstance(obj, Packed):
            self.filenames |= obj.sources
        elif isinstance(obj, functools._lru_cache_wrapper) and obj.__module__ == "__main__":
            return _cached, (obj.__wrapped__, obj.cache_parameters())  # it would go by a name that no rank knows
        elif "torch" in sys.modules and isinstance(obj, sys.modules["torch"].Tensor) and obj.is_cuda:
            return _same, (obj.detach().cpu().requires_grad_(obj.requires_grad),)
        return super().reducer_override(obj)


def _same(value: Any) -> Any:
    return value


def _cached(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Callable[..., Any]:
    """A function with an empty cache of its own."""
    made: Callable[..., Any] = functools.lru_cache(**parameters)(function)
    return made


def pack(value: Any) -> tuple[bytes, dict[str, list[str]]]:
    """Return `value` as a pickle, and the source lines of the functions in it by file name."""
    buffer = io.BytesIO()
    packer = Packer(buffer)
    packer.dump(value)
    return buffer.getvalue(), {name: lines for name in packer.filenames if (lines := _cell_source(name))}


def _cell_source(filename: str) -> list[str] | None:
    """Return a cell's lines, which only the notebook's process knows; None for a real file."""
    entry = linecache.cache.get(filename)
    if entry is None or len(entry) != 4 or entry[1] is not None:
        return None
    return entry[2]


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bytes, dict[str, list[str]]]:
    """Pack a function with its arguments for the ranks.

    Raises:
        LaunchError: if something in it cannot be pickled; the message names the variable that holds it.
    """
    try:
        return pack((fn, args))
    except Exception as error:
        culprits = [f"{where}, {_describe(value)}" for where, value in _parts(fn, args) if not _packable(value)]
        what = "; ".join(culprits) or f"something inside {_name(fn)} ({type(error).__name__}: {error})"
        raise LaunchError(
            f"The ranks are processes of their own, so all that {_name(fn)} uses must be pickled, and this cannot be: "
            f"{what}. Create it inside the function, on the rank that needs it.",
            values={"culprits": culprits},
        ) from None


def _parts(fn: Callable[..., Any], args: tuple[Any, ...], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield what a call takes with it, each under the name the learner gave it."""
    for i, value in enumerate(args):
        yield from _unfold(f"argument {i + 1} of {_name(fn)}", value)
    for name, value in getattr(fn, "namespace", {}).items():
        yield from _unfold(f"the variable {name!r}, used by the cell", value)
    code = getattr(fn, "__code__", None)
    if code is None or depth > 3:
        return
    defaults = getattr(fn, "__defaults__", None) or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    for name, value in zip(names, defaults, strict=True):
        yield from _unfold(f"the default of {_name(fn)}'s parameter {name!r}", value)
    used: Mapping[str, Any] = {name: fn.__globals__[name] for name in global_names(code) if name in fn.__globals__}
    for name, value in used.items():
        yield from _unfold(f"the variable {name!r}, used by {_name(fn)}", value, depth)
    for name, cell in zip(code.co_freevars, getattr(fn, "__closure__", None) or (), strict=True):
        yield from _unfold(f"the variable {name!r}, used by {_name(fn)}", cell.cell_contents, depth)


def _unfold(where: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Look one level into containers and into the learner's other functions, to name the very thing."""
    if isinstance(value, types.FunctionType) and not _packable(value):
        yield from _parts(value, (), depth + 1)
    elif isinstance(value, dict):
        yield from ((f"{where}, at key {key!r}", item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"{where}, at index {i}", item) for i, item in enumerate(value))
    else:
        yield where, value


def global_names(code: types.CodeType) -> set[str]:
    """Return the global names that `code` and the functions inside it may look up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return names


def _packable(value: Any) -> bool:
    try:
        pack(value)
    except Exception:
        return False
    return True


def _describe(value: Any) -> str:
    if isinstance(value, io.IOBase):
        return f"an open file ({getattr(value, 'name', type(value).__name__)})"
    kind = type(value)
    return f"a {kind.__module__}.{kind.__qualname__}"


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)
