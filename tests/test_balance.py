"""Stages are cut where the slowest one is as fast as it can be, by what the layers really cost."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ppkit import balance as module
from ppkit.balance import Balance, Layer, balance, profile
from ppkit.errors import CostsError
from ppkit.models import EncoderDecoder, ModelError, mlp, split, unet
from ppkit.partition import equal_sizes, partition, stage_sums
from ppkit.skips import Pop, SkipError, Stash


class Sleeper(nn.Module):
    """A layer that takes as long as it is told, forward, and again backward."""

    def __init__(self, seconds: float, width: int = 4) -> None:
        super().__init__()
        self.seconds = seconds
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        time.sleep(self.seconds)
        y = self.linear(x)
        if y.requires_grad:
            y.register_hook(lambda grad: time.sleep(self.seconds))
        return y


def every_cut(n_layers, n_stages):
    for cuts in combinations(range(1, n_layers), n_stages - 1):
        yield [b - a for a, b in pairwise((0, *cuts, n_layers))]


# --- partition


@pytest.mark.parametrize("seed", range(40))
def test_no_other_cut_has_a_faster_slowest_stage(seed):
    numbers = random.Random(seed)
    n_layers = numbers.randint(1, 9)
    n_stages = numbers.randint(1, n_layers)
    draw = numbers.random if seed % 2 else lambda: numbers.randint(0, 9)
    costs = [draw() for _ in range(n_layers)]
    sizes = partition(costs, n_stages)
    assert len(sizes) == n_stages
    assert sum(sizes) == n_layers
    assert min(sizes) >= 1
    best = min(max(stage_sums(costs, cut)) for cut in every_cut(n_layers, n_stages))
    assert max(stage_sums(costs, sizes)) == pytest.approx(best, abs=1e-12)


def test_greedy_would_miss_it():
    # The average of three stages is 7. Filling each stage as long as it stays within it gives 4 | 6 | 11.
    costs = [4, 6, 1, 5, 5]
    assert stage_sums(costs, [1, 1, 3]) == [4, 6, 11]
    assert stage_sums(costs, partition(costs, 3)) == [10, 6, 5]


def test_equal_layers_are_cut_evenly():
    assert partition([1.0] * 8, 4) == [2, 2, 2, 2]
    assert partition([0, 0, 0], 3) == [1, 1, 1]
    assert equal_sizes(7, 3) == [3, 2, 2]


@pytest.mark.parametrize("n_stages", [0, 4, -1, True, 1.5])
def test_stages_that_the_layers_cannot_fill(n_stages):
    with pytest.raises(CostsError, match=r"there are 3 layers and each stage needs one; use 1\.\.3 stages"):
        partition([1, 2, 3], n_stages)


def test_few_layers_are_told_in_their_number():
    with pytest.raises(
        CostsError, match=r"n_stages is 2, but there is 1 layer and each stage needs one; use 1 stage, or"
    ):
        partition([1], 2)
    with pytest.raises(CostsError, match="there are no layers and each stage needs one; give it at least one"):
        partition([], 1)
    with pytest.raises(CostsError, match="costs is 3; give a list with the cost of each layer"):
        partition(3, 1)


def test_numbers_of_numpy():
    assert partition(np.array([2.0, 3, 4, 9]), np.int64(2)) == [3, 1]
    assert equal_sizes(7, np.int64(3)) == [3, 2, 2]


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), None, "2"])
def test_costs_that_cannot_be(cost):
    with pytest.raises(CostsError, match="layer 1 costs"):
        partition([1, cost], 1)


# --- profile


def test_bytes_are_those_of_the_tensors():
    linear, relu = nn.Linear(64, 32), nn.ReLU()
    first, second = profile([linear, relu], torch.randn(10, 64), repeats=1)
    assert first.parameter_bytes == (64 * 32 + 32) * 4
    assert first.activation_bytes == 10 * 64 * 4  # a linear layer keeps its input, and no copy of its weight
    assert first.output_bytes == second.output_bytes == 10 * 32 * 4
    assert second.activation_bytes == 10 * 32 * 4  # a ReLU keeps its output
    assert second.parameter_bytes == 0


def test_a_batch_counts_without_the_data_set_that_it_is_cut_from():
    data_set = torch.randn(1000, 64)
    (layer,) = profile([nn.Linear(64, 32)], data_set[:10], repeats=1)
    assert layer.activation_bytes == 10 * 64 * 4


def test_durations_are_those_of_each_layer():
    layers = profile([Sleeper(0.0), Sleeper(0.02), Sleeper(0.0)], torch.randn(2, 4), repeats=3)
    assert layers[1].forward >= 0.02
    assert layers[1].backward >= 0.02
    assert layers[1].seconds == layers[1].forward + layers[1].backward


def test_a_profile_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    sample, state = torch.randn(5, 6), torch.get_rng_state()
    profile(model, sample, repeats=1)
    assert (model[0].weight.grad == 7).all()
    assert model[3].weight.grad is None
    assert (model[1].running_mean == 0).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_tuples_pass_through_the_translator():
    model = EncoderDecoder(width=16, n_heads=2)
    layers = profile(model, (torch.ones(3, 6, dtype=torch.long), torch.ones(3, 11, dtype=torch.long)), repeats=1)
    assert [layer.name.split()[1] for layer in layers] == [type(block).__name__ for block in model]
    memory, hidden, mask = 3 * 6 * 16 * 4, 3 * 11 * 16 * 4, 3 * 6
    assert layers[0].output_bytes == memory + hidden + mask


def test_a_sample_that_does_not_fit():
    with pytest.raises(ModelError, match=r"layer 0 Sequential failed on what it was given, \[2, 3\]"):
        profile(mlp(), torch.randn(2, 3))


# --- balance


def test_balanced_by_time():
    model = nn.Sequential(Sleeper(0.0), Sleeper(0.0), Sleeper(0.03), Sleeper(0.0))
    found = balance(model, torch.randn(2, 4), 2, repeats=3)
    assert found.sizes in ((2, 2), (3, 1))  # the slow one is a stage's only slow one either way
    slow = nn.Sequential(Sleeper(0.03), Sleeper(0.03), Sleeper(0.0), Sleeper(0.0))
    found = balance(slow, torch.randn(2, 4), 2, repeats=3)
    assert found.sizes == (1, 3)
    assert found.boundaries == (1,)
    assert found.equal.sizes == (2, 2)
    assert max(found.stage_seconds) < max(found.equal.stage_seconds)
    assert found.predict(8).bubble_fraction < found.equal.predict(8).bubble_fraction
    assert [len(stage) for stage in split(slow, 2, by=found.sizes)] == [1, 3]


def test_balanced_by_memory():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    found = balance(model, torch.randn(1, 100), 2, by="memory", repeats=1)
    assert found.sizes == (1, 3)
    assert found.stage_bytes[0] == 4 * (100 * 100 + 100) * 4 + 100 * 4
    in_flight = balance(model, torch.randn(1000, 100), 2, by="memory", repeats=1, n_in_flight=8, copies=1)
    assert in_flight.stage_bytes[0] == (100 * 100 + 100) * 4 + 8 * 1000 * 100 * 4


def test_balanced_by_memory_where_stages_hold_unequal_numbers_of_microbatches():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(50, 50), nn.Tanh()) for _ in range(8)))
    held = [min(3 - r, 8) for r in range(3)]  # 1F1B on three ranks
    found = balance(model, torch.randn(400, 50), 3, by="memory", repeats=1, n_in_flight=held)

    def largest(sizes: tuple[int, ...]) -> int:
        return max(replace(found, sizes=sizes).stage_bytes)

    cuts = [(a, b, 8 - a - b) for a in range(1, 7) for b in range(1, 8 - a)]
    assert largest(found.sizes) == min(map(largest, cuts)) < largest(found.equal.sizes)
    first = found.layers[: found.sizes[0]]
    assert found.stage_bytes[0] == sum(4 * one.parameter_bytes + 3 * one.activation_bytes for one in first)
    with pytest.raises(ModelError, match="n_in_flight has 3 numbers, but there are 2 stages"):
        balance(model, torch.randn(4, 50), 2, n_in_flight=held)
    with pytest.raises(ModelError, match="n_in_flight is 0"):
        balance(model, torch.randn(4, 50), 2, n_in_flight=[1, 0])


def test_what_is_predicted_follows_from_the_layers():
    layers = tuple(Layer(f"{i} X", forward, 2 * forward, 0, 8, 0) for i, forward in enumerate([1.0, 1.0, 1.0, 3.0]))
    even = Balance(layers, (3, 1))
    assert even.stage_seconds == (9.0, 9.0)
    assert even.costs().forward == (3.0, 3.0)
    assert even.costs().activation_bytes == (8.0, 8.0)
    assert even.predict(8).makespan == pytest.approx((8 + 1) * 9)
    assert even.predict(8).bubble_fraction == pytest.approx(1 / 9)
    assert even.equal.sizes == (2, 2)
    assert even.equal.predict(8).makespan > even.predict(8).makespan


def test_the_table_shows_layers_and_both_cuts():
    layers = tuple(Layer(f"{i} X", forward, 2 * forward, 0, 8, 0) for i, forward in enumerate([1.0, 1.0, 1.0, 3.0]))
    text = str(Balance(layers, (3, 1)))
    assert text.splitlines()[4].split() == ["3", "X", "3", "s", "6", "s", "0", "B", "0", "B", "1", "1"]
    assert "balanced by time: 3 + 1 layers; stages: 9 s 9 s" in text
    assert "by layer count: 2 + 2 layers; stages: 6 s 12 s" in text
    assert "bubble fraction 11.1 %" in text


def test_more_stages_than_layers_is_said_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(module, "profile", lambda *args, **kwargs: pytest.fail("measured"))
    with pytest.raises(CostsError, match="n_stages is 5, but there are 4 layers"):
        balance(mlp(), torch.randn(2, 64), 5)


def test_arguments_that_cannot_be():
    with pytest.raises(ModelError, match='use "time" or "memory"'):
        balance(mlp(), torch.randn(2, 64), 2, by="size")
    with pytest.raises(ModelError, match="n_in_flight is 0"):
        balance(mlp(), torch.randn(2, 64), 2, n_in_flight=0)
    for name, value in (("repeats", 0), ("repeats", 1.5), ("n_in_flight", "x"), ("copies", float("nan"))):
        with pytest.raises(ModelError, match=f"{name}( is |=){value!r}"):
            balance(mlp(), torch.randn(2, 64), 2, **{name: value})
    for model in (nn.Linear(2, 2), [torch.relu]):
        with pytest.raises(ModelError, match="must be layers in order"):
            balance(model, torch.randn(2, 2), 1)
    for sample in (None, [torch.randn(2, 64)]):
        with pytest.raises(ModelError, match="tensors alone or in a tuple"):
            balance(mlp(), sample, 2)


def test_a_layer_that_changes_its_input_in_place():
    with pytest.raises(ModelError, match=r"layer 1 ReLU .* use inplace=False"):
        profile(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(2, 4))


def test_skips_reach_the_layers_that_pop_them():
    found = balance(unet(), torch.randn(2, 1, 8, 8), 3, repeats=1)
    assert sum(found.sizes) == 5
    nn.Sequential(Stash("large"), Pop("large", torch.add))(torch.ones(1))
    with pytest.raises(SkipError, match="stashed is nothing"):  # and nothing is left behind
        Pop("small")(torch.ones(1))
