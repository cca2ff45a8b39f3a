"""`%%ranks n`: the body of a cell, run on every rank."""

from __future__ import annotations

import argparse
import ast
import linecache
import shlex
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from ppkit.errors import LaunchError
from ppkit.launch.packing import global_names
from ppkit.launch.starter import starter

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_HELP = """Run this cell on every rank of a fresh run.

The cell may use the notebook's variables, which travel to the ranks; what it sets is gone with them. The value of a
last line that is an expression is printed."""


@dataclass(frozen=True)
class CellBody:
    """The body of a cell, as a function of no arguments that can travel.

    Args:
        source: Python; empty lines in front keep the line numbers of the cell.
        filename: under which IPython knows the cell.
        namespace: the notebook's variables that the body uses.
        __name__: what its timeline is called.
    """

    source: str
    filename: str
    namespace: dict[str, Any] = field(repr=False)
    __name__: str

    def __call__(self) -> Any:
        """Run the body; return the value of its last line, if that is an expression."""
        linecache.cache[self.filename] = (len(self.source), None, self.source.splitlines(True), self.filename)
        tree = ast.parse(self.source, self.filename)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        names = dict(self.namespace, __name__="__main__")
        exec(compile(tree, self.filename, "exec"), names)  # the learner's own cell
        if not isinstance(last, ast.Expr):
            return None
        value = eval(compile(ast.Expression(last.value), self.filename, "eval"), names)
        if value is not None:
            print(repr(value))
        return value


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register `%%ranks`, and begin to preload what the ranks need."""
    parser = _parser()

    def ranks(line: str, cell: str) -> None:
        _run_cell(shell, parser.parse_args(_words(line)), cell)

    ranks.__doc__ = parser.format_help()
    shell.register_magic_function(ranks, "cell", "ranks")  # type: ignore[arg-type]  # its stub forgets `self`
    starter()


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise LaunchError(f"%%ranks {line}: {error}") from None


def _name(text: str) -> str:
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a variable")
    return text


class _Parser(argparse.ArgumentParser):
    """Raises what a cell shows, instead of ending the notebook's process."""

    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{message}\n{self.format_usage()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("%%ranks", description=_HELP, add_help=False)
    parser.add_argument("n_ranks", nargs="?", help="a number or a variable (default: 2)")
    parser.add_argument(
        "--out", metavar="NAME", type=_name, help="keep the Run, with the last line's values, in this variable"
    )
    parser.add_argument("--timeline", action="store_true", help="draw what the ranks did")
    parser.add_argument("--pool", metavar="NAME", help="a variable that holds ppkit.Ranks, to run on")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--timeout", metavar="SECONDS", help="end the run after this time")
    parser.add_argument("--emulate", metavar="NAME", help="a variable that holds a ppkit.Emulation")
    return parser


def _run_cell(shell: InteractiveShell, options: argparse.Namespace, cell: str) -> None:
    from IPython.display import display

    run = _runner(shell, options)(
        body_of(shell, cell),
        timeout=None if options.timeout is None else _value(shell, "--timeout", options.timeout),
        emulate=None if options.emulate is None else _value(shell, "--emulate", options.emulate),
        returns=options.out is not None,
    )
    if options.out:
        shell.user_ns[options.out] = run
    if options.timeline:
        display(run.timeline)  # type: ignore[no-untyped-call]  # IPython's display has no types


def _runner(shell: InteractiveShell, options: argparse.Namespace) -> Callable[..., Any]:
    """Return what runs the cell: `launch`, or ranks that are kept."""
    from ppkit.launch import Ranks, launch

    n_ranks = 2 if options.n_ranks is None else _value(shell, "the number of ranks", options.n_ranks)
    if options.pool is None:
        return partial(launch, n_ranks=n_ranks, device=options.device)
    pool = _value(shell, "--pool", options.pool)
    if not isinstance(pool, Ranks):
        raise LaunchError(f"%%ranks: --pool takes ppkit.Ranks; {options.pool} is {pool!r}")
    if options.n_ranks is not None and n_ranks != pool.n_ranks:
        raise LaunchError(f"%%ranks: {n_ranks} ranks, but {options.pool} has {pool.n_ranks}; leave the number out")
    return pool.run


def _value(shell: InteractiveShell, what: str, text: str) -> Any:
    """Return what an option says: a number, or the value of a variable."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text in shell.user_ns:
            return shell.user_ns[text]
    raise LaunchError(f"%%ranks: {what} is {text!r}, which is no number and no variable of this notebook")


def _running_cell(shell: InteractiveShell) -> str | None:
    """Return the file name that IPython gave the cell that is running now, which carries its number."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        filename = frame.f_code.co_filename
        if shell.compile.format_code_name(filename) is not None:
            return filename
        frame = frame.f_back
    return None


def body_of(shell: InteractiveShell, cell: str) -> CellBody:
    """Return a cell's body with the variables it uses."""
    source = "\n" + cell  # the line of the magic, so that line numbers are the cell's
    filename = _running_cell(shell) or shell.compile.cache(source, shell.execution_count, raw_code=source)
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    try:
        code = compile(source, filename, "exec")
    except SyntaxError as error:
        line = source.splitlines()[(error.lineno or 1) - 1].strip()
        shells = ". Ranks run plain Python: no magic, and no shell command" if line.startswith(("%", "!")) else ""
        raise LaunchError(f"%%ranks: {error.msg} at line {error.lineno} of the cell: {line}{shells}") from None
    used = global_names(code)
    hidden = getattr(shell, "user_ns_hidden", {})
    namespace = {
        name: value
        for name, value in shell.user_ns.items()
        if name in used and not (name in hidden and value is hidden[name])
    }
    return CellBody(source, filename, namespace, "cell")
