"""DataParallel in one process: the same outputs and gradients as the module alone, with its known limits."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from ppkit.data_parallel import DataParallel
from ppkit.errors import LaunchError
from ppkit.scatter_gather import gather, parallel_apply, replicate, scatter, watch

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Two layers with one weight, a frozen part, a buffer that counts the calls, an absent bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4, bias=False, dtype=torch.float64)
        self.second = nn.Linear(4, 4, dtype=torch.float64)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(4, 4, dtype=torch.float64).requires_grad_(False)
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        self.calls += 1
        return self.frozen(self.second(torch.tanh(self.first(x)))) * scale  # type: ignore[no-any-return]


@pytest.mark.parametrize("n_replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("n_rows", [12, 13, 3])
def test_outputs_and_gradients_are_those_of_the_module(n_replicas: int, n_rows: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(n_rows, 4, dtype=torch.float64)
    alone, parallel = Tied(), DataParallel(Tied(), ["cpu"] * n_replicas)
    expected, got = alone(x, scale=2.0), parallel(x, scale=2.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    for y in (expected, got):
        y.square().mean().backward()
    for a, b in zip(parallel.parameters(), alone.parameters(), strict=True):
        if b.grad is None:
            assert a.grad is None
        else:
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10)


def test_only_the_first_replicas_buffers_are_kept() -> None:
    model = Tied()
    DataParallel(model, ["cpu"] * 3)(torch.ones(6, 4, dtype=torch.float64))
    assert model.calls.item() == 1


def test_a_ragged_batch_gives_the_first_ones_more_and_leaves_out_who_gets_nothing() -> None:
    cpu = torch.device("cpu")
    assert [len(x) for (x,) in scatter((torch.ones(7, 2),), [cpu] * 3)] == [3, 2, 2]
    assert [len(x) for (x,) in scatter((torch.ones(2, 2),), [cpu] * 3)] == [1, 1]


def test_whatever_has_no_rows_goes_to_all() -> None:
    shards = scatter(({"x": torch.arange(4)}, "same", torch.tensor(2)), [torch.device("cpu")] * 2)
    assert [(shard[0]["x"].tolist(), *shard[1:]) for shard in shards] == [([0, 1], "same", 2), ([2, 3], "same", 2)]


def test_a_replica_is_a_copy_whose_gradients_flow_back() -> None:
    model = Tied()
    first, second = replicate(model, [torch.device("cpu")] * 2)
    assert isinstance(second, Tied)
    assert list(second.parameters()) == []
    assert second.first.weight is second.second.weight
    assert second.first.weight.data_ptr() != model.first.weight.data_ptr()
    assert first.calls is model.calls
    assert second.calls is not model.calls
    second(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    assert model.first.weight.grad is not None


def test_replicas_run_in_threads_of_their_own_with_the_callers_gradient_mode() -> None:
    class Names(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return threading.get_ident(), torch.is_grad_enabled()

    shards = [((torch.ones(1),), {}) for _ in range(3)]
    with torch.no_grad():
        calls = parallel_apply([Names()] * 3, shards)
    assert threading.get_ident() not in {call.output[0] for call in calls}
    assert [call.output[1] for call in calls] == [False] * 3


def test_the_error_of_a_replica_is_raised() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("in a thread")

    with pytest.raises(ArithmeticError, match="in a thread"):
        DataParallel(Fails(), ["cpu"] * 2)(torch.ones(4, 2))


def test_an_exit_in_a_replica_is_the_callers() -> None:
    class Exits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        DataParallel(Exits(), ["cpu"] * 2)(torch.ones(4, 2))


def test_outputs_without_rows_cannot_be_gathered() -> None:
    with pytest.raises(LaunchError, match="compute the loss from the gathered outputs"):
        gather([torch.tensor(1.0)] * 2, torch.device("cpu"))


def test_no_device() -> None:
    for devices in ([], "cpu", ["gpu"], 2, [None], None):
        with pytest.raises(LaunchError, match="give one for each replica"):
            DataParallel(nn.Linear(2, 2), devices)


def test_the_timeline_of_a_call_has_a_row_a_replica() -> None:
    model = DataParallel(nn.Linear(2, 2), ["cpu"] * 2)
    assert model.timeline is None
    model(torch.ones(4, 2))
    assert model.timeline is not None
    assert model.timeline.n_ranks == 2
    names = [event.name for event in model.timeline.of_rank(0)]
    assert names == ["scatter", "replicate", "forward", "gather"]
    assert [event.name for event in model.timeline.of_rank(1)] == ["forward"]


class OnTheCpu(nn.DataParallel):
    """torch's own, whose forward believes in two devices; its four parts are ours, since torch's need GPUs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.device_ids, self.output_device, self.src_device_obj = [0, 1], 0, CPU

    def scatter(self, inputs, kwargs, device_ids):
        shards = scatter((inputs, kwargs), [CPU] * len(device_ids))
        return tuple(inputs for inputs, _ in shards), tuple(kwargs for _, kwargs in shards)

    def replicate(self, module, device_ids):
        return replicate(module, [CPU] * len(device_ids))

    def parallel_apply(self, replicas, inputs, kwargs):
        return [call.output for call in parallel_apply(replicas, list(zip(inputs, kwargs, strict=True)))]

    def gather(self, outputs, output_device):
        return gather(outputs, CPU)


def test_the_parts_of_torchs_own_are_watched() -> None:
    module = Tied()
    model = watch(OnTheCpu(module))
    assert model.timeline is None
    x = torch.randn(5, 4, dtype=torch.float64)
    for _ in range(2):
        output = model(x)
    torch.testing.assert_close(output, module(x))
    assert model.timeline.n_ranks == 2
    scattered, replicated, first, gathered = model.timeline.of_rank(0)
    assert [e.name for e in (scattered, replicated, first, gathered)] == ["scatter", "replicate", "forward", "gather"]
    (second,) = model.timeline.of_rank(1)
    assert scattered.start == 0 < scattered.end <= replicated.start
    assert replicated.end <= first.start < first.end <= gathered.start < gathered.end
    assert replicated.end <= second.start < second.end <= gathered.start


def test_where_there_are_no_gpus_torchs_own_has_no_parts() -> None:
    model = watch(nn.DataParallel(nn.Linear(2, 2)))
    if not model.device_ids:
        model(torch.ones(4, 2))
        assert model.timeline is None


@pytest.mark.gpu
def test_torchs_own_gives_the_same_on_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    devices = ["cuda:0", "cuda:1"]
    x = torch.randn(8, 4, dtype=torch.float64, device="cuda:0")
    ours, theirs = DataParallel(Tied().cuda(), devices), nn.DataParallel(Tied().cuda(), devices)
    torch.testing.assert_close(ours(x), theirs(x))
    for model in (ours, theirs):
        model(x).sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    watch(theirs)(x)
    for timeline in (ours.timeline, theirs.timeline):
        assert timeline is not None
        assert [event.name for event in timeline.of_rank(0)] == ["scatter", "replicate", "forward", "gather"]
        assert [event.name for event in timeline.of_rank(1)] == ["forward"]
