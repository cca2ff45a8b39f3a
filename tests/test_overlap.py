"""Emulated and observed overlap: gradients that come layer by layer, and buckets that travel meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ppkit.data_parallel import DistributedDataParallel
from ppkit.emulate import Emulation, Link
from ppkit.event import Event
from ppkit.launch import launch
from ppkit.simulate_ddp import simulate_data_parallel
from ppkit.timeline import Timeline

pytestmark = pytest.mark.ranks

WIDTH, LAYERS = 32, 4
LAYER_BYTES = WIDTH * WIDTH * 4
SLACK = 1.0  # seconds; a shared machine may be late, but never early
# A bucket is a layer. On a ring of two it takes 2 × 5 ms + 4,096 B / bandwidth = 10 + 40 ms.
EMULATION = Emulation(forward=0.1, backward=0.2, link=Link(0.005, LAYER_BYTES / 0.04), per_layer=True)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])


def _step(way: str) -> list[torch.Tensor]:
    """Train two steps: torch lays its buckets out anew after the first, in the order in which they came."""
    model = _model()
    ddp = (
        nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1e-6)
        if way == "torch"
        else DistributedDataParallel(model, bucket_bytes=0)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        dist.barrier()
        optimizer.zero_grad()
        loss = ddp(torch.full((2, WIDTH), 1.0 + dist.get_rank())).square().mean()
        if way == "after":
            with ddp.no_sync():
                loss.backward()
            ddp.reducer.reduce()  # type: ignore[operator, union-attr]
        else:
            loss.backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def _second_step(way: str, emulation: Emulation | None) -> Timeline:
    return launch(_step, way, emulate=emulation).timeline.step(1)


def _buckets(timeline: Timeline, rank: int = 0) -> list[Event]:
    return [event for event in timeline.of_rank(rank) if event.name.startswith("bucket")]


def _one(timeline: Timeline, kind: str, rank: int = 0) -> Event:
    (event,) = [event for event in timeline.of_rank(rank) if event.kind == kind]
    return event


def _span(timeline: Timeline) -> float:
    return _one(timeline, "OPTIM").end - _one(timeline, "F").start


@pytest.mark.parametrize("way", ["ours", "torch"])
def test_buckets_travel_one_at_a_time_under_the_backward(way: str) -> None:
    timeline = _second_step(way, EMULATION)
    backward, buckets = _one(timeline, "B"), _buckets(timeline)
    assert [event.name for event in buckets] == [f"bucket {i} (4.1 kB)" for i in range(LAYERS)]
    for i, bucket in enumerate(buckets):
        # The gradient of layer i from the end is complete after (i + 1) / 4 of the backward; hooks wake 0.2 ms early.
        assert bucket.start >= backward.start + (i + 1) * 0.05 - 0.001
        assert 0.05 - 1e-4 <= bucket.end - bucket.start < 0.05 + SLACK
    assert all(before.end <= after.start + 1e-6 for before, after in pairwise(buckets))
    assert buckets[0].start < backward.end
    assert 0.2 - 1e-5 <= backward.end - backward.start < 0.2 + SLACK
    assert _one(timeline, "OPTIM").start >= buckets[-1].end  # nobody steps before the gradients are there
    assert "layer by layer" in timeline.title


def test_the_wait_for_a_bucket_is_no_part_of_the_backward() -> None:
    timeline = _second_step("ours", EMULATION)
    waits = [event for event in timeline.of_rank(0) if event.name == f"wait for bucket {LAYERS - 1} (4.1 kB)"]
    assert [wait.start >= _one(timeline, "B").end for wait in waits] == [True]


def test_overlap_shortens_the_step_as_simulated() -> None:
    """Sound on a busy machine: each step is at least as long as simulated, and by the hidden time apart."""
    simulated, measured = {}, {}
    for way in ("after", "ours"):
        link = EMULATION.link
        simulated[way] = simulate_data_parallel(
            [0.05] * LAYERS, [LAYER_BYTES] * LAYERS, 2, 0,
            forward=0.1, latency=link.latency, bandwidth=link.bandwidth, overlap=way == "ours",
        ).makespan  # fmt: skip
        measured[way] = min(_span(_second_step(way, EMULATION)) for _ in range(2))
        assert simulated[way] - 0.002 <= measured[way] < 1.5 * simulated[way]
    assert measured["ours"] < measured["after"]
    assert simulated["after"] - simulated["ours"] == pytest.approx(0.15)


def test_how_the_backward_is_spread_changes_no_value() -> None:
    plain = launch(_step, "ours").results
    for way, emulation in (("ours", EMULATION), ("torch", EMULATION), ("torch", None), ("after", EMULATION)):
        for got, expected in zip(launch(_step, way, emulate=emulation).results, plain, strict=True):
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_torchs_buckets_are_seen_without_an_emulation_and_a_hook_of_the_learner_stays() -> None:
    def hooked() -> int:
        calls = []

        def hook(state, bucket):  # type: ignore[no-untyped-def]
            calls.append(bucket.index())
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0])

        ddp = nn.parallel.DistributedDataParallel(_model())
        ddp.register_comm_hook(None, hook)
        ddp(torch.ones(2, WIDTH)).sum().backward()
        return len(calls)

    timeline = _second_step("torch", None)
    assert [event.name for event in _buckets(timeline)] == [f"bucket {i} (4.1 kB)" for i in range(LAYERS)]
    assert all(not event.note for event in timeline)
    run = launch(hooked)
    assert run.results == (1, 1)
    assert [event.name for event in run.timeline.of_rank(0) if event.kind == "COLLECTIVE"] == ["all_reduce"]


def test_synchronous_and_asynchronous_collectives_share_the_ring() -> None:
    def reduce() -> None:
        work = dist.all_reduce(torch.ones(1000), async_op=True)
        dist.all_reduce(torch.ones(1000))
        work.wait()

    # 2 hops of 20 ms each, and 4 kB at 100 kB/s: 80 ms for each
    timeline = launch(reduce, emulate=Emulation(link=Link(0.02, 1e5))).timeline
    first, second = (event for event in timeline.of_rank(0) if event.kind == "COLLECTIVE")
    assert first.end - first.start >= 0.08 - 1e-4
    assert second.end - second.start >= 0.08 - 1e-3
    assert second.end - first.start >= 0.16 - 1e-4


def test_a_part_of_the_model_that_is_not_used_leaves_its_share_to_the_end() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    timeline = launch(lambda: Half()(torch.ones(1, WIDTH)).sum().backward(), n_ranks=1, emulate=EMULATION).timeline
    backward = _one(timeline, "B")
    assert 0.2 - 1e-5 <= backward.end - backward.start < 0.2 + SLACK
