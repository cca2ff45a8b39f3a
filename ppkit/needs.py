"""Finds the statements of a notebook that a function needs, and says why where one cannot be had."""

from __future__ import annotations

import ast
import builtins
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from ppkit.cells import Cell, ExportError, Statement
from ppkit.scopes import changed_names

__all__ = ["Needs"]

_ALWAYS_THERE = {*dir(builtins), "__name__", "__file__", "__doc__"}
_ONLY_IPYTHON = {"display", "get_ipython", "In", "Out", "exit", "quit", "_", "__", "___"}
_BY_RUNNING = {
    ast.For: "a loop",
    ast.AsyncFor: "a loop",
    ast.While: "a loop",
    ast.Match: "a match statement",
    ast.Delete: "a del statement",
}
_SEEDING = ("manual_seed", "seed")
_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINITIONS = (*_IMPORTS, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What may run or not, or sets a name in part of its lines only: the value from before is needed too.
_CONDITIONAL = tuple(getattr(ast, name) for name in ("If", "Try", "TryStar", "With") if hasattr(ast, name))


class Needs:
    """What one function of a notebook or script needs of it, transitively, by static analysis.

    A name means what it means when all cells have run once in their order. What a function uses is looked up when
    it is called, what a statement uses when it runs: a name that is set twice may be needed in both its values.

    Args:
        cells: of the notebook, or of the script.
        function: the function's name.
        source: the file's name, for messages.

    Attributes:
        statements: all that are needed, by their position in the source.
        imported: for an import among them, the names of it that are needed, by position.

    Raises:
        ExportError: there is no such function, or it needs what only a run of the notebook gives.
    """

    def __init__(self, cells: Sequence[Cell], function: str, source: str) -> None:
        self._all = [statement for cell in cells for statement in cell.statements]
        self._magic = {name: reason for cell in cells for name, reason in cell.magic.items()}
        self._source = source
        self._function = function
        self._bindings: dict[str, list[int]] = defaultdict(list)
        self._changes: dict[str, list[int]] = defaultdict(list)
        for at, statement in enumerate(self._all):
            for name in statement.binds:
                self._bindings[name].append(at)
            for name in changed_names(statement.node):
                self._changes[name].append(at)
        self._seen: set[tuple[int, int]] = set()
        self._hoped_for: dict[str, tuple[str, ...]] = {}  # names that a function in the script may set, and their users
        self.imported: dict[int, set[str]] = defaultdict(set)
        self.definition = self._find(function)
        self._need(function, len(self._all), ())
        self._check_hopes()
        self._take_seeds()
        self.statements = {at: self._all[at] for at in sorted({at for at, _ in self._seen})}

    @property
    def names(self) -> set[str]:
        """All names that the needed statements set."""
        return {name for at, one in self.statements.items() for name in self.imported.get(at, one.binds)}

    @property
    def computed(self) -> dict[int, Statement]:
        """Those that call something when the script starts: every rank computes their values anew."""
        return {at: one for at, one in self.statements.items() if _computes(one.node)}

    @property
    def future(self) -> tuple[Statement, ...]:
        """The `from __future__` imports of the source, which hold for all of it."""
        return tuple(one for one in self._all if _is_future(one.node))

    # The function itself

    def _functions(self) -> dict[str, ast.FunctionDef | ast.Lambda]:
        """Return the functions that there are once all cells have run."""
        found: dict[str, ast.FunctionDef | ast.Lambda] = {}
        for name, positions in self._bindings.items():
            node = self._all[positions[-1]].node
            if isinstance(node, ast.FunctionDef):
                found[name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                found[name] = node.value
        return found

    def _find(self, function: str) -> ast.FunctionDef | ast.Lambda:
        functions = self._functions()
        if function in functions:
            return functions[function]
        if function in self._bindings:
            last = self._all[self._bindings[function][-1]]
            what = f"{function!r} ({last.where}) is no plain function but {_what(last.node)}"
        elif function in self._magic:
            what = f"{function!r} is no function that a script can have: {self._magic[function]}"
        else:
            close = get_close_matches(function, functions, n=1)
            what = f"there is no function {function!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
        listed = f"It has {', '.join(functions)}." if functions else "It has no function at all."
        raise ExportError(f"{self._source}: {what}. {listed}", values={"function": function})

    # All that it needs

    def _need(self, name: str, before: int, users: tuple[str, ...], *, called: bool = False) -> None:
        """Take what sets `name` for whoever looks it up before the statement at `before`.

        Args:
            name: what is looked up.
            before: position in the source.
            users: why: each needs the next, and the last one needs `name`.
            called: by a function, which may be called later than at `before`.
        """
        positions = self._bindings.get(name, [])
        n_before = bisect_left(positions, before)
        if not n_before and called:
            n_before = len(positions)
        if not n_before:
            self._look_elsewhere(name, users)
            return
        at = positions[n_before - 1]
        self._take(at, name, before, users)
        node = self._all[at].node
        if isinstance(node, _CONDITIONAL) and n_before > 1:
            self._need(name, at, users)
        if isinstance(node, ast.Import):  # `import a.b` adds to what `import a` has set
            for other in positions[: n_before - 1]:
                if isinstance(self._all[other].node, ast.Import):
                    self._take(other, name, before, users)
        if not isinstance(node, _IMPORTS):  # a module's settings are no part of a function: `launch` carries none
            for change in self._changes[name]:
                if at < change < before:
                    self._take(change, name, before, users, "changes")

    def _take(self, at: int, name: str, before: int, users: tuple[str, ...], does: str = "sets") -> None:
        statement = self._all[at]
        if isinstance(statement.node, _IMPORTS):
            self.imported[at].add(name)
        users = (*users, name)
        self._refuse_unfit(statement, does, users)
        if (at, before) in self._seen:
            return
        self._seen.add((at, before))
        for used in sorted(statement.uses.now):
            self._need(used, at, users)
        for used in sorted(statement.uses.later):
            self._need(used, before, users, called=True)

    def _look_elsewhere(self, name: str, users: tuple[str, ...]) -> None:
        """Deal with a name that no statement above sets."""
        if name not in self._bindings and name in _ALWAYS_THERE:
            return
        stars = [at for at, one in enumerate(self._all) if "*" in one.binds]
        if name not in self._bindings and stars:  # it may be any name
            for at in stars:
                self._take(at, "*", len(self._all), users)
        elif any(name in one.uses.set_later for one in self._all):
            self._hoped_for[name] = users
        elif name in self._bindings:
            first = self._all[self._bindings[name][0]]
            raise self._missing(name, users, f"it is set only below, in {first.where}")
        elif name in self._magic:
            raise self._missing(name, users, self._magic[name])
        elif name in _ONLY_IPYTHON:
            raise self._missing(name, users, "IPython gives it to notebooks alone")
        else:
            what = "no code cell sets it" if self._source.endswith(".ipynb") else "nothing in the file sets it"
            raise self._missing(name, users, what)

    def _check_hopes(self) -> None:
        """Refuse a name that only the call of a function sets which is not in the script."""
        there = {name for at, _ in self._seen for name in self._all[at].uses.set_later}
        for name, users in self._hoped_for.items():
            if name not in there:
                setter = next(one for one in self._all if name in one.uses.set_later)
                raise self._missing(name, users, f"only a call of {_what(setter.node)} sets it ({setter.where})")

    def _take_seeds(self) -> None:
        """Take the seeds that were set before values of random numbers."""
        computed = [at for at, _ in self._seen if _computes(self._all[at].node)]
        for at in range(max(computed, default=0)):
            node = self._all[at].node
            called = getattr(getattr(node, "value", None), "func", None)
            if isinstance(node, ast.Expr) and isinstance(called, ast.Attribute) and called.attr in _SEEDING:
                self._take(at, ast.unparse(called), at, ())

    # What it must not need

    def _refuse_unfit(self, statement: Statement, does: str, users: tuple[str, ...]) -> None:
        name, node = users[-1], statement.node
        reason = _BY_RUNNING.get(type(node))
        if reason:
            raise self._missing(name, users[:-1], f"{reason} {does} it in {statement.where}")
        if _is_main_guard(node):
            raise self._missing(name, users[:-1], f'it is set under `if __name__ == "__main__"` ({statement.where})')
        if self._starts_ranks(node, name):
            raise ExportError(
                f"{self._source}: {_chain(users)}, which starts ranks ({statement.where}); but in the script torchrun "
                "starts them, and it calls the function on each. Export the function that is given to launch, and "
                "hand over what came of a run as an argument."
            )

    def _starts_ranks(self, node: ast.stmt, name: str) -> bool:
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names if (alias.asname or alias.name) == name}
            return (node.module or "").split(".")[0] == "ppkit" and "launch" in names
        return any(
            isinstance(inner, ast.Attribute)
            and inner.attr == "launch"
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "ppkit"
            for inner in ast.walk(node)
        )

    def _missing(self, name: str, users: tuple[str, ...], why: str) -> ExportError:
        return ExportError(
            f"{self._source}: {_chain((*users, name))}, but a script cannot have that: {why}. Give it to "
            f"{self._function} as an argument, or set it by an assignment in a code cell above.",
            values={"name": name},
        )


def _chain(users: tuple[str, ...]) -> str:
    """Say who uses whom, from the function on."""
    first, *others = users
    return f"{first} uses {', which uses '.join(others)}" if others else first


def _what(node: ast.stmt) -> str:
    kinds = {
        ast.FunctionDef: f"{getattr(node, 'name', '')}()",
        ast.AsyncFunctionDef: "a coroutine",
        ast.ClassDef: "a class",
        ast.Import: "imported: export it from its own file",
        ast.ImportFrom: "imported: export it from its own file",
    }
    return kinds.get(type(node), "a value")


def _computes(node: ast.stmt) -> bool:
    return not isinstance(node, _DEFINITIONS) and any(isinstance(inner, ast.Call) for inner in _run_at_once(node))


def _run_at_once(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, (ast.Lambda, *_DEFINITIONS)):
        for child in ast.iter_child_nodes(node):
            yield from _run_at_once(child)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in {
        inner.id for inner in ast.walk(node.test) if isinstance(inner, ast.Name)
    }
