"""Finds and changes what a cell's own text gives to a name, and leaves the rest of the text as it is."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping

__all__ = ["assigned", "number_of", "with_values"]

_OPERATIONS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def assigned(source: str, names: Iterable[str]) -> dict[str, str]:
    """Return the text that stands behind ``name = ``, for each of the names that the cell assigns in its last place."""
    found = _places(source, set(names))
    return {name: ast.get_source_segment(source, node) or "" for name, node in found.items()}


def with_values(source: str, values: Mapping[str, str]) -> str:
    """Return the cell's text with other values behind the names that it assigns."""
    places = _places(source, set(values))
    lines = [line.encode() for line in source.splitlines(keepends=True)]  # ast counts bytes
    for name, node in sorted(places.items(), key=lambda item: (item[1].lineno, item[1].col_offset), reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        lines[first : last + 1] = [before + values[name].encode() + after]
    return b"".join(lines).decode()


def _places(source: str, names: set[str]) -> dict[str, ast.expr]:
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a magic in it: then the learner writes the line
        return {}
    return {
        target.id: statement.value
        for statement in statements
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id in names
    }


def number_of(text: str) -> float | None:
    """Return the number that a text of numbers, ``+ - * / //`` and brackets stands for; None for any other text."""
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return None


def _evaluate(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_evaluate(left), _evaluate(right))
    raise ValueError(ast.dump(node))
