"""Ranks on GPUs: NCCL with a GPU for every rank, gloo where ranks share one, and times that include the kernels."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ppkit.launch import launch

pytestmark = [pytest.mark.gpu, pytest.mark.ranks]


def _sum_of_ranks() -> torch.Tensor:
    x = torch.full((4,), dist.get_rank() + 1.0, device="cuda")
    dist.all_reduce(x)
    return x


def test_a_gpu_for_every_rank_takes_nccl() -> None:
    run = launch(_sum_of_ranks, n_ranks=1)
    assert (run.device, run.backend) == ("cuda", "nccl")
    assert run.results[0].device.type == "cpu"
    assert run.results[0].tolist() == [1.0] * 4


def test_ranks_that_share_gpus_take_gloo_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    n_ranks = torch.cuda.device_count() + 1
    run = launch(_sum_of_ranks, n_ranks=n_ranks, device="cuda")
    assert (run.device, run.backend) == ("cuda", "gloo")
    assert run.results[0][0].item() == n_ranks * (n_ranks + 1) / 2
    assert f"{n_ranks} ranks share" in capsys.readouterr().out


def test_a_run_on_the_cpu_sees_no_gpu() -> None:
    assert launch(torch.cuda.is_available, device="cpu").results == (False, False)


def test_a_forward_lasts_as_long_as_its_kernels() -> None:
    def work() -> float:
        model = nn.Linear(4096, 4096, bias=False, device="cuda")
        x = torch.randn(16384, 4096, device="cuda")
        model(x)  # the first call sets up the library
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        model(x)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    run = launch(work, n_ranks=1)
    forward = run.timeline.of_rank(0)[1]
    assert forward.end - forward.start >= 0.8 * run.results[0]


def test_a_training_step_on_the_gpu_is_observed() -> None:
    def work() -> None:
        model = nn.Linear(8, 8, device="cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.ones(4, 8, device="cuda")).sum().backward()
        optimizer.step()

    assert [event.kind for event in launch(work, n_ranks=1).timeline] == ["F", "B", "F", "B", "OPTIM"]
