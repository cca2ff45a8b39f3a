"""Two nodes of a cluster on one machine: network namespaces with a cable between them, and clocks that differ."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

CLOCK_AHEAD = 5000  # seconds by which the second node's clock is ahead, where the kernel can do that
_HOSTS = Path("/etc/netns")  # what `ip netns exec` puts in the place of files in /etc


class Node(NamedTuple):
    """One node.

    Attributes:
        name: of the host, which both find in their /etc/hosts, and of its network namespace.
        address: of its end of the cable.
        prefix: what a command that runs on it begins with.
    """

    name: str
    address: str
    prefix: tuple[str, ...]

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command on the node, whose environment says nothing of networks."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("GLOO_SOCKET_IFNAME", None)
        return subprocess.Popen(
            [*self.prefix, *command], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def processes(self) -> list[int]:
        """Process ids of all that runs on the node."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Make two nodes; end what runs on them, and remove them. Skips the test where that is not permitted."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs Linux, and its command `ip`")
    names = [f"pp{os.getpid()}{letter}" for letter in "ab"]  # of the cable's ends too: at most 15 characters
    addresses = ["198.51.100.1", "198.51.100.2"]  # RFC 5737: for documentation, nobody's
    ahead = ["--time", "--monotonic", str(CLOCK_AHEAD)]
    if subprocess.run(["unshare", *ahead, "--fork", "true"], capture_output=True, check=False).returncode:
        ahead = []
    named = ["--", "sh", "-c", 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"']
    nodes = []
    for name, address, clock in zip(names, addresses, ([], ahead), strict=True):
        apart = ["unshare", "--uts", *clock, "--fork", "--kill-child", *named, name]
        nodes.append(Node(name, address, ("ip", "netns", "exec", name, *apart)))
    hosts = "127.0.0.1 localhost\n" + "".join(f"{node.address} {node.name}\n" for node in nodes)
    try:
        for name in names:
            _ip("netns", "add", name)
            (_HOSTS / name).mkdir(parents=True)
            (_HOSTS / name / "hosts").write_text(hosts)
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
            shutil.rmtree(_HOSTS / node.name, ignore_errors=True)
        with suppress(OSError):
            _HOSTS.rmdir()  # where nobody else has something there


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()}")
