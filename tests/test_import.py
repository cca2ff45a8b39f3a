"""`import ppkit` is light, names arrive when used, and functions with module twins stay functions."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ppkit

HEAVY = ("torch", "numpy", "plotly", "IPython", "cloudpickle")
# What describes, simulates and draws stands above the line under which torch is loaded.
WITHOUT_TORCH = [name for name in ppkit.__all__ if name not in ("launch", "Run", "Ranks", "Emulation", "Link")]


def python(code: str) -> str:
    """Run code in a new Python, and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    loaded = python(f"import sys, ppkit; print(*sorted(set({HEAVY}) & set(sys.modules)))")
    assert loaded == ""


def test_listing_the_names_loads_nothing_heavy() -> None:
    loaded = python(f"import sys, ppkit; dir(ppkit); print(*sorted(set({HEAVY}) & set(sys.modules)))")
    assert loaded == ""


def test_describing_simulating_and_drawing_import_nothing_heavy() -> None:
    names = ", ".join(WITHOUT_TORCH)
    loaded = python(f"import sys; from ppkit import {names}; print(*sorted(set({HEAVY}) & set(sys.modules)))")
    assert loaded == ""


@pytest.mark.parametrize("name", ppkit.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(ppkit, name) is not None


def test_lists_agree() -> None:
    assert set(ppkit.__all__) == set(ppkit._HOME)
    assert set(ppkit.__all__) <= set(dir(ppkit))
    assert {"course", "errors", "schedule"} <= set(dir(ppkit))


def test_star_import_gives_the_public_names() -> None:
    assert python("from ppkit import *; print(Schedule.__name__, callable(launch), callable(simulate))") == (
        "Schedule True True"
    )


def test_submodules_are_attributes() -> None:
    assert python("import ppkit; print(ppkit.errors.__name__)") == "ppkit.errors"


def test_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'lunch'.*launch"):
        _ = ppkit.lunch  # type: ignore[attr-defined]
    assert not hasattr(ppkit, "_private")
    with pytest.raises(ImportError, match="lunch"):
        exec("from ppkit import lunch")


@pytest.mark.parametrize("name", ["launch", "simulate"])
@pytest.mark.parametrize(
    "before",
    [
        "",
        "import ppkit",
        "import ppkit.{name}",
        "import ppkit.{name} as twin",
        "from ppkit.{name} import {name} as twin",
        "import importlib; importlib.import_module('ppkit.{name}')",
        "import ppkit; ppkit.{name}; import sys; del sys.modules['ppkit.{name}']; import ppkit.{name}",
        "import ppkit.timeline; from ppkit import Timeline, gantt",
        "import ppkit.launch.magics",
        "from ppkit.launch import magics",
        "import ppkit.launch, ppkit.simulate",
        "from ppkit import *",
    ],
)
def test_function_wins_over_the_submodule_of_its_name(name: str, before: str) -> None:
    code = f"""
{before.format(name=name)}
from ppkit import {name}
import ppkit
assert callable({name}) and type({name}).__name__ == "function", {name}
assert ppkit.{name} is {name}
import sys, types
assert isinstance(sys.modules["ppkit.{name}"], types.ModuleType)
from ppkit.{name} import {name} as from_module
assert from_module is {name} or {"del sys.modules" in before}
import ppkit.{name}
assert ppkit.{name} is {name}
"""
    python(code)


def test_submodules_of_launch_stay_importable() -> None:
    python("import ppkit; ppkit.launch; from ppkit.launch.magics import load_ipython_extension")


def test_public_function_can_be_replaced() -> None:
    """A test or a notebook may put its own function there: only modules are kept out."""
    assert python("import ppkit; ppkit.launch = len; import ppkit.launch.magics; print(ppkit.launch('ab'))") == "2"


def test_extension_loads_and_registers_ranks() -> None:
    pytest.importorskip("IPython")
    code = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
shell.extension_manager.load_extension("ppkit")
print("ranks" in shell.magics_manager.magics["cell"])
"""
    assert python(code) == "True"
