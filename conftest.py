"""What the notebooks under test need before nbval starts their kernels."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Give nbval kernels whose addresses no rank can take that starts at the same time."""
    if config.getoption("nbval", False) or config.getoption("nbval_lax", False):
        import nbval.kernel

        from ppkit.course.kernels import SocketKernelManager

        nbval.kernel.KernelManager = SocketKernelManager
