"""A sharded optimizer updates like a whole one, and keeps 1/n of its state."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ppkit.errors import RankError
from ppkit.launch import launch
from ppkit.zero import ShardedOptimizer, state_bytes

pytestmark = pytest.mark.ranks

SETTINGS = {
    torch.optim.Adam: {"lr": 0.05},
    torch.optim.AdamW: {"lr": 0.05, "weight_decay": 0.1},
    torch.optim.SGD: {"lr": 0.1, "momentum": 0.9},
}


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()  # 42 + 24 = 66 numbers


def _train(kind: type[torch.optim.Optimizer], sharded: bool) -> tuple[list[torch.Tensor], int]:
    model = _model()
    optimizer = (
        ShardedOptimizer(model.parameters(), kind, **SETTINGS[kind])
        if sharded
        else kind(model.parameters(), **SETTINGS[kind])
    )
    for step in range(4):
        optimizer.zero_grad()
        if step == 2:
            optimizer.param_groups[0]["lr"] *= 0.5
        x = torch.full((2, 5), float(step), dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()
    size = optimizer.state_bytes() if isinstance(optimizer, ShardedOptimizer) else state_bytes(optimizer)
    return [parameter.detach() for parameter in model.parameters()], size


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", SETTINGS)
def test_parameters_are_those_of_the_whole_optimizer(n_ranks: int, kind: type[torch.optim.Optimizer]) -> None:
    expected, whole = _train(kind, sharded=False)
    for got, size in launch(_train, kind, True, n_ranks=n_ranks).results:
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
        numbers = -(-66 // n_ranks)
        per_number = 8 if kind is torch.optim.SGD else 16
        assert numbers * per_number <= size <= numbers * per_number + 4  # and a count of steps
    assert whole >= 66 * per_number


def test_a_gradient_that_is_missing() -> None:
    def train() -> None:
        model = _model()
        model[0].requires_grad_(True)  # type: ignore[index]
        ShardedOptimizer(model.parameters(), torch.optim.Adam).step()

    with pytest.raises(RankError, match="4 of 4 parameters have no gradient"):
        launch(train)


def test_parameters_of_two_types() -> None:
    def build() -> None:
        ShardedOptimizer([*nn.Linear(2, 2).parameters(), *_model().parameters()], torch.optim.Adam)

    with pytest.raises(RankError, match=r"torch.float32 on cpu, torch.float64 on cpu"):
        launch(build)


def test_groups_of_parameters() -> None:
    with pytest.raises(RankError, match="takes parameters, not groups of them"):
        launch(lambda: ShardedOptimizer([{"params": list(_model().parameters())}], torch.optim.Adam))  # type: ignore[list-item]


def test_a_closure_is_called_before_the_update() -> None:
    def train() -> tuple[float, list[float]]:
        weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = ShardedOptimizer([weight], torch.optim.SGD, lr=0.5)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = weight.sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        return float(optimizer.step(closure)), weight.tolist()

    assert launch(train).results == ((7.0, [2.5, 3.5]), (7.0, [2.5, 3.5]))


def test_no_parameters() -> None:
    with pytest.raises(RankError, match="got none"):
        launch(lambda: ShardedOptimizer([], torch.optim.Adam))


def test_torchs_own_gives_the_same_and_is_one_step_on_the_timeline() -> None:
    def train() -> list[torch.Tensor]:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        model = _model()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.05)
        for step in range(2):
            optimizer.zero_grad()
            model(torch.full((2, 5), float(step), dtype=torch.float64)).square().mean().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    def ours() -> list[torch.Tensor]:
        model = _model()
        optimizer = ShardedOptimizer(model.parameters(), torch.optim.Adam, dist.group.WORLD, lr=0.05)
        for step in range(2):
            optimizer.zero_grad()
            model(torch.full((2, 5), float(step), dtype=torch.float64)).square().mean().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    runs = {"ZeroRedundancyOptimizer": launch(train), "ShardedOptimizer": launch(ours)}
    for mine, theirs in zip(*(run.results[0] for run in runs.values()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    for name, run in runs.items():
        steps = [event for event in run.timeline.of_rank(0) if event.kind == "OPTIM"]
        assert [event.name for event in steps] == [f"{name}.step"] * 2
        gathers = [event for event in run.timeline.of_rank(0) if event.name in ("all_gather", "broadcast")]
        assert any(steps[0].start <= event.start and event.end <= steps[0].end for event in gathers)


def test_a_scheduler_and_a_state_dict_work_on_the_part() -> None:
    def train() -> tuple[float, list[int], float]:
        model = _model()
        optimizer = ShardedOptimizer(model.parameters(), torch.optim.Adam, lr=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        model(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
        optimizer.step()
        scheduler.step()
        again = ShardedOptimizer(model.parameters(), torch.optim.Adam, lr=0.5)
        again.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
        again.step()
        sizes = [value.numel() for state in again.state.values() for value in state.values()]
        (state,) = again.state.values()
        return again.param_groups[0]["lr"], sizes, state["step"].item()

    assert launch(train, n_ranks=2).results == ((0.25, [1, 33, 33], 2.0),) * 2
