"""How the kernels of notebooks that no person runs are reached: by Unix sockets, which nothing else can take."""

from __future__ import annotations

import os
import secrets

from jupyter_client.manager import KernelManager
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_core.utils import ensure_dir_exists
from traitlets import default

__all__ = ["SocketKernelManager"]

_LONGEST = 103  # bytes of a Unix socket's path on macOS; Linux takes 107


class SocketKernelManager(KernelManager):
    """Reaches its kernel by Unix sockets, where there are such; else, as jupyter_client does, by TCP.

    For TCP, jupyter_client looks for free ports, and the kernel takes them about a second later. Ranks that start in
    between take free ports too: beside two processes that launched 8 ranks again and again, 1 of 161 kernels died of
    "Address already in use".
    """

    def __init__(self, **options: object) -> None:
        self._sockets = os.path.join(jupyter_runtime_dir(), f"ppkit-{secrets.token_hex(6)}")
        super().__init__(**options)

    @default("transport")
    def _by_sockets(self) -> str:
        fits = len(os.fsencode(f"{self._sockets}-1")) <= _LONGEST
        return "ipc" if os.name == "posix" and fits else "tcp"

    def _ip_default(self) -> str:
        if self.transport == "tcp":
            return super()._ip_default()
        ensure_dir_exists(os.path.dirname(self._sockets), mode=0o700)
        return self._sockets
