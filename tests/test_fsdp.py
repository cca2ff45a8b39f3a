"""The collectives of torch's own fully_shard are seen, and what it computes stays as it is."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ppkit.emulate import Emulation, Link
from ppkit.launch import launch
from ppkit.timeline import Timeline

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("this torch has no fully_shard", allow_module_level=True)

pytestmark = pytest.mark.ranks

WIDTH, LAYERS, ROWS, STEPS = 8, 3, 12, 2
LAYER_BYTES = WIDTH * WIDTH * 8


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64) for _ in range(LAYERS)])


def rows() -> torch.Tensor:
    return torch.arange(ROWS * WIDTH, dtype=torch.float64).reshape(ROWS, WIDTH).sin()


def train(net: nn.Module, mine: torch.Tensor) -> list[float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = net(mine).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sharded(early: bool) -> tuple[list[float], list[torch.Tensor]]:
    net = model()
    for layer in net:
        fsdp.fully_shard(layer)
    fsdp.fully_shard(net)
    if early:  # the next layer's weights are fetched without waiting, while one computes
        net._set_unshard_async_op(True)
    losses = train(net, rows().tensor_split(dist.get_world_size())[dist.get_rank()])
    gradients = [weight.grad.full_tensor() for weight in net.parameters()]  # type: ignore[union-attr]
    return losses, gradients


def collectives(timeline: Timeline, rank: int) -> list[tuple[str, int]]:
    return [(event.name, event.nbytes) for event in timeline.of_rank(rank) if event.kind == "COLLECTIVE"]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("emulation", [None, Emulation(forward=0.01, backward=0.02, link=Link(0.001, 1e6))])
def test_weights_are_gathered_and_gradients_scattered_as_recorded(early: bool, emulation: Emulation | None) -> None:
    run = launch(sharded, early, n_ranks=2, emulate=emulation, threads=1)
    net = model()
    losses = train(net, rows())
    assert [sum(both) / 2 for both in zip(*(result[0] for result in run.results), strict=True)] == pytest.approx(
        losses, abs=1e-10
    )
    for _, gradients in run.results:
        for found, weight in zip(gradients, net.parameters(), strict=True):
            torch.testing.assert_close(found, weight.grad, rtol=0, atol=1e-10)
    step = run.timeline.step(0)
    for rank in range(2):
        found = collectives(step, rank)
        half = LAYER_BYTES // 2  # each rank sends its shard to the other, and half of the gradients
        gathers = [("all_gather_into_tensor", half)] * LAYERS
        assert [one for one in found if one[0] != "reduce_scatter_tensor"] == gathers * 2  # forward, and backward
        assert [one for one in found if one[0] == "reduce_scatter_tensor"] == [("reduce_scatter_tensor", half)] * LAYERS
        turn = next(event.start for event in step.of_rank(rank) if event.kind == "B")
        scattered = [event.start for event in step.of_rank(rank) if event.name == "reduce_scatter_tensor"]
        assert min(scattered) >= turn
        if emulation is not None:
            assert all(e.duration >= 0.001 for e in step.of_rank(rank) if e.kind == "COLLECTIVE")


def test_a_work_is_a_work() -> None:
    def asks() -> tuple[bool, float]:
        total = torch.ones(1)
        work = dist.all_reduce(total, async_op=True)
        is_one = isinstance(work, dist.Work)
        work.wait()
        return is_one, total.item()

    assert launch(asks).results == ((True, 2.0),) * 2
