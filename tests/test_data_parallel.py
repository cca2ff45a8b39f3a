"""Replicas trained together give what one process gives, to 1e-10, however their gradients travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from ppkit.buckets import make_buckets
from ppkit.data_parallel import (
    DistributedDataParallel,
    GradientReducer,
    average_gradients,
    broadcast_module,
    check_same_model,
)
from ppkit.errors import CostsError, RankError
from ppkit.launch import launch

pytestmark = pytest.mark.ranks

WIDTH, CLASSES, STEPS = 6, 4, 3
REPLICAS = [1, 2, 3, 4]


class Net(nn.Module):
    """A tied weight, a frozen one, one that is only used where asked for, and a buffer."""

    def __init__(self, seed: int = 0, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(width, width, dtype=torch.float64)
        self.second = nn.Linear(width, width, dtype=torch.float64)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(width, width, dtype=torch.float64).requires_grad_(False)
        self.extra = nn.Linear(width, width, dtype=torch.float64)
        self.last = nn.Linear(width, CLASSES, dtype=torch.float64)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.full((), 1.0 + seed, dtype=torch.float64))

    def forward(self, x: torch.Tensor, extra: bool = True) -> torch.Tensor:
        hidden = self.frozen(torch.tanh(self.second(torch.tanh(self.first(x))))) * self.scale
        return self.last(self.extra(hidden) if extra else hidden)  # type: ignore[no-any-return]


def _batch(step: int, n_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(n_rows, WIDTH, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (n_rows,), generator=generator)


def _shard(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """This rank's rows: the first ranks have one more where they don't divide."""
    return tuple(tensor.tensor_split(dist.get_world_size())[dist.get_rank()] for tensor in tensors)


def _gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters() if p.requires_grad]


Trained = tuple[list[float], list[list[torch.Tensor | None]], list[torch.Tensor]]


def _alone(n_rows: int, extra: bool = True) -> Trained:
    """Train in one process: losses, gradients of each step, parameters at the end."""
    model, losses, gradients = Net(), [], []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(STEPS):
        x, labels = _batch(step, n_rows)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x, extra), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gradients.append(_gradients(model))
    return losses, gradients, [p.detach() for p in model.parameters()]


def _together(way: str, n_rows: int, extra: bool, bucket_bytes: int) -> Trained:
    """Train one replica: like `_alone`, with the loss of all rows."""
    model: nn.Module = Net(seed=dist.get_rank())  # they begin differently: only the broadcast makes them one
    call, reducer = model, None
    if way == "ddp":
        call = DistributedDataParallel(model, bucket_bytes=bucket_bytes, find_unused_parameters=not extra)
        reducer = call.reducer
    else:
        check_same_model(model)
        broadcast_module(model)
        if way != "plain":
            reducer = GradientReducer(model, None, bucket_bytes, find_unused=not extra, hooks=way == "hooks")
    losses, gradients = [], []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(STEPS):
        x, labels = _shard(_batch(step, n_rows))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(call(x, extra), labels)
        if reducer is not None:
            reducer.weigh(len(x))
        loss.backward()
        if way == "plain":
            average_gradients(model)
        elif way == "after":
            reducer.reduce()  # type: ignore[union-attr]
        optimizer.step()
        total = torch.nan_to_num(loss.detach()) * len(x)
        dist.all_reduce(total)
        losses.append(total.item() / n_rows)
        gradients.append(_gradients(model))
    return losses, gradients, [p.detach() for p in model.parameters()]


def _same(got: Trained, expected: Trained) -> None:
    assert got[0] == pytest.approx(expected[0], abs=1e-10)
    for mine, theirs in zip((*got[1], got[2]), (*expected[1], expected[2]), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            if a is None or b is None:
                assert a is b
            else:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_ranks", REPLICAS)
@pytest.mark.parametrize("way", ["plain", "after", "hooks", "ddp"])
def test_replicas_train_like_one_process(n_ranks: int, way: str) -> None:
    expected = _alone(12)
    for result in launch(_together, way, 12, True, 300, n_ranks=n_ranks).results:
        _same(result, expected)


@pytest.mark.parametrize("n_ranks", REPLICAS)
@pytest.mark.parametrize("n_rows", [13, 3])  # with four replicas, the second leaves one without any row
def test_unequal_shards_are_weighted_by_their_rows(n_ranks: int, n_rows: int) -> None:
    expected = _alone(n_rows)
    for result in launch(_together, "ddp", n_rows, True, 0, n_ranks=n_ranks).results:
        _same(result, expected)


@pytest.mark.parametrize("n_ranks", REPLICAS)
def test_what_no_replica_uses_keeps_no_gradient(n_ranks: int) -> None:
    expected = _alone(12, extra=False)
    assert any(gradient is None for gradient in expected[1][0])
    for result in launch(_together, "ddp", 12, False, 300, n_ranks=n_ranks).results:
        _same(result, expected)


@pytest.mark.parametrize("bucket_bytes", [0, 100, 10**9])
def test_the_size_of_buckets_changes_nothing_but_their_number(bucket_bytes: int) -> None:
    expected = _alone(12)
    run = launch(_together, "hooks", 12, True, bucket_bytes)
    for result in run.results:
        _same(result, expected)
    n_buckets = len(make_buckets(Net().named_parameters(), bucket_bytes))
    names = {e.name for e in run.timeline if e.kind == "COLLECTIVE" and e.name.startswith("bucket")}
    assert len(names) == n_buckets == {0: 7, 100: 3, 10**9: 1}[bucket_bytes]


def test_a_parameter_that_one_replica_alone_uses_counts_as_zero_on_the_others() -> None:
    def train() -> list[torch.Tensor | None]:
        model = DistributedDataParallel(Net(), find_unused_parameters=True)
        x, labels = _batch(dist.get_rank(), 4)
        nn.functional.cross_entropy(model(x, dist.get_rank() == 1), labels).backward()
        return _gradients(model)

    model = Net()
    losses = [nn.functional.cross_entropy(model(_batch(r, 4)[0], r == 1), _batch(r, 4)[1]) for r in range(3)]
    (sum(losses) / 3).backward()  # type: ignore[union-attr]
    for result in launch(train, n_ranks=3).results:
        for got, expected in zip(result, _gradients(model), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_an_unused_parameter_is_an_error_that_names_it_and_not_a_hang() -> None:
    def train() -> None:
        model = DistributedDataParallel(Net(), bucket_bytes=0)
        model(_batch(0, 4)[0], dist.get_rank() == 0).sum().backward()

    with pytest.raises(RankError, match=r"gave no gradient to extra.weight.*find_unused_parameters=True") as caught:
        launch(train, timeout=20)
    assert caught.value.rank == 1


@pytest.mark.parametrize("asked", ["DDP", "reducer"])
def test_no_sync_accumulates_and_the_backward_after_it_reduces_the_sum(asked: str) -> None:
    def train() -> tuple[int, list[torch.Tensor | None]]:
        model = DistributedDataParallel(Net(dist.get_rank()), bucket_bytes=300)
        parts = [_shard(_batch(i, 8)) for i in range(3)]
        context = model.no_sync if asked == "DDP" else model.reducer.no_sync
        with context():
            for x, labels in parts[:-1]:
                (nn.functional.cross_entropy(model(x), labels) / 3).backward()
        (nn.functional.cross_entropy(model(parts[-1][0]), parts[-1][1]) / 3).backward()
        return len(model.reducer.buckets), _gradients(model)

    model = Net()
    for i in range(3):
        x, labels = _batch(i, 8)
        (nn.functional.cross_entropy(model(x), labels) / 3).backward()
    run = launch(train)
    for _, gradients in run.results:
        for got, expected in zip(gradients, _gradients(model), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    n_reduced = sum(e.kind == "COLLECTIVE" and e.name.startswith("bucket") for e in run.timeline.of_rank(0))
    assert n_reduced == run.results[0][0]  # once, not once a micro-batch


def test_a_second_backward_without_zero_grad_adds_a_mean() -> None:
    def train() -> list[torch.Tensor | None]:
        model = DistributedDataParallel(Net())
        for step in range(2):
            x, labels = _shard(_batch(step, 8))
            nn.functional.cross_entropy(model(x), labels).backward()
        return _gradients(model)

    model = Net()
    for step in range(2):
        x, labels = _batch(step, 8)
        nn.functional.cross_entropy(model(x), labels).backward()
    for result in launch(train).results:
        for got, expected in zip(result, _gradients(model), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_buffers_are_the_first_replicas_before_every_forward_in_training() -> None:
    def train() -> list[float]:
        model = Net(seed=dist.get_rank())
        ddp, seen = DistributedDataParallel(model), []
        for mode in (True, False):
            ddp.train(mode)
            model.scale.fill_(10.0 + dist.get_rank())
            ddp(_batch(0, 2)[0])
            seen.append(model.scale.item())
        return seen

    assert launch(train).results == ([10.0, 10.0], [10.0, 11.0])


def _different(what: str) -> Callable[[], Any]:
    def build() -> None:
        odd = dist.get_rank() == 1
        model = Net(width=8 if odd and what == "shape" else WIDTH)
        if odd and what == "missing":
            del model.extra
        if odd and what == "type":
            model.last.float()
        if odd and what == "frozen":
            model.last.requires_grad_(False)
        DistributedDataParallel(model)

    return build


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("shape", r"replica 0 has 'first.weight' of shape \[6, 6\].* replica 1 has .* \[8, 8\]"),
        ("missing", "replica 0 has 'extra.weight' .* replica 1 has 'last.weight'"),
        ("type", "replica 0 has 'last.weight' .* float64 where replica 1 has .* float32"),
        ("frozen", "replica 0 has 'last.weight' .* float64 where replica 1 has .* float64, frozen"),
    ],
)
def test_models_that_differ_are_found_before_anything_is_sent(what: str, message: str) -> None:
    with pytest.raises(RankError, match=message):
        launch(_different(what), timeout=20)


def test_a_module_with_nothing_to_train() -> None:
    with pytest.raises(RankError, match="no parameter that requires a gradient"):
        launch(lambda: GradientReducer(nn.Tanh()), n_ranks=1)


@pytest.mark.parametrize("n_rows", [0, -1, float("nan"), "2"])
def test_rows_that_cannot_be(n_rows: Any) -> None:
    def weigh() -> None:
        GradientReducer(Net()).weigh(n_rows)

    with pytest.raises(RankError, match=rf"weigh\({n_rows!r}\)"):
        launch(weigh)


def test_a_sparse_gradient_is_averaged_like_any_other() -> None:
    def train() -> Any:
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Embedding(4, 2, sparse=True))
        model(torch.tensor([dist.get_rank()])).sum().backward()
        return model.module.weight.grad.tolist()

    assert launch(train).results[1] == [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]


def test_a_checkpoint_that_runs_a_backward_of_its_own_is_named() -> None:
    def train() -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        ddp = DistributedDataParallel(model)
        checkpoint(model[1], model[0](torch.ones(1, 2)), use_reentrant=True).sum().backward()
        del ddp

    with pytest.raises(RankError, match="use_reentrant=False"):
        launch(train)


def test_a_reducer_can_be_taken_off() -> None:
    def train() -> bool:
        model = Net()
        GradientReducer(model).remove()
        model(_batch(dist.get_rank(), 4)[0]).sum().backward()
        return not any(isinstance(g, torch.Tensor) and g.isnan().any() for g in _gradients(model))

    run = launch(train)
    assert all(run.results)
    assert not any(e.kind == "COLLECTIVE" for e in run.timeline)


def test_a_backward_that_failed_does_not_spoil_the_next_one() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            raise ArithmeticError("in the middle")

    def train() -> list[torch.Tensor | None]:
        model = DistributedDataParallel(Net(), bucket_bytes=10**9)
        x, labels = _shard(_batch(0, 8))
        hidden = Fails.apply(model.module.first(x))  # type: ignore[no-untyped-call]
        with pytest.raises(ArithmeticError):
            model.module.last(hidden).sum().backward()
        model.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        return _gradients(model)

    model = Net()
    nn.functional.cross_entropy(model(_batch(0, 8)[0]), _batch(0, 8)[1]).backward()
    for result in launch(train).results:
        for got, expected in zip(result, _gradients(model), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_a_group_of_some_ranks_averages_among_themselves() -> None:
    def train() -> list[torch.Tensor | None]:
        rank = dist.get_rank()
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        model = DistributedDataParallel(Net(rank), groups[rank // 2])
        x, labels = (tensor.tensor_split(2)[rank % 2] for tensor in _batch(rank // 2, 8))
        nn.functional.cross_entropy(model(x), labels).backward()
        return _gradients(model)

    results = launch(train, n_ranks=4).results
    for pair in (0, 1):
        model = Net(2 * pair)
        nn.functional.cross_entropy(model(_batch(pair, 8)[0]), _batch(pair, 8)[1]).backward()
        for result in results[2 * pair : 2 * pair + 2]:
            for got, expected in zip(result, _gradients(model), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_buckets_hold_the_last_parameters_first_and_one_type_each() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4))
    buckets = make_buckets(model.named_parameters(), 10**6)
    assert [bucket.names for bucket in buckets] == [
        ("2.bias", "2.weight"),
        ("1.bias", "1.weight"),
        ("0.bias", "0.weight"),
    ]
    assert [bucket.label for bucket in buckets] == ["bucket 0 (80 B)", "bucket 1 (160 B)", "bucket 2 (80 B)"]


def test_a_size_of_buckets_that_cannot_be() -> None:
    with pytest.raises(CostsError, match="bucket_bytes: -1"):
        make_buckets(nn.Linear(2, 2).named_parameters(), -1)
