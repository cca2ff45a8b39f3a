"""What runs on one machine runs on two: exported scripts under two torchruns, with networks and clocks of their own."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from nodes import CLOCK_AHEAD, Node, two_nodes
from test_export import defined_by, notebook

from ppkit.export import export
from ppkit.launch import launch
from ppkit.timeline import Timeline

pytestmark = [pytest.mark.ranks, pytest.mark.soak]

CELLS = (
    "import time\nimport torch\nimport torch.distributed as dist",
    "torch.manual_seed(3)\nx, y = torch.rand(8, 6).double(), torch.rand(8, 1).double()",
    """\
def train(n_steps):
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    losses = []
    for _ in range(n_steps):
        mine = slice(rank * 8 // n_ranks, (rank + 1) * 8 // n_ranks)
        loss = (model(x[mine]) - y[mine]).square().mean() / n_ranks
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss)
        losses.append(float(loss))
    token = torch.zeros(1)
    for _ in range(3):  # round all ranks, across the nodes
        if rank > 0:
            dist.recv(token, rank - 1)
        if n_ranks > 1:
            dist.send(token, (rank + 1) % n_ranks)
        if rank == 0 and n_ranks > 1:
            dist.recv(token, n_ranks - 1)
    return losses, [parameter.grad.tolist() for parameter in model.parameters()]
""",
)


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    with two_nodes() as both:
        yield both
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    assert not {node.name for node in both} & set(left)


def torchruns(nodes: tuple[Node, Node], script: Path, *arguments: str, ranks: int = 2) -> list[str]:
    """Run a script as on a cluster, so many ranks a node; return what each node has printed."""
    running = []
    for node in nodes:
        options = [
            "--nnodes=2", f"--nproc-per-node={ranks}", "--rdzv-id=7", "--rdzv-backend=c10d",
            f"--rdzv-endpoint={nodes[0].name}:29400",
        ]  # fmt: skip
        command = [sys.executable, "-m", "torch.distributed.run", *options, str(script), *arguments]
        running.append(node.start(command))
    printed = []
    for process in running:
        out, err = process.communicate(timeout=150)
        assert process.returncode == 0, err
        printed.append(out)
    return printed


def flat(value: Any) -> list[float]:
    return [number for one in value for number in flat(one)] if isinstance(value, (list, tuple)) else [value]


def test_two_nodes_train_as_one_process_does_and_share_one_timeline(tmp_path: Path, nodes: tuple[Node, Node]) -> None:
    path = notebook(tmp_path, *CELLS)
    script = export(path, "train", tmp_path / "out.py").path
    printed = "".join(torchruns(nodes, script, "--args", "3", "--timeline", str(tmp_path / "t.json")))
    alone = launch(defined_by(path, "train"), 3, n_ranks=1, device="cpu", show=False).results[0]
    assert flat(ast.literal_eval(printed)) == pytest.approx(flat(alone), rel=0, abs=1e-10)

    timeline = Timeline.from_json((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert (timeline.n_ranks, timeline.n_steps) == (4, 3)
    assert timeline.notes == {"started by": "torchrun", "clock": "2 hosts, on the clock of rank 0's"}
    local = launch(defined_by(path, "train"), 3, n_ranks=4, device="cpu", show=False).timeline
    for rank in range(4):
        done, expected = ([event.label for event in one.of_rank(rank)] for one in (timeline, local))
        assert done == expected
    assert timeline.bytes_sent == local.bytes_sent

    # One clock: the ring's messages follow one another, whichever node they are on.
    assert timeline.makespan < CLOCK_AHEAD / 2
    ring = sorted(timeline.messages, key=lambda message: message[0].start)
    assert [send.rank for send, _ in ring] == [0, 1, 2, 3] * 3
    assert all(send.start < received.end for send, received in ring)
    for (_, received), (following, _) in pairwise(ring):
        assert received.end < following.start + 0.005


def test_the_second_nodes_clock_is_another(nodes: tuple[Node, Node]) -> None:
    """Else the test above would not show much."""
    if "--time" not in nodes[1].prefix:
        pytest.skip("the kernel has no time namespaces")
    code = [sys.executable, "-c", "import time; print(time.perf_counter())"]
    first, second = (float(node.start(code).communicate(timeout=30)[0]) for node in nodes)
    assert second - first == pytest.approx(CLOCK_AHEAD, abs=60)


def test_a_folder_of_the_first_node_alone_is_enough(tmp_path: Path, nodes: tuple[Node, Node]) -> None:
    script = export(notebook(tmp_path, "def f(): return 1"), "f", tmp_path / "out.py").path
    data, folder = tmp_path / "data", tmp_path / "data" / "here"
    folder.mkdir(parents=True)
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {data} && exec "$@"', "sh")
    first, second = nodes
    without = second._replace(prefix=(*second.prefix, *hide))
    looked = without.start(["ls", str(data)]).communicate(timeout=30)
    assert looked == ("", "")
    torchruns((first, without), script, "--timeline", str(folder / "t.json"), ranks=1)
    assert os.listdir(folder) == ["t.json"]


def test_the_readmes_slurm_script_starts_the_export_on_both_nodes(
    project_root: Path, tmp_path: Path, nodes: tuple[Node, Node]
) -> None:
    """SLURM itself is played by stand-ins for the two of its commands that the script uses."""
    readme = (project_root / "README.md").read_text(encoding="utf-8")
    (job,) = (block for block in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) if "#SBATCH" in block)
    assert "--nproc-per-node=4" in job
    (tmp_path / "job.sh").write_text(job.replace("--nproc-per-node=4", "--nproc-per-node=1"))
    source = (
        "import socket\nimport torch.distributed as dist\ndef train(n):\n    ranks = [None] * dist.get_world_size()\n"
        "    dist.all_gather_object(ranks, (dist.get_rank(), socket.gethostname()))\n    return ranks, n\n"
    )
    export(notebook(tmp_path, source), "train", tmp_path / "train_torchrun.py")
    starts = "\n".join(f'{shlex.join(node.prefix)} "$@" &' for node in nodes)
    commands = {
        "bin/srun": f'while case "$1" in -*) ;; *) false ;; esac; do shift; done\n{starts}\nwait',
        "bin/scontrol": f'[ "$*" = "show hostnames nodes" ] && echo {nodes[0].name} && echo {nodes[1].name}',
        ".venv/bin/torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    for name, text in commands.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    said = {"SLURM_JOB_NODELIST": "nodes", "SLURM_NNODES": "2", "SLURM_JOB_ID": "4242", "SLURM_CPUS_PER_TASK": "16"}
    path = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "job.sh"], cwd=tmp_path, env=os.environ | said | path, capture_output=True, text=True, timeout=150,
        check=False,
    )  # fmt: skip
    ranks, n = ast.literal_eval(done.stdout or "None, 0")
    assert n == 60, done.stderr
    assert sorted(rank for rank, _ in ranks) == [0, 1]
    assert {host for _, host in ranks} == {node.name for node in nodes}


ON_THE_FIRST_NODE = """
import sys, time
import ipyparallel
import torch, torch.distributed as dist
from ppkit import launch

def main(address, profile):
    with ipyparallel.Cluster(n=1, controller_ip=address, profile_dir=profile, log_level=40) as client:
        client.wait_for_engines(2, timeout=90, interactive=False)
        clocks = client[:].apply_sync(time.perf_counter)
        run = launch(ring, 4, n_ranks=2, cluster=client, show=False)
        try:
            launch(receive, n_ranks=2, cluster=client, show=False)
        except Exception as error:
            print(repr((clocks, run.results, run.timeline.to_json(), type(error).__name__, str(error))))

def ring(n):
    token = torch.zeros(1)
    for _ in range(n):
        if dist.get_rank() == 0:
            dist.send(token + 1, 1)
            dist.recv(token, 1)
        else:
            dist.recv(token, 0)
            dist.send(token + 1, 0)
    return float(token)

def receive():
    dist.recv(torch.zeros(1), 1 - dist.get_rank())

main(*sys.argv[1:])
"""


def test_engines_on_two_nodes_are_ranks_on_one_clock(tmp_path: Path, nodes: tuple[Node, Node]) -> None:
    pytest.importorskip("ipyparallel")
    first, second = nodes
    (tmp_path / "first.py").write_text(ON_THE_FIRST_NODE)
    profile = tmp_path / "profile"
    kernel = first.start([sys.executable, str(tmp_path / "first.py"), first.address, str(profile)])
    deadline = time.monotonic() + 60
    while not (found := [*profile.glob("security/*engine.json")]) and time.monotonic() < deadline:
        time.sleep(0.2)
    second.start([sys.executable, "-m", "ipyparallel.engine", f"--file={found[0]}", "--log-level=40"])
    out, err = kernel.communicate(timeout=150)
    assert kernel.returncode == 0, err
    clocks, results, timeline, name, text = ast.literal_eval(out)

    assert results == (8.0, 7.0)
    ring = sorted(Timeline.from_json(timeline).messages, key=lambda message: message[0].start)
    assert [send.rank for send, _ in ring] == [0, 1] * 4
    for (_, received), (following, _) in pairwise(ring):
        assert received.end < following.start + 0.005
    if "--time" in second.prefix:
        assert abs(clocks[1] - clocks[0]) == pytest.approx(CLOCK_AHEAD, abs=60), "either may be the first engine"
    assert name == "DeadlockError"
    assert "All of them receive first" in text
    waited = [float(seconds) for seconds in re.findall(r"for (\d+\.\d) s, at", text)]
    assert len(waited) == 2
    assert all(1 <= seconds < 60 for seconds in waited), "by the notebook's clock"
