"""The Python in a notebook's code cells or in a script, statement by statement."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ppkit.errors import PpkitError
from ppkit.scopes import Uses, bound_names, uses_of

__all__ = ["Cell", "ExportError", "Statement", "code_cells", "parse_cell", "read_cells"]

# Cell magics whose body runs in the notebook's own namespace, as if the magic were not there.
_TRANSPARENT = ("%%time", "%%capture", "%%prun")
_MAGIC_VALUE = re.compile(r"^\s*([A-Za-z_]\w*)\s*=\s*[%!]")
_RANKS_OUT = re.compile(r"--out[= ]\s*(\w+)")


class ExportError(PpkitError, ValueError):
    """A function cannot be made into a script of its own."""


@dataclass(frozen=True, eq=False)
class Statement:
    """One statement at the top of a cell or a script.

    Attributes:
        node: what it says.
        text: how it is written, comments at its lines' ends included.
        where: "cell 3, line 2", or "line 2" of a script.
        cell: number of its cell, from 1; 0 in a script.
    """

    node: ast.stmt
    text: str
    where: str
    cell: int

    @cached_property
    def uses(self) -> Uses:
        """The names that it takes from outside."""
        return uses_of(self.node)

    @cached_property
    def binds(self) -> set[str]:
        """The names that it sets."""
        return bound_names([self.node])


@dataclass(frozen=True)
class Cell:
    """The statements of a cell, and the names that it sets in a way no script can.

    Attributes:
        statements: in order; none for a cell that runs on ranks.
        magic: the reason why a name is known to the notebook alone, by name.
    """

    statements: tuple[Statement, ...]
    magic: dict[str, str]


def read_cells(path: Path) -> tuple[Cell, ...]:
    """Read a notebook's code cells, or a script as one cell.

    Args:
        path: an .ipynb or .py file.

    Raises:
        ExportError: it is neither, cannot be read, or a cell is not Python.
    """
    if path.suffix not in (".ipynb", ".py"):
        raise ExportError(f"{path} is neither a notebook (.ipynb) nor a script (.py)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {_reason(error)}") from error
    if path.suffix == ".py":
        return (parse_cell(text, 0, str(path)),)
    return tuple(parse_cell(source, number, str(path)) for number, source in code_cells(text, path))


def code_cells(text: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the source of each code cell."""
    try:
        notebook: dict[str, Any] = json.loads(text)
        if notebook["nbformat"] != 4:
            raise ValueError(f"its nbformat is {notebook['nbformat']}")
        language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "python")
        if language != "python":
            raise ValueError(f"its language is {language}")
        for number, cell in enumerate(notebook["cells"], start=1):
            if cell["cell_type"] == "code":
                yield number, "".join(cell["source"])  # a text, or a list of lines
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is no Python notebook of format 4: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def parse_cell(source: str, number: int, path: str) -> Cell:
    """Read one cell, or with number 0 a script.

    Args:
        source: its text.
        number: of the cell, from 1.
        path: of the notebook, for messages.

    Raises:
        ExportError: it is not Python.
    """
    magic: dict[str, str] = {}
    body = source.lstrip("\n")
    where = f"cell {number}"
    if number and body.startswith("%%"):
        first, _, rest = body.partition("\n")
        if not first.startswith(_TRANSPARENT):
            for name in _RANKS_OUT.findall(first):
                magic[name] = f"{first.split()[0]} of {where} sets it to what a run gave"
            return Cell((), magic | _names_on_ranks(rest, f"{first.split()[0]} of {where}"))
        source = source.replace(first, "", 1)
    tree, source = _parsed(source, number, path, magic)
    lines = source.split("\n")
    prefix = f"{where}, " if number else ""
    statements = tuple(
        Statement(node, _text(node, lines, source), f"{prefix}line {_first_line(node)}", number) for node in tree.body
    )
    return Cell(statements, magic)


def _names_on_ranks(source: str, what: str) -> dict[str, str]:
    try:
        names = bound_names(ast.parse(source).body)
    except SyntaxError:  # another language, as in %%bash
        return {}
    return dict.fromkeys(names, f"only {what} sets it, and the notebook does not know it")


def _parsed(source: str, number: int, path: str, magic: dict[str, str]) -> tuple[ast.Module, str]:
    """Parse a cell; lines that only IPython understands become empty statements, and are noted in `magic`."""
    lines = source.split("\n")
    while True:
        try:
            return ast.parse("\n".join(lines)), "\n".join(lines)
        except SyntaxError as error:
            at = (error.lineno or 1) - 1
            line = lines[at] if at < len(lines) else ""
            if not number or not _is_magic(line):
                place = f"cell {number}, line {at + 1}" if number else f"line {at + 1}"
                raise ExportError(f"{path}, {place}: {error.msg}: {line.strip()}") from None
            if value := _MAGIC_VALUE.match(line):
                magic[value[1]] = f"cell {number}, line {at + 1}, sets it by IPython: {line.strip()}"
            lines[at] = line[: len(line) - len(line.lstrip())] + "pass"
            while line.endswith("\\") and at + 1 < len(lines):  # the magic goes on
                at += 1
                line, lines[at] = lines[at], ""


def _is_magic(line: str) -> bool:
    stripped = line.strip()
    return stripped.startswith(("%", "!", "?")) or stripped.endswith("?") or bool(_MAGIC_VALUE.match(line))


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _text(node: ast.stmt, lines: list[str], source: str) -> str:
    """Return a statement as it is written, with the comments at the ends of its lines where it stands alone."""
    first, last = _first_line(node), node.end_lineno or node.lineno
    whole = "\n".join(lines[first - 1 : last])
    try:
        alone = len(ast.parse(whole).body) == 1
    except SyntaxError:
        alone = False
    return whole.rstrip() if alone else ast.get_source_segment(source, node) or ast.unparse(node)
