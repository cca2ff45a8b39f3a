"""The hybrid trains as one process does, on any mesh, with any schedule, ragged and uneven."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ppkit import (
    Action,
    Costs,
    Emulation,
    Link,
    Op,
    RankError,
    data,
    gpipe,
    interleaved_1f1b,
    launch,
    naive,
    one_f_one_b,
    simulate,
    zero_bubble_h1,
    zero_bubble_v,
)
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


def on_a_rank(what, schedule, n_replicas, n_rows, max_norm, bucket_bytes):
    torch.set_num_threads(1)
    whole = build(what)
    if dist.get_rank() >= schedule.n_ranks:  # other weights, to be overwritten by replica 0's
        for weight in whole.parameters():
            nn.init.zeros_(weight)
    stages = split(whole, schedule.n_stages)
    shared = shared_parameters(stages)
    pipeline_rank = dist.get_rank() % schedule.n_ranks
    mine = {s: stages[s] for s, rank in enumerate(schedule.stage_to_rank) if rank == pipeline_rank}
    hybrid = Hybrid(
        schedule, mine, loss_of(what), n_replicas, shared=shared, weigh=weigh_of(what), bucket_bytes=bucket_bytes
    )
    weights = list({id(w): w for stage in mine.values() for w in stage.parameters()}.values())
    optimizer = torch.optim.SGD(weights, lr=LR)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=step != 1)  # or zeros in what the step before has left
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


def check(what, make, shape, n_rows, max_norm=0.3, bucket_bytes=500):
    n_replicas, n_ranks = shape
    schedule = make(n_ranks)
    args = (what, schedule, n_replicas, n_rows, max_norm, bucket_bytes)
    run = launch(on_a_rank, *args, n_ranks=n_replicas * n_ranks, threads=1)
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
@pytest.mark.parametrize(("name", "bucket_bytes"), [("1f1b", 0), ("interleaved", 500), ("zb-h1", 0), ("zb-v", 2**20)])
def test_three_replicas_and_buckets_of_any_size_are_one_process(name, bucket_bytes):
    check("mlp", SCHEDULES[name], (3, 2), n_rows=25, bucket_bytes=bucket_bytes)


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["1f1b", "zb-v"])
def test_a_tied_embedding_has_one_gradient(name):
    """Summed over its two stages and over the replicas; counted once in the norm, also where one rank has both."""
    check("tied", SCHEDULES[name], (2, 2), n_rows=9)


@pytest.mark.ranks
def test_tokens_count_alike_however_they_are_spread():
    check("translator", SCHEDULES["1f1b"], (2, 2), n_rows=15)


# --- when


def buckets_of(events, stage):
    return [event for event in events if event.kind == "COLLECTIVE" and f"of stage {stage} " in event.name]


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb-v"])
def test_each_gradient_is_reduced_once_a_step_from_its_last_backward_on(name):
    """From the stage's last backward or its weight half, not before, and until the optimizer steps."""
    run = check("mlp", SCHEDULES[name], (2, 2), n_rows=16, max_norm=1e9, bucket_bytes=600)
    step = by_replica(run.timeline.step(-1), 2)
    stage_to_rank = SCHEDULES[name](2).stage_to_rank
    stages = split(build("mlp"), len(stage_to_rank))
    for rank in range(4):
        events = step.of_rank(rank)
        for stage, owner in enumerate(stage_to_rank):
            if owner != rank % 2:
                continue
            sums = buckets_of(events, stage)
            assert [int(e.name.split()[1]) for e in sums] == list(range(len(sums)))
            numbers = [w.numel() + 1 for w in stages[stage].parameters()]  # and whether there is a gradient at all
            assert sum(e.nbytes for e in sums) == 8 * sum(numbers)
            last = max((e for e in events if e.kind in "BW" and e.stage == stage), key=lambda e: e.start)
            assert all(last.start <= e.start <= e.end for e in sums)
            assert max(e.end for e in sums) <= min(e.start for e in events if e.kind == "OPTIM")


SLOW = Emulation(forward=0.03, backward=0.12, link=Link(latency=0.002), per_layer=True)
LAST_B = {"1f1b": "B", "zb-h1": "W"}


def one_emulated_step(schedule, checkpoint):
    module = nn.Sequential(*[nn.Linear(8, 8, bias=False, dtype=F64) for _ in range(4)])
    hybrid = Hybrid(schedule, [module], lambda y, t: y.square().mean(), 2, bucket_bytes=0, checkpoint=checkpoint)
    rows = torch.ones(4, 8, dtype=F64)
    hybrid.step(rows, rows)


@pytest.mark.ranks
@pytest.mark.parametrize(("name", "checkpoint"), [("1f1b", False), ("zb-h1", False), ("1f1b", True)])
def test_buckets_travel_under_the_last_backward_as_simulated(name, checkpoint):
    """Sound on a busy machine: nothing comes before its simulated time, and a bucket waits for no later layer."""
    schedule = SCHEDULES[name](2)
    run = launch(one_emulated_step, schedule, checkpoint, n_ranks=4, emulate=SLOW)
    backward = 0.15 if checkpoint else 0.12
    costs = Costs(0.03, backward, latency=0.002, n_replicas=2, parameter_bytes=4 * 512, bucket_bytes=512)
    expected = simulate(schedule.with_reduce(), costs)
    for rank in range(4):
        events, ideal = run.timeline.of_rank(rank), expected.of_rank(rank % 2)
        sums = buckets_of(events, rank % 2)
        assert [e.name for e in sums] == [e.name for e in buckets_of(ideal, rank % 2)]
        assert len(sums) == 4
        last = max((e for e in events if e.kind == LAST_B[name]), key=lambda e: e.start)
        for i, bucket in enumerate(sums):
            spread = 0.12 if name == "1f1b" else 0.06
            again = 0.03 if checkpoint else 0.0
            assert bucket.start >= last.start + again + spread * (i + 1) / 4 - 0.001
            assert bucket.end - bucket.start >= 0.004 - 1e-4
        assert sums[0].start < last.end
        waits = [e for e in events if e.kind == "WAIT" and "bucket" in e.name]
        assert all(wait.start >= last.end for wait in waits)


@pytest.mark.ranks
def test_a_reduce_that_stands_apart_waits_for_its_turn():
    """Chunk 1's buckets start at its REDUCE, which the schedule puts after all backwards."""
    rows = [[action for action in row if action.op is not Op.REDUCE] for row in interleaved_1f1b(2, 2, 2).actions]
    late = [[*row, *(Action(stage, Op.REDUCE) for stage in (rank, rank + 2))] for rank, row in enumerate(rows)]
    schedule = replace(interleaved_1f1b(2, 2, 2), actions=late)
    run = check("mlp", lambda _: schedule, (2, 2), n_rows=16)
    for rank in range(4):
        events = run.timeline.step(-1).of_rank(rank)
        backwards = max(e.end for e in events if e.kind == "B")
        assert all(e.start >= backwards for e in buckets_of(events, rank % 2 + 2))
        names = [e.name for e in events if "bucket" in e.name and e.kind == "COLLECTIVE"]
        assert [int(name.split()[4]) for name in names] == sorted(int(name.split()[4]) for name in names)


@pytest.mark.ranks
def test_a_schedule_that_reduces_some_stages_only():
    rows = [[*row, *([Action(0, Op.REDUCE)] if rank == 0 else [])] for rank, row in enumerate(gpipe(2, 2).actions)]
    with pytest.raises(RankError, match=r"GPipe reduces some stages, but not \[1\]: their replicas would drift apart"):
        launch(one_emulated_step, replace(gpipe(2, 2), actions=rows), False, n_ranks=4)


# --- parameters that not every backward reaches


class Partly(nn.Module):
    """A layer of which one part is frozen, one is never used, and one only by rows that begin with a large number."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = nn.Linear(6, 6, dtype=F64), nn.Linear(6, 6, dtype=F64)
        self.frozen, self.never = nn.Linear(6, 6, dtype=F64), nn.Linear(6, 6, dtype=F64)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        y, chosen = self.frozen(self.always(x)).tanh(), x[:, 0] > 0.5
        return torch.cat([x[:, :1], (y + chosen[:, None] * self.sometimes(x) if chosen.any() else y)[:, 1:]], 1)


def partly(which):
    torch.manual_seed(3)
    stages = [nn.Sequential(Partly(), Partly()) for _ in range(2)]
    inputs, targets = torch.randn(11, 6, dtype=F64), torch.randn(11, 6, dtype=F64)
    inputs[:, 0] = 0.0
    if which is not None:
        inputs[which, 0] = 1.0  # in one micro-batch of one replica
    return stages, inputs, targets


def train_partly(schedule, n_replicas, which, checkpoint):
    stages, inputs, targets = partly(which)
    mine = stages[dist.get_rank() % 2]
    hybrid = Hybrid(schedule, [mine], F.mse_loss, n_replicas, bucket_bytes=300, checkpoint=checkpoint)
    steps = []
    for step in range(3):
        thawed = step == 2  # in the last step
        for layer in mine:
            layer.frozen.requires_grad_(thawed)
        mine.zero_grad()
        hybrid.step(hybrid.shard(inputs), hybrid.shard(targets))
        steps.append({name: None if w.grad is None else w.grad.clone() for name, w in mine.named_parameters()})
    return steps


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "which", "checkpoint"),
    [("1f1b", 0, False), ("1f1b", 0, True), ("1f1b", 10, False), ("1f1b", None, False), ("zb-h1", 4, False)],
)
def test_frozen_thawed_and_unused_parameters(name, which, checkpoint):
    """Also where the last micro-batch, or all of one replica, leaves a parameter out that others use."""
    found = launch(train_partly, SCHEDULES[name](2), 2, which, checkpoint, n_ranks=4).results
    stages, inputs, targets = partly(which)
    for step in range(3):
        for stage in stages:
            stage.zero_grad()
            for layer in stage:
                layer.frozen.requires_grad_(step == 2)
        F.mse_loss(stages[1](stages[0](inputs)), targets).backward()
        for rank, steps in enumerate(found):
            for key, w in stages[rank % 2].named_parameters():
                assert (steps[step][key] is None) == (w.grad is None), (step, rank, key)
                if w.grad is not None:
                    torch.testing.assert_close(steps[step][key], w.grad, rtol=0, atol=1e-10)


class Twice(nn.Module):
    """One layer in two reentrant checkpoints: its gradient grows twice in a backward."""

    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Linear(4, 4, dtype=F64), nn.Linear(4, 4, dtype=F64)

    def forward(self, x):
        return checkpoint(self.layer, checkpoint(self.layer, self.first(x), use_reentrant=True), use_reentrant=True)


def train_twice():
    hybrid = Hybrid(one_f_one_b(1, 1), [Twice()], F.mse_loss, 2, bucket_bytes=0)
    hybrid.step(torch.ones(2, 4, dtype=F64), torch.ones(2, 4, dtype=F64))


@pytest.mark.ranks
def test_a_gradient_that_grows_after_its_bucket_has_left_is_an_error_and_not_a_wrong_number():
    with pytest.raises(RankError, match=r"got a gradient twice in one backward.*use_reentrant=False"):
        launch(train_twice, n_ranks=2)


def train_other_models(what):
    stage = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if what == "frozen":
        stage[dist.get_rank() // 2].requires_grad_(False)
    elif dist.get_rank() == 3:
        stage.append(nn.Linear(4, 4))
    Hybrid(gpipe(2, 1), [stage], F.mse_loss, 2)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("frozen", r"'stage [01]\.0\.weight' .*, frozen where replica 1 has"),
        ("more", r"replica 1 has 'stage 1\.2\.weight'"),
    ],
)
def test_replicas_of_different_models(what, message):
    with pytest.raises(RankError, match=message):
        launch(train_other_models, what, n_ranks=4)


@pytest.mark.ranks
def test_ranks_that_do_not_fill_the_mesh():
    with pytest.raises(RankError, match="3 replicas × 2 stages need 6 ranks, but there are 4"):
        launch(on_a_rank, "mlp", one_f_one_b(2, 2), 3, 8, 1.0, 500, n_ranks=4)


def test_a_limit_that_cannot_be():
    with pytest.raises(MeshError, match="max_norm is 0"):
        clip_grad_norm({}, 0)
