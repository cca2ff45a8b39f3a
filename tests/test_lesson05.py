"""Lesson 05's function runs unchanged under torchrun, from the script that `ppkit export` makes of the notebook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppkit.data import batches, digits
from ppkit.export import export
from ppkit.models import mlp

ONE_HOST = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "CUDA_VISIBLE_DEVICES": "",
}


def _losses_alone(n_steps: int) -> list[float]:
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _, (images, labels) in zip(range(n_steps), batches(*digits("train", torch.float64), 100, seed=0), strict=False):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.ranks
@pytest.mark.slow
def test_the_lessons_training_runs_under_torchrun_like_one_process(project_root: Path, tmp_path: Path) -> None:
    script = export(project_root / "notebooks" / "05_data_parallel.ipynb", "train_ddp", tmp_path / "train.py").path
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        env=os.environ | ONE_HOST, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = _losses_alone(15)
    assert done.stdout.splitlines()[:3] == [f"step {step:2}: loss {losses[step]:.3f}" for step in (0, 7, 14)]
