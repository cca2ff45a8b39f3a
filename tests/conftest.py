"""What all tests share: the project's root, a browser, and which tests this machine cannot run."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("PPKIT_LIVE", "0")  # nothing under test may wait for, or depend on, a live display
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder with pyproject.toml."""
    return Path(__file__).parents[1]


@pytest.fixture
def interrupted() -> Iterator[Callable[..., None]]:
    """`interrupted(seconds, function, *args)` calls a function, and interrupts it after so many seconds."""

    def call(delay: float, function: Callable[..., object], *args: object) -> None:
        threading.Timer(delay, os.kill, [os.getpid(), signal.SIGINT]).start()
        function(*args)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    yield call
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium; a test that needs one is skipped where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)} on the PATH")
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --exhaustive, without which tests of every combination are left out."""
    parser.addoption("--exhaustive", action="store_true", help="run the tests marked `exhaustive` too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless asked for."""
    if not config.getoption("--exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu` where there is no GPU; torch is imported only for such a test."""
    if item.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
