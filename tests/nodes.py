"""Two nodes of a cluster on one machine: network namespaces with a cable between them, and clocks that differ."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pytest

CLOCK_AHEAD = 5000  # seconds by which the second node's clock is ahead, where the kernel can do that


class Node(NamedTuple):
    """One node.

    Attributes:
        name: of its network namespace.
        address: by which the other one reaches it.
        interface: its end of the cable.
        prefix: what a command that runs on it begins with.
    """

    name: str
    address: str
    interface: str
    prefix: tuple[str, ...]

    def start(self, command: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Start a command on the node."""
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": self.interface, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        return subprocess.Popen(
            [*self.prefix, *command], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,  # type: ignore[call-overload]
        )  # fmt: skip

    def processes(self) -> list[int]:
        """Process ids of all that runs on the node."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Make two nodes; end what runs on them, and remove them. Skips the test where that is not permitted."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs Linux, and its command `ip`")
    own = f"pp{os.getpid()}"
    names = [f"{own}a", f"{own}b"]  # of namespaces and of the cable's ends, at most 15 characters
    addresses = ["198.51.100.1", "198.51.100.2"]  # RFC 5737: for documentation, nobody's
    ahead = ["unshare", "--time", "--monotonic", str(CLOCK_AHEAD), "--fork", "--kill-child", "--"]
    if subprocess.run([*ahead, "true"], capture_output=True, check=False).returncode:
        ahead = []
    prefixes = [("ip", "netns", "exec", name, *more) for name, more in zip(names, ([], ahead), strict=True)]
    nodes = [Node(*of) for of in zip(names, addresses, names, prefixes, strict=True)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            for interface in ("lo", name):
                _ip("-n", name, "link", "set", interface, "up")
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            for pid in node.processes():
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", node.name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()}")
