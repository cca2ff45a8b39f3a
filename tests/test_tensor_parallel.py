"""The tensor-parallel MLP is the whole one, in forward and backward, with one all-reduce each way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppkit import RankError, launch
from ppkit.tensor_parallel import ParallelMLP

F64 = torch.float64


def layers(width=6, hidden=12):
    torch.manual_seed(1)
    return nn.Linear(width, hidden, dtype=F64), nn.Linear(hidden, width, dtype=F64)


def batch():
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(5, 6, dtype=F64, generator=generator) for _ in range(2))


def on_a_rank(hidden=12):
    mlp = ParallelMLP(*layers(hidden=hidden))
    x, weights = batch()
    x.requires_grad_()
    y = mlp(x)
    (y * weights).sum().backward()
    return {"y": y.detach(), "x": x.grad, **{name: value.grad for name, value in mlp.named_parameters()}}


@pytest.mark.ranks
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
def test_it_computes_what_one_process_computes(n_ranks):
    first, second = layers()
    x, weights = batch()
    x.requires_grad_()
    y = second(nn.functional.gelu(first(x)))
    (y * weights).sum().backward()
    run = launch(on_a_rank, n_ranks=n_ranks)
    parts = {name: [result[name] for result in run.results] for name in run.results[0]}
    for name, expected in (("y", y), ("x", x.grad), ("bias", second.bias.grad)):
        for found in parts[name]:  # whole on every rank
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat(parts["rows"]), first.weight.grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat(parts["rows_bias"]), first.bias.grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat(parts["columns"], dim=1), second.weight.grad, rtol=0, atol=1e-10)


@pytest.mark.ranks
def test_one_all_reduce_each_way():
    run = launch(on_a_rank, n_ranks=2)
    for rank in range(2):
        collectives = [event for event in run.timeline.of_rank(rank) if event.kind == "COLLECTIVE"]
        assert [event.name for event in collectives] == ["all_reduce", "all_reduce"]
        assert [event.nbytes for event in collectives] == [5 * 6 * 8] * 2  # a ring of two sends each number once


@pytest.mark.ranks
def test_layers_without_a_bias():
    with pytest.raises(RankError, match="build both with bias=True"):
        launch(lambda: ParallelMLP(nn.Linear(2, 4, bias=False), nn.Linear(4, 2)))


@pytest.mark.ranks
def test_a_hidden_size_that_the_ranks_do_not_divide():
    with pytest.raises(RankError, match="same multiple of the 5 ranks"):
        launch(on_a_rank, n_ranks=5)
