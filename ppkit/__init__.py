"""Build every way of training one model over many devices: the library under the ppkit notebooks."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

# Public name -> the submodule that holds it, imported when the name is first used: `import ppkit` takes
# milliseconds and loads neither torch, numpy nor plotly.
_HOME = {
    "Op": "schedule",
    "Action": "schedule",
    "Schedule": "schedule",
    "naive": "builders",
    "gpipe": "builders",
    "one_f_one_b": "builders",
    "interleaved_1f1b": "builders",
    "zero_bubble_h1": "builders",
    "zero_bubble_v": "builders",
    "Costs": "simulate",
    "simulate": "simulate",
    "Event": "timeline",
    "Timeline": "timeline",
    "gantt": "draw",
    "launch": "launch",
    "Run": "launch",
    "Ranks": "launch",
    "Emulation": "emulate",
    "Link": "emulate",
    "PpkitError": "errors",
    "ScheduleError": "errors",
    "RankError": "errors",
    "DeadlockError": "errors",
    "CheckFailed": "errors",
}

__all__ = [
    "Op",
    "Action",
    "Schedule",
    "naive",
    "gpipe",
    "one_f_one_b",
    "interleaved_1f1b",
    "zero_bubble_h1",
    "zero_bubble_v",
    "Costs",
    "simulate",
    "Event",
    "Timeline",
    "gantt",
    "launch",
    "Run",
    "Ranks",
    "Emulation",
    "Link",
    "PpkitError",
    "ScheduleError",
    "RankError",
    "DeadlockError",
    "CheckFailed",
]

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from IPython.core.interactiveshell import InteractiveShell

    from ppkit.builders import gpipe, interleaved_1f1b, naive, one_f_one_b, zero_bubble_h1, zero_bubble_v
    from ppkit.draw import gantt
    from ppkit.emulate import Emulation, Link
    from ppkit.errors import CheckFailed, DeadlockError, PpkitError, RankError, ScheduleError
    from ppkit.launch import Ranks, Run, launch
    from ppkit.schedule import Action, Op, Schedule
    from ppkit.simulate import Costs, simulate
    from ppkit.timeline import Event, Timeline


def __getattr__(name: str) -> object:
    """Import what `name` needs, the first time it is used."""
    if name in _HOME:
        value: object = getattr(import_module(f"ppkit.{_HOME[name]}"), name)
    elif not name.startswith("_") and find_spec(f"ppkit.{name}") is not None:
        value = import_module(f"ppkit.{name}")
    else:
        raise AttributeError(f"module 'ppkit' has no attribute {name!r}; it has: {', '.join(_HOME)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names and the submodules."""
    from pkgutil import iter_modules  # only here: it would cost each start a few milliseconds

    submodules = {module.name for module in iter_modules(__path__) if not module.name.startswith("_")}
    return sorted({*globals(), *_HOME, *submodules})


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register the `%%ranks` cell magic; called by `%load_ext ppkit`.

    Args:
        ipython: The running shell.
    """
    import_module("ppkit.launch.magics").load_ipython_extension(ipython)


class _Package(ModuleType):
    """Keeps `ppkit.launch` and `ppkit.simulate` functions, although submodules of the same names exist.

    Importing a submodule binds it on its package: without this, `import ppkit.launch.magics` anywhere would
    turn `ppkit.launch(...)` into a call of a module. What is in the modules stays importable:
    `from ppkit.launch.magics import …`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[object, ...]:
        # A cell's function that uses `ppkit` travels to the ranks; pickle knows plain modules alone.
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
