"""In a real Jupyter kernel: the stop button, a restart and a kill leave nothing behind, and the next run works."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import busy, descendants

kernels = pytest.importorskip("ppkit.course.kernels")

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc"),
]

HANGING = {
    "in a receive": "def stay():\n    if dist.get_rank(): time.sleep(60)\n    dist.recv(torch.ones(1), 1)",
    "in a sleep": "def stay():\n    time.sleep(60)",
    "in a loop": "def stay():\n    while True: pass",
}
WORKING = "launch(lambda: dist.get_rank(), n_ranks=2).results"


class Kernel:
    """A kernel of this interpreter, and what its cells say."""

    def __init__(self) -> None:
        self.manager = kernels.SocketKernelManager()
        self.manager.kernel_spec.argv[0] = sys.executable
        self.manager.start_kernel()
        self.connect()

    def connect(self) -> None:
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.run("import time, os, torch, torch.distributed as dist\nfrom ppkit import launch")

    def run(self, code: str) -> str:
        """Execute a cell and return its output or error as text."""
        self.client.execute(code)
        return self.output()

    def messages(self) -> list[tuple[str, dict[str, Any]]]:
        """What the running cell says until it has ended: the kinds and contents of its outputs."""
        found: list[tuple[str, dict[str, Any]]] = []
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return found
            if kind in ("stream", "error", "execute_result", "display_data"):
                found.append((kind, content))

    def output(self) -> str:
        """The same as text."""
        texts = {
            "stream": lambda content: content["text"],
            "error": lambda content: "\n".join(content["traceback"]),
            "execute_result": lambda content: content["data"]["text/plain"],
            "display_data": lambda content: content["data"]["text/plain"],
        }
        return "\n".join(texts[kind](content) for kind, content in self.messages())

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def _wait_until(done: Any, seconds: float) -> None:
    deadline = time.perf_counter() + seconds
    while not done() and time.perf_counter() < deadline:
        time.sleep(0.02)
    assert done()


def _start_hanging(kernel: Kernel, how: str) -> set[int]:
    """Let a cell hang; return the processes that it has started."""
    assert kernel.run(WORKING) == "(0, 1)"
    kernel.client.execute(HANGING[how] + "\nlaunch(stay, n_ranks=2)")
    _wait_until(lambda: busy(kernel.pid) == ["ppkit rank 0", "ppkit rank 1"], 30)
    time.sleep(0.3)
    return descendants(kernel.pid)


@pytest.mark.parametrize("how", HANGING)
def test_the_stop_button_ends_the_run_and_the_next_one_works(kernel: Kernel, how: str) -> None:
    _start_hanging(kernel, how)
    kernel.manager.interrupt_kernel()
    output = kernel.output()
    assert "Interrupted: The run was interrupted; its ranks have been ended." in output
    assert "rank 0: " in output
    assert "ppkit/launch" not in output
    _wait_until(lambda: not busy(kernel.pid), 5)
    assert kernel.run(WORKING) == "(0, 1)"


@pytest.mark.parametrize("how", HANGING)
def test_a_killed_kernel_takes_its_ranks_with_it(kernel: Kernel, how: str) -> None:
    processes = _start_hanging(kernel, how)
    os.kill(kernel.pid, signal.SIGKILL)
    _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), 5)


def test_a_restarted_kernel_has_ended_its_ranks(kernel: Kernel) -> None:
    processes = _start_hanging(kernel, "in a receive")
    kernel.client.stop_channels()
    kernel.manager.restart_kernel(now=True)
    kernel.connect()
    # They end by themselves when the old kernel is gone, and the new one may be ready before that.
    _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), 5)
    assert kernel.run(WORKING) == "(0, 1)"


def test_an_error_is_followed_by_a_picture_of_what_led_to_it(kernel: Kernel) -> None:
    assert kernel.run(WORKING) == "(0, 1)"
    fail = "def fail():\n    torch.nn.Linear(2, 2)(torch.ones(2))\n    dist.barrier()\n    raise ValueError('no')\n"
    kernel.client.execute(fail + "launch(fail, n_ranks=2)")
    said = kernel.messages()
    assert said[0][0] == "error"
    assert [kind for kind, _ in said] == ["error", "display_data"]
    assert "image/svg+xml" in said[1][1]["data"]
    assert kernel.run("1 + 1") == "2"  # once
    assert kernel.run("try:\n    launch(fail, n_ranks=2)\nexcept Exception:\n    print('caught')") == "caught\n"
