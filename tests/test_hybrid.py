"""The hybrid trains as one process does, on any mesh, with any schedule, ragged and uneven."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ppkit import RankError, data, gpipe, interleaved_1f1b, launch, naive, one_f_one_b, zero_bubble_h1, zero_bubble_v
from ppkit.hybrid import Hybrid, clip_grad_norm
from ppkit.mesh import MeshError, by_replica
from ppkit.models import EncoderDecoder, TransformerLM, mlp, split
from ppkit.shared import shared_parameters

F64 = torch.float64
LR, STEPS = 0.1, 3

SCHEDULES = {
    "naive": lambda p: naive(p, 2),
    "gpipe": lambda p: gpipe(p, 3),
    "1f1b": lambda p: one_f_one_b(p, 4),
    "interleaved": lambda p: interleaved_1f1b(p, 2, 2),
    "zb-h1": lambda p: zero_bubble_h1(p, 3),
    "zb-v": lambda p: zero_bubble_v(p, 2),
}


def build(what):
    if what == "mlp":
        return mlp(width=6, n_layers=8, dtype=F64)
    if what == "tied":
        return TransformerLM(length=5, width=8, n_heads=2, n_layers=4, tie_embeddings=True, dtype=F64)
    return EncoderDecoder(source_length=3, target_length=5, width=8, n_heads=2, dtype=F64)


def rows(what, n):
    if what == "mlp":
        return data.digits("train", F64, n_images=n)
    if what == "tied":
        return data.text_windows(5, n_windows=n)
    sources, targets = data.numbers_as_words(maximum=999, n_pairs=n)
    return (sources, targets[:, :-1]), targets[:, 1:]


def loss_of(what):
    if what == "mlp":
        return F.cross_entropy
    return lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten(), ignore_index=data.PAD)


def weigh_of(what):
    return None if what == "mlp" else lambda t: int((t != data.PAD).sum())


def parts(values, n_replicas, replica):
    if isinstance(values, tuple):
        return tuple(parts(value, n_replicas, replica) for value in values)
    return values.tensor_split(n_replicas)[replica]


def on_a_rank(what, schedule, n_replicas, n_rows, max_norm):
    torch.set_num_threads(1)
    whole = build(what)
    if dist.get_rank() >= schedule.n_ranks:  # other weights, to be overwritten by replica 0's
        for weight in whole.parameters():
            nn.init.zeros_(weight)
    stages = split(whole, schedule.n_stages)
    shared = shared_parameters(stages)
    pipeline_rank = dist.get_rank() % schedule.n_ranks
    mine = {s: stages[s] for s, rank in enumerate(schedule.stage_to_rank) if rank == pipeline_rank}
    hybrid = Hybrid(schedule, mine, loss_of(what), n_replicas, shared=shared, weigh=weigh_of(what))
    weights = list({id(w): w for stage in mine.values() for w in stage.parameters()}.values())
    optimizer = torch.optim.SGD(weights, lr=LR)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        inputs, targets = (parts(part, n_replicas, hybrid.mesh.replica) for part in rows(what, n_rows))
        losses.append(hybrid.step(inputs, targets).loss)
        norms.append(hybrid.clip(max_norm))
        optimizer.step()
    held = {name: w for stage in mine.values() for name, w in stage.named_parameters()}
    return losses, norms, {name: (w.detach(), w.grad) for name, w in held.items()}


def alone(what, n_rows, max_norm):
    model = build(what)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        inputs, targets = rows(what, n_rows)
        loss = loss_of(what)(model(*inputs) if isinstance(inputs, tuple) else model(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm).item())
        optimizer.step()
    return losses, norms, model


def check(what, make, shape, n_rows, max_norm=0.3):
    n_replicas, n_ranks = shape
    schedule = make(n_ranks)
    run = launch(on_a_rank, what, schedule, n_replicas, n_rows, max_norm, n_ranks=n_replicas * n_ranks, threads=1)
    losses, norms, model = alone(what, n_rows, max_norm)
    found = [[loss for loss in result[0] if loss is not None] for result in run.results]
    totals = [sum(parts) for parts in zip(*filter(None, found), strict=True)]
    assert totals == pytest.approx(losses, abs=1e-10)
    for result in run.results:
        assert result[1] == pytest.approx(norms, abs=1e-10)
    expected = dict(model.named_parameters(remove_duplicate=False))
    names = set()
    for _, _, held in run.results:
        for name, (weight, grad) in held.items():
            names.add(name)
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-10)
            torch.testing.assert_close(grad, expected[name].grad, rtol=0, atol=1e-10)
    assert names == expected.keys()
    return run


@pytest.mark.ranks
@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2), (2, 3), (4, 2)])
def test_any_mesh_is_one_process(shape):
    check("mlp", SCHEDULES["1f1b"], shape, n_rows=23)  # ragged: no part divides it


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["naive", "gpipe", "interleaved", "zb-h1", "zb-v"])
def test_any_schedule_is_one_process(name):
    check("mlp", SCHEDULES[name], (2, 2), n_rows=17)


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["1f1b", "zb-v"])
def test_a_tied_embedding_has_one_gradient(name):
    """Summed over its two stages and over the replicas; counted once in the norm, also where one rank has both."""
    check("tied", SCHEDULES[name], (2, 2), n_rows=9)


@pytest.mark.ranks
def test_tokens_count_alike_however_they_are_spread():
    check("translator", SCHEDULES["1f1b"], (2, 2), n_rows=15)


@pytest.mark.ranks
def test_gradients_are_reduced_once_a_step_between_the_last_backward_and_the_optimizer():
    run = check("mlp", SCHEDULES["1f1b"], (2, 2), n_rows=16, max_norm=1e9)
    step = by_replica(run.timeline.step(-1), 2)
    for rank in range(4):
        events = step.of_rank(rank)
        sums = [e for e in events if e.kind == "COLLECTIVE" and e.nbytes > 1000]
        assert len(sums) == 1  # of the whole stage
        assert sums[0].start >= max(e.end for e in events if e.kind == "B")
        assert sums[0].end <= min(e.start for e in events if e.kind == "OPTIM")


@pytest.mark.ranks
def test_ranks_that_do_not_fill_the_mesh():
    with pytest.raises(RankError, match="3 replicas × 2 stages need 6 ranks, but there are 4"):
        launch(on_a_rank, "mlp", one_f_one_b(2, 2), 3, 8, 1.0, n_ranks=4)


def test_a_limit_that_cannot_be():
    with pytest.raises(MeshError, match="max_norm is 0"):
        clip_grad_norm({}, 0)
