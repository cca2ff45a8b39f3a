"""Which names a statement sets, and which it takes from outside: when it runs, or only when it is called later."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["Uses", "bound_names", "changed_names", "uses_of"]

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Uses:
    """The names that a statement at the top of a module looks up in the module, or in Python's built-ins.

    Attributes:
        now: while it runs.
        later: when a function that it defines is called.
        set_later: what such a function sets by a `global` declaration.
    """

    now: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)
    set_later: set[str] = field(default_factory=set)


def uses_of(*statements: ast.stmt) -> Uses:
    """Return the names that statements at the top of a module take from it."""
    visitor = _Visitor()
    for statement in statements:
        visitor.visit(statement)
    return visitor.uses


def bound_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names that `nodes` set in the scope they stand in; those of functions in them are their own."""
    return {name for node in nodes for name in _bound(node)}


def _bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).split(".")[0]
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest
    if isinstance(node, _COMPREHENSIONS):  # its variables are its own; `:=` in it sets one outside
        for inner in ast.walk(node):
            if isinstance(inner, ast.NamedExpr):
                yield inner.target.id
    elif not isinstance(node, _SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def changed_names(statement: ast.stmt) -> set[str]:
    """Return the names whose values a statement may change in place: `x[0] = 1`, `x.y = 1`, `x.append(1)`, `fill_(x)`.

    A change inside a function that it calls is not seen.
    """
    changed = set()
    for node in _own_nodes([statement]):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            changed.add(_root(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Attribute):
                changed.add(_root(called))
                if called.attr.endswith("_"):  # torch's sign of a function that works in place
                    changed.update(map(_root, node.value.args))
    return changed - {""}


def _root(node: ast.AST) -> str:
    """Return the name that `x.y[0].z()` begins with, or "" where it begins with something else."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


@dataclass
class _Scope:
    """A function, a class or a comprehension, and the names that are its own."""

    kind: str
    own: set[str]
    declared_global: set[str] = field(default_factory=set)


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.uses = Uses()
        self._scopes: list[_Scope] = []

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._look_up(node.id)

    def _look_up(self, name: str) -> None:
        for depth, scope in enumerate(reversed(self._scopes)):
            if name in scope.declared_global:
                break
            # The names of a class are seen in its own body, not by the functions in it.
            if name in scope.own and (scope.kind != "class" or depth == 0):
                return
        called = any(scope.kind == "function" for scope in self._scopes)
        (self.uses.later if called else self.uses.now).add(name)

    def _visit_in(self, scope: _Scope, nodes: Iterable[ast.AST]) -> None:
        self._scopes.append(scope)
        for node in nodes:
            self.visit(node)
            if scope.kind == "class":  # what stands above in its body is known, what stands below is not yet
                scope.own |= bound_names([node])
        self._scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_function(node, [*node.decorator_list, node.returns], node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_function(node, [], [node.body])

    def _visit_function(self, node: _Function, outside: list[ast.expr | None], body: Sequence[ast.AST]) -> None:
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters += [star for star in (arguments.vararg, arguments.kwarg) if star]
        outside = [*outside, *arguments.defaults, *arguments.kw_defaults, *(one.annotation for one in parameters)]
        self._visit_in(_Scope("type parameters", _type_parameters(node)), filter(None, outside))
        declared = {name for inner in _own_nodes(body) if isinstance(inner, ast.Global) for name in inner.names}
        own = {one.arg for one in parameters} | bound_names(body) | _type_parameters(node)
        self.uses.set_later.update(own & declared)
        self._visit_in(_Scope("function", own - declared, declared), body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outside = [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
        self._visit_in(_Scope("type parameters", _type_parameters(node)), outside)
        self._visit_in(_Scope("class", _type_parameters(node)), node.body)

    def visit_ListComp(self, node: _Comprehension) -> None:
        first, *_ = node.generators
        self.visit(first.iter)  # in the scope around it
        parts = [part for generator in node.generators for part in (generator.iter, *generator.ifs)]
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        own = bound_names(generator.target for generator in node.generators)
        self._visit_in(_Scope("comprehension", own), [*parts[1:], *results])

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):  # `x += 1` reads x too
            self._look_up(node.target.id)
        self.generic_visit(node)


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield all nodes of a function's body but those of the functions and classes in it."""
    for node in body:
        yield node
        if not isinstance(node, _SCOPES):
            yield from _own_nodes(ast.iter_child_nodes(node))


def _type_parameters(node: ast.AST) -> set[str]:
    """Return the names in the brackets of `def f[T]()` (Python 3.12)."""
    return {parameter.name for parameter in getattr(node, "type_params", [])}
