"""Makes a notebook's function, with all that it uses, a script that torchrun starts."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ppkit import torchrun
from ppkit.cells import ExportError, Statement, read_cells
from ppkit.needs import Needs

__all__ = ["Export", "ExportError", "export"]

MARK = "# Made by `ppkit export`"
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Export:
    """A function as a script.

    Attributes:
        path: where it was written.
        text: the script.
        command: starts it.
        cells: numbers, from 1, of the cells that it has something of; none of a script.
        computed: where a value is computed anew on every rank when the script starts.
    """

    path: Path
    text: str
    command: str
    cells: tuple[int, ...]
    computed: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the report as lines to print."""
        listed = ", ".join(map(str, self.cells))
        cells = f" from cell{'s' * (len(self.cells) > 1)} {listed}" if self.cells else ""
        computed = [f"computed on every rank when it starts: {', '.join(self.computed)}"] if self.computed else []
        return [f"wrote {self.path}{cells}", *computed, f"start it: {self.command}"]


def export(source: Path, function: str, path: Path | None = None) -> Export:
    """Write a script that calls `function` on every rank that torchrun has started.

    Taken along are exactly the imports, constants, functions and classes that it uses, found without running
    anything: see `Needs`. Magics, and cells that run on ranks, are left out.

    Args:
        source: a notebook (.ipynb) or a script (.py).
        function: the name of one of its functions.
        path: of the script; by default FUNCTION_torchrun.py in the current folder.

    Raises:
        ExportError: the source cannot be read, has no such function, or the function needs what only a run of the
            notebook gives; or the script cannot be written there. Nothing has been written then.
    """
    path = path or Path(f"{function}_torchrun.py")
    needs = Needs(read_cells(source), function, str(source))
    _check_path(path, source, needs)
    command = f"torchrun --standalone --nproc-per-node=2 {path}{_placeholder(needs.definition)}"
    text = _script(needs, function, source, command)
    ast.parse(text)  # a mistake of ours must not be found on a cluster
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}") from error
    computed = (f"{', '.join(sorted(one.binds)) or one.text} ({one.where})" for one in needs.computed.values())
    cells = sorted({one.cell for one in needs.statements.values()} - {0})
    return Export(path, text, command, tuple(cells), tuple(computed))


def _check_path(path: Path, source: Path, needs: Needs) -> None:
    """Refuse to overwrite what is not ours, and a name under which Python would take the script for a module."""
    if path.suffix != ".py":
        raise ExportError(f"{path}: the script's name must end in .py")
    imported = {name.split(".")[0] for one in needs.statements.values() for name in _modules(one.node)}
    if path.stem in imported | {"torch", "ppkit"} | set(sys.stdlib_module_names):
        raise ExportError(f"{path}: under this name the script would hide the module {path.stem!r}; use another one")
    if path.exists() and (path.samefile(source) or not _is_ours(path)):
        raise ExportError(f"{path} exists, and `ppkit export` has not made it; give another name with -o")


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(MARK.encode())


def _modules(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def _placeholder(function: ast.FunctionDef | ast.Lambda) -> str:
    """Return the option that gives a function what it cannot do without, by the names of its parameters."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    names = [one.arg for one in positional[: len(positional) - len(arguments.defaults)]]
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    names += [f"{one.arg}={one.arg}" for one, default in keywords if default is None]
    return f' --args "{", ".join(names).upper()}"' if names else ""


# The script's text


def _script(needs: Needs, function: str, source: Path, command: str) -> str:
    head = (
        f"{MARK} from {source.name}: the function {function}, with all that it uses.\n"
        f"# Start it:  {command}\n# Options:   --args, --timeline; see --help\n"
    )
    future = {name.name for one in needs.future if isinstance(one.node, ast.ImportFrom) for name in one.node.names}
    if future:
        head += f"\nfrom __future__ import {', '.join(sorted(future))}\n"
    names = {copied.__name__: _free_name(copied.__name__, needs.names) for copied in torchrun.COPIED}
    prepare, *others = (_renamed(inspect.getsource(copied), names) for copied in torchrun.COPIED)
    parts = [_learners_part(needs), prepare]
    if needs.computed:  # on every rank, so alike on all and where the run is
        parts = [f"{prepare}\n\n{names['_prepare_rank']}()  # what follows computes values", parts[0]]
    parts += [*others, f'if __name__ == "__main__":\n    {names["main"]}({function})']
    return head + "".join("\n\n" + part.strip("\n") + "\n" for part in parts)


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _renamed(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = re.sub(rf"\b{old}\(", f"{new}(", text)
    return text


def _learners_part(needs: Needs) -> str:
    """Return the needed statements in their order, under the numbers of their cells."""
    text, cell, previous = "", 0, None
    for at, one in needs.statements.items():
        if one.cell != cell:
            text += f"\n\n# Cell {one.cell}\n"
            cell = one.cell
        elif isinstance(one.node, _DEFINITIONS) or isinstance(previous, _DEFINITIONS):
            text += "\n\n"
        text += _statement(one, needs.imported.get(at)) + "\n"
        previous = one.node
    return text


def _statement(one: Statement, names: set[str] | None) -> str:
    """Return a statement's text; of an import, the names that are needed."""
    node = one.node
    if names is None or not isinstance(node, (ast.Import, ast.ImportFrom)):
        return one.text
    needed = [alias for alias in node.names if (alias.asname or alias.name).split(".")[0] in names]
    if len(needed) == len(node.names):
        return one.text
    kept: ast.stmt = (
        ast.Import(needed) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, needed, node.level)
    )
    return ast.unparse(kept)
