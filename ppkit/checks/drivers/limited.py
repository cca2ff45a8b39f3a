"""A driver with a limit on the memory of its rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppkit.limits import memory_limit

__all__ = ["call_limited"]


def call_limited(nbytes: int, driver: Callable[..., Any], *args: Any) -> Any:
    """Call `driver(*args)`; it may take `nbytes` of memory more than the rank has."""
    with memory_limit(nbytes):
        return driver(*args)
