"""Finds in a cell what no answer needs, and what could read or change the grading."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["borrowed", "imported_names", "suspicions"]

# Of Python's own modules those that answers may need; others reach the checks, processes, files or the network.
_HARMLESS = {
    *(
        "__future__",
        "abc",
        "array",
        "bisect",
        "cmath",
        "collections",
        "concurrent",
        "contextlib",
        "copy",
        "dataclasses",
    ),
    *("datetime", "decimal", "enum", "fractions", "functools", "heapq", "itertools", "json", "logging", "math"),
    *("numbers", "operator", "os", "pprint", "queue", "random", "re", "statistics", "string", "struct", "sys"),
    *("textwrap", "threading", "time", "types", "typing", "warnings", "weakref"),
}
# Others by which code does so, and what is in harmless ones; their children too.
_LISTED = {
    *("IPython.core", "IPython.utils", "aiohttp", "cloudpickle", "dill", "httpx", "ipykernel", "joblib", "nbclient"),
    *("nbformat", "nbgrader", "psutil", "requests", "urllib3"),
    *("ppkit.checks", "ppkit.grading", "ppkit.course", "ppkit.launch", "ppkit.observe"),
    *("operator.attrgetter", "operator.methodcaller", "string.Formatter", "types.CodeType", "types.FunctionType"),
    *("sys.addaudithook", "sys.meta_path", "sys.modules", "sys.monitoring", "sys.path", "sys.path_hooks"),
    *("numpy.genfromtxt", "numpy.lib", "numpy.load", "numpy.loadtxt", "numpy.memmap", "numpy.save", "numpy.savetxt"),
    *("torch.hub", "torch.load", "torch.save", "torch.serialization", "torch.utils.cpp_extension"),
    *(f"torch.distributed.{name}" for name in ("FileStore", "HashStore", "TCPStore", "distributed_c10d")),
}
_OS = {"_exit", "cpu_count", "environ", "getenv", "getpid", "linesep", "name", "path", "sched_getaffinity", "sep"}
_WHOLE = {"os", "ppkit", "sys"}  # modules that are of no use as values, but to look something up by a detour
_CALLS = {"__import__", "breakpoint", "compile", "delattr", "eval", "exec", "globals", "locals", "open", "vars"}
_ATTRIBUTES = {
    *("_getframe", "_current_frames", "settrace", "setprofile", "f_back", "f_locals", "f_globals"),
    *("tb_frame", "cr_frame", "gi_frame", "ag_frame", "system", "popen", "spawnv", "fork", "execv", "execve"),
    *("listdir", "scandir", "walk", "fromfile", "from_file"),
}
_DUNDERS = {"__init__", "__name__", "__call__", "__class__", "__len__", "__iter__", "__next__", "__enter__", "__exit__"}
_PATHS = ("solutions/", "ppkit/checks", "ppkit.checks", "ppkit.grading", "/proc/")
_SCHEDULES = {"naive", "gpipe", "one_f_one_b", "interleaved_1f1b", "zero_bubble_h1", "zero_bubble_v"}
# Where else ppkit gives these.
_MAKERS = ("ppkit.bridge", "ppkit.builders", "ppkit.interleaved", "ppkit.quick", "ppkit.zero_bubble")


def imported_names(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """What each imported name stands for, such as ``{"dist": "torch.distributed"}``.

    Args:
        nodes: all statements of a submission; an import inside a function counts for all.
    """
    names: dict[str, str] = {}
    for part in (part for node in nodes for part in ast.walk(node)):
        if isinstance(part, ast.Import):
            for one in part.names:
                names[one.asname or one.name.partition(".")[0]] = one.name if one.asname else one.name.partition(".")[0]
        elif isinstance(part, ast.ImportFrom):
            names |= {one.asname or one.name: f"{part.module}.{one.name}" for one in part.names}
    return names


def suspicions(node: ast.stmt, lab: str, names: Mapping[str, str] | None = None) -> Iterator[str]:
    """Say what of a statement a person should look at, a phrase each, with its line.

    Args:
        node: the statement.
        lab: name of the lab's module, which the notebook imports to call its checks.
        names: what imported names stand for; left out: the statement's own.
    """
    names = imported_names([node]) if names is None else names
    inside = {id(part.value) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    for part in ast.walk(node):
        for what in _of_node(part, lab, names, part_of_path=id(part) in inside):
            yield f"{what} (line {getattr(part, 'lineno', '?')})"


def _of_node(node: ast.AST, lab: str, names: Mapping[str, str], *, part_of_path: bool) -> Iterator[str]:
    match node:
        case ast.Import(names=imported):
            yield from (f"imports `{one.name}`" for one in imported if _is_listed(one.name))
        case ast.ImportFrom(module="ppkit.checks", names=[ast.alias(name=name, asname=None)]) if name == lab:
            pass
        case ast.ImportFrom(module=module, names=imported):
            for one in imported:
                if _is_listed(f"{module}.{one.name}") or _is_hidden(one.name):
                    yield f"imports `{module}.{one.name}`"
        case ast.Name(id=name) if name in _CALLS or (_is_hidden(name) and name != "__file__"):
            yield f"uses `{name}`"
        case ast.Name(id=name) if names.get(name) in _WHOLE and not part_of_path:
            yield f"hands `{name}` on"
        case ast.Attribute(attr=name) if _is_hidden(name):
            yield f"uses `.{name}`"
        case ast.Attribute() if (path := _path(node, names)) and _is_listed(path) and not _is_listed_above(path):
            yield f"uses `{path}`"
        case ast.Name(id=name) if name == lab:
            yield f"uses `{lab}`"
        case ast.Call(func=ast.Name(id="getattr" | "setattr"), args=[_, name, *_]):
            if not isinstance(name, ast.Constant):
                yield "looks an attribute up by a computed name"
            elif isinstance(name.value, str) and _is_hidden(name.value):
                yield f"uses `.{name.value}`"
        case ast.MatchClass(kwd_attrs=attributes):
            yield from (f"uses `.{name}`" for name in attributes if _is_hidden(name))
        case ast.Constant(value=str(text)) if any(path in text for path in _PATHS):
            yield f"names {next(path for path in _PATHS if path in text)!r}"


def borrowed(node: ast.stmt, built: Iterable[str], names: Mapping[str, str]) -> Iterator[str]:
    """Say where a statement takes from ppkit what the task asks to build.

    Args:
        node: the statement.
        built: names of ppkit. Of one schedule's builder the others count too: some give the same in a special case.
        names: what imported names stand for.
    """
    wanted = set(built)
    makers = _MAKERS if wanted & _SCHEDULES else ()
    wanted |= _SCHEDULES if makers else set()
    for part in ast.walk(node):
        for path in _taken(part, names, wanted):
            if path.rpartition(".")[2] in wanted or path.startswith(makers):
                yield f"uses `{path}`, which the task asks to build (line {getattr(part, 'lineno', '?')})"


def _taken(node: ast.AST, names: Mapping[str, str], wanted: set[str]) -> Iterator[str]:
    """The paths in ppkit that a node names."""
    paths: list[str] = []
    match node:
        case ast.Import(names=imported):
            paths = [one.name for one in imported]
        case ast.ImportFrom(module=module, names=imported):
            paths = [f"{module}.{one.name}" for one in imported]
        case ast.Name(id=name, ctx=ast.Load()):
            everything = names.get("*", "").startswith("ppkit")  # imported
            paths = [names.get(name, f"ppkit.{name}" if name in wanted and everything else "")]
        case ast.Attribute():
            paths = [_path(node, names)]
    yield from (path for path in paths if path.startswith("ppkit."))


def _path(node: ast.expr, names: Mapping[str, str]) -> str:
    """What an expression such as ``np.lib.format`` stands for, if it begins with an imported name; "" if not."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    before = _path(node.value, names) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if before and isinstance(node, ast.Attribute) else ""


def _is_hidden(name: str) -> bool:
    return name in _ATTRIBUTES or (name.startswith("__") and name not in _DUNDERS)


def _is_listed(path: str) -> bool:
    parts = path.split(".")
    if parts[0] in sys.stdlib_module_names and parts[0] not in _HARMLESS:
        return True
    if parts[0] == "os" and len(parts) > 1 and parts[1] not in _OS:
        return True
    return any(".".join(parts[:n]) in _LISTED for n in range(1, len(parts) + 1))


def _is_listed_above(path: str) -> bool:
    """Whether what stands before the last point says so already."""
    return _is_listed(path.rpartition(".")[0])
