"""Runs a submission's cells in a process of its own, and brings back the answers.

A cell that raises, hangs, exits or crashes costs what it would have set; the cells after it are run all the same.
"""

from __future__ import annotations

import json
import linecache
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ppkit
from ppkit.grading.sealed import close, open_in_grader
from ppkit.grading.submission import Runnable
from ppkit.limits import limit_memory

__all__ = ["Answers", "collect"]

CELL_SECONDS = 20.0  # a cell of a lab takes well under one
_GRACE = 10.0  # for the process to start, and for a cell that ignores its end
_MEMORY = 4 * 2**30  # bytes that cells may take, beside what a process needs to begin with
_RESTARTS = 8  # after that the rest of the notebook is left


@dataclass(frozen=True)
class Answers:
    """What the cells of a submission have set.

    Attributes:
        values: by name, as `ppkit.grading.sealed` opens them; names that no cell set are missing.
        errors: what a cell ended with, by its number.
    """

    values: Mapping[str, Any]
    errors: Mapping[int, str]


def collect(cells: Iterable[Runnable], names: Iterable[str]) -> Answers:
    """Run the cells in order, and return what `names` stand for in the end.

    Args:
        cells: of a submission.
        names: of the answers.
    """
    todo = [(cell.number, cell.source) for cell in cells]
    wanted = sorted(names)
    sources = {_filename(number): source.splitlines(keepends=True) for number, source in todo}
    errors: dict[int, str] = {}
    for _ in range(_RESTARTS):
        begun = 0
        for message in _run(todo, wanted):
            if "begin" in message:
                begun = message["begin"]
            elif "error" in message:
                errors[begun] = message["error"]
            elif "gone" in message:
                errors[begun] = message["gone"]
                todo = [cell for cell in todo if cell[0] != begun]
            else:
                for name, lines in sources.items():  # reports quote them
                    linecache.cache[name] = (len("".join(lines)), None, lines, name)
                return Answers(_opened(message["values"]), errors)
        if not begun:
            break
    return Answers({}, errors)


def _opened(closed: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for name, one in closed.items():
        with suppress(Exception):  # what no answer of this kit looks like, a cell has written itself
            values[name] = open_in_grader(one)
    return values


def _filename(number: int) -> str:
    return f"<cell {number}>"


def _run(cells: list[tuple[int, str]], names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the messages of a fresh process; the last is its answers, or how it was gone."""
    reading, writing = os.pipe()
    root = str(Path(ppkit.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory(prefix="ppkit-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "ppkit.grading.answers", str(writing)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "PPKIT_LIVE": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        try:
            assert process.stdin is not None  # a pipe, as asked
            process.stdin.write(json.dumps({"cells": cells, "names": names}).encode())
            process.stdin.close()
            with os.fdopen(reading, "rb") as stream:
                yield from _listen(stream, process)
        finally:
            _end(process)


def _listen(stream: IO[bytes], process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    waiting = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(CELL_SECONDS + _GRACE):
                yield {"gone": f"ran for more than {CELL_SECONDS:g} s and was ended"}
                return
            chunk = os.read(stream.fileno(), 1 << 20)
            if not chunk:
                break
            *lines, waiting = (waiting + chunk).split(b"\n")
            for line in lines:
                message = _understood(line)
                yield message
                if "gone" in message:
                    return
                if "values" in message:
                    return
    try:
        code = process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        yield {"gone": "closed the grader's connection, and was ended"}
        return
    yield {"gone": f"ended the process, with {f'signal {-code}' if code < 0 else f'exit code {code}'}"}


def _understood(line: bytes) -> dict[str, Any]:
    """A message of the process; what a cell has written in between ends it."""
    try:
        match json.loads(line):
            case {"begin": int()} | {"error": str()} | {"gone": str()} | {"values": dict()} as message:
                return message  # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        pass
    return {"gone": "wrote into the grader's connection, and was ended"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that its cells have started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- in the process of the cells ---


class _TooLong(BaseException):
    """A cell has had its time."""


def _too_long(*_: Any) -> None:
    raise _TooLong


def _main(descriptor: int) -> None:
    task = json.load(sys.stdin)
    limit_memory(_MEMORY)
    signal.signal(signal.SIGALRM, _too_long)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # functions travel by value, as a notebook's do
    vars(module).update(display=lambda *_args, **_kwargs: None, In=[], Out={})
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:

        def say(**message: Any) -> None:
            stream.write(json.dumps(message) + "\n")
            stream.flush()

        for number, source in task["cells"]:
            say(begin=number)
            if error := _execute(source, _filename(number), vars(module)):
                say(error=error)
        say(values={name: _closed(vars(module)[name]) for name in task["names"] if name in vars(module)})
        stream.flush()
    os._exit(0)


def _closed(value: Any) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_REAL, CELL_SECONDS / 4)  # a learner's own `__repr__` may never end
    try:
        return close(value)
    except BaseException as error:
        return {"other": [type(value).__name__, f"<a value that cannot be read: {type(error).__name__}>"]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _execute(source: str, filename: str, namespace: dict[str, Any]) -> str:
    """Run a cell; return what it ended with, "" for its end."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    signal.setitimer(signal.ITIMER_REAL, CELL_SECONDS)
    try:
        exec(compile(source, filename, "exec"), namespace)
    except _TooLong:
        return f"ran for more than {CELL_SECONDS:g} s and was ended"
    except SystemExit as error:
        return f"called sys.exit({'' if error.code is None else _text(error.code)})"
    except BaseException as error:
        return f"{type(error).__name__}: {_text(error, str)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def _text(value: Any, to_text: Callable[[Any], str] = repr) -> str:
    try:
        return to_text(value).encode(errors="replace").decode()[:2000]
    except BaseException:  # of a learner's own class
        return ""


if __name__ == "__main__":
    _main(int(sys.argv[1]))
