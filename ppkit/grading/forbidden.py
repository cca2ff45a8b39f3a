"""Finds in a cell what no answer needs, and what could read or change the grading."""

from __future__ import annotations

import ast
from collections.abc import Iterator

__all__ = ["suspicions"]

# Modules by which code reaches the checks, other processes, files or the network; their children too.
_MODULES = {
    *("builtins", "code", "ctypes", "dis", "gc", "glob", "http", "importlib", "inspect", "io", "marshal", "mmap"),
    *("multiprocessing", "nbformat", "nbgrader", "pathlib", "pdb", "pickle", "pkgutil", "requests", "runpy", "shelve"),
    *("shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile", "traceback", "urllib", "cloudpickle"),
    *("ppkit.checks", "ppkit.grading", "ppkit.course", "ppkit.launch", "ppkit.observe"),
}
_CALLS = {"__import__", "breakpoint", "compile", "delattr", "eval", "exec", "globals", "locals", "open", "vars"}
_ATTRIBUTES = {
    *("_getframe", "_current_frames", "settrace", "setprofile", "f_back", "f_locals", "f_globals"),
    *("tb_frame", "cr_frame", "gi_frame", "ag_frame", "system", "popen", "spawnv", "fork", "execv", "execve"),
    *("listdir", "scandir", "walk", "fromfile", "from_file"),
}
_DUNDERS = {"__init__", "__name__", "__call__", "__class__", "__len__", "__iter__", "__next__", "__enter__", "__exit__"}
_PATHS = ("solutions/", "ppkit/checks", "ppkit.checks", "ppkit.grading", "/proc/")


def suspicions(node: ast.stmt, lab: str, built: tuple[str, ...] = ()) -> Iterator[str]:
    """Say what of a statement a person should look at, a phrase each, with its line.

    Args:
        node: the statement.
        lab: name of the lab's module, which the notebook imports to call its checks.
        built: names of `ppkit` that the task asks to build.
    """
    for part in ast.walk(node):
        for what in _of_node(part, lab, built):
            yield f"{what} (line {getattr(part, 'lineno', '?')})"


def _of_node(node: ast.AST, lab: str, built: tuple[str, ...]) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"imports `{one.name}`" for one in names if _is_listed(one.name))
            yield from (f"imports `{one.name}`" for one in names if built and one.name.startswith("ppkit."))
        case ast.ImportFrom(module=module, names=names) if (module, [one.name for one in names]) != (
            "ppkit.checks",
            [lab],
        ):
            yield from (f"imports `{module}.{one.name}`" for one in names if _is_listed(f"{module}.{one.name}"))
            if (module or "").partition(".")[0] == "ppkit":
                yield from (f"imports `{one.name}`, which the task asks to build" for one in names if one.name in built)
        case ast.Name(id=name, ctx=ast.Load()) if name in built:
            yield f"uses ppkit's `{name}`, which the task asks to build"
        case ast.Name(id=name) if name in _CALLS or (name.startswith("__") and name not in _DUNDERS | {"__file__"}):
            yield f"uses `{name}`"
        case ast.Attribute(attr="modules", value=ast.Name(id="sys")):
            yield "uses `sys.modules`"
        case ast.Attribute(attr=name) if name in _ATTRIBUTES or (name.startswith("__") and name not in _DUNDERS):
            yield f"uses `.{name}`"
        case ast.Attribute(attr=name, value=ast.Name(id="ppkit")) if name in built:
            yield f"uses `ppkit.{name}`, which the task asks to build"
        case ast.Attribute(attr=name, value=ast.Name(id="ppkit")) if _is_listed(f"ppkit.{name}"):
            yield f"uses `ppkit.{name}`"
        case ast.Name(id=name) if name == lab:
            yield f"uses `{lab}`"
        case ast.Call(func=ast.Name(id="getattr" | "setattr"), args=[_, name, *_]):
            if not isinstance(name, ast.Constant):
                yield "looks an attribute up by a computed name"
            elif isinstance(name.value, str) and (name.value in _ATTRIBUTES or name.value.startswith("__")):
                yield f"uses `.{name.value}`"
        case ast.Constant(value=str(text)) if any(path in text for path in _PATHS):
            yield f"names {next(path for path in _PATHS if path in text)!r}"


def _is_listed(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:n]) in _MODULES for n in range(1, len(parts) + 1))
