"""Lab 07's own truths: its oracles are plain training of the whole model, and its best cuts are found by trying all."""

from __future__ import annotations

import copy
from itertools import accumulate, combinations, pairwise

import pytest
import torch
from bank import bank, graded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppkit.checks import lab07, oracle
from ppkit.checks.drivers import lab07 as drivers
from ppkit.checks.lab07.cutting import CASES, LARGE
from ppkit.checks.lab07.oracle import build_skip_stages, build_thick_stages, train, without_recomputation
from ppkit.checks.lab07.recompute import SEED
from ppkit.checks.mistakes import balance_skips as mistakes
from ppkit.checks.oracle_gpipe import Cut, cut
from ppkit.checks.reference.skips import skip_step
from ppkit.checks.steps import digits_cut
from ppkit.launch import launch
from ppkit.partition import equal_sizes, partition, stage_sums

SIZES = ((5, 5, 2), (4, 4, 4))


class Whole(nn.Module):
    """All stages in one process, the first one's output handed to the last one too."""

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(copy.deepcopy(stages))

    def forward(self, images: Tensor) -> Tensor:
        first, *middle, last = self.stages
        skip = x = first(images)
        for stage in middle:
            x = stage(x)
        scores: Tensor = last(x, skip)
        return scores


def trained(stages: list[nn.Module], data: list[Cut]) -> tuple[list[float], list[list[dict[str, Tensor]]]]:
    """Losses and weights of every step, by torch alone."""
    whole = Whole(stages)
    optimizer = torch.optim.SGD(whole.parameters(), oracle.LEARNING_RATE, oracle.MOMENTUM)
    losses, weights = [], []
    for one in data:
        images, classes = one.batch
        loss = cross_entropy(whole(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        weights.append([{n: p.detach().clone() for n, p in stage.named_parameters()} for stage in whole.stages])
    return losses, weights


def largest_difference(got: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert got.keys() == right.keys()
    return max(float((got[name] - right[name]).abs().max()) for name in right)


@pytest.mark.parametrize("n_ranks", [3, 4])
def test_oracle_is_plain_training_of_the_whole_model(n_ranks: int) -> None:
    stages, data = build_skip_stages(n_ranks), digits_cut(2, SIZES)[1]
    losses, weights = trained(stages, data)
    found = train(stages, data)
    assert found.losses == pytest.approx(losses, abs=1e-12)
    for got, right in zip(found.weights, weights, strict=True):
        assert max(map(largest_difference, got, right)) < 1e-12


@pytest.mark.parametrize("mistake", ["chain", "skip", "mean", "chain twice", "skip twice", "G25"])
def test_mistake_with_the_skip_changes_the_first_stage_alone(mistake: str) -> None:
    stages, data = build_skip_stages(3), digits_cut(2, SIZES[1:])[1]
    right, wrong = train(stages, data), train(stages, data, mistake)
    differences = [largest_difference(a, b) for a, b in zip(wrong.weights[0], right.weights[0], strict=True)]
    assert differences[0] > 1e-4
    assert max(differences[1:]) < 1e-12
    assert wrong.losses == right.losses


@pytest.mark.ranks
@pytest.mark.parametrize("n_ranks", [3, 4])
def test_reference_is_one_process(n_ranks: int) -> None:
    stages, data = build_skip_stages(n_ranks), digits_cut(2, SIZES)[1]
    losses, weights = trained(stages, data)
    seen = launch(drivers.train, skip_step, stages, data, n_ranks=n_ranks, device="cpu", show=False).results
    assert seen[-1]["losses"] == pytest.approx(losses, abs=1e-10)
    for rank in range(n_ranks):
        for step, right in enumerate(weights):
            assert largest_difference(seen[rank]["weights"][step], right[rank]) < 1e-10


def test_stages_without_recomputation_are_the_whole_model() -> None:
    stages = build_thick_stages(3, dropout=0.0)
    numbers = torch.Generator().manual_seed(0)
    batch = cut((torch.randn(7, 6, dtype=torch.float64, generator=numbers), torch.arange(7) % 6), (4, 3))
    found = without_recomputation(stages, batch, SEED)
    whole = nn.Sequential(*copy.deepcopy(stages))
    inputs = batch.batch[0].requires_grad_()
    cross_entropy(whole(inputs), batch.batch[1]).backward()
    assert inputs.grad is not None
    assert torch.allclose(torch.cat([found[0]["B", i]["the stage's input"] for i in range(2)]), inputs.grad, atol=1e-12)
    for stage, results in zip(whole, found, strict=True):
        right = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
        assert largest_difference({name: results["B", 1][name] for name in right}, right) < 1e-12


def test_dropout_leaves_the_callers_random_numbers_alone() -> None:
    batch = cut((torch.ones(4, 6, dtype=torch.float64), torch.arange(4)), (2, 2))
    before = torch.get_rng_state()
    first, again = (without_recomputation(build_thick_stages(2, 0.5), batch, SEED) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[1]["F", 1]["output"], again[1]["F", 1]["output"])
    assert not torch.equal(first[0]["F", 0]["output"], first[0]["F", 1]["output"])  # each draws its own


def best_by_trying(costs: list[float], n_stages: int) -> float:
    cuts = combinations(range(1, len(costs)), n_stages - 1)
    return min(max(sum(costs[a:b]) for a, b in pairwise((0, *ends, len(costs)))) for ends in cuts)


def test_best_cut_of_every_case_is_found_by_trying_all() -> None:
    for costs, n_stages in CASES:
        assert max(stage_sums(costs, partition(costs, n_stages))) == pytest.approx(best_by_trying(costs, n_stages))


def test_equal_counts_fail_in_several_cases() -> None:
    sums = [(stage_sums(c, equal_sizes(len(c), n)), stage_sums(c, partition(c, n))) for c, n in [*CASES, LARGE]]
    assert sum(max(by_count) > max(best) * 1.001 for by_count, best in sums) >= 5
    assert list(accumulate(partition(*LARGE)))[-1] == len(LARGE[0]) == 48


UNLISTED = {
    "all_as_slow_as_the_slowest": mistakes.SLOW,
    "the_part_at_work": mistakes.BUSY,
    "one_after_the_other": mistakes.OTHER_TIME,
    "smallest_sum_of_all_stages": mistakes.NOT_THE_BEST,
    "begins_with_zeros_like": mistakes.RUNNING,
    "begins_with_whatever_was_there": mistakes.GARBAGE,
    "arguments_swapped": mistakes.SWAPPED,
    "no_gradient_of_the_input": mistakes.NO_INPUT_GRAD,
    "parameters_get_no_gradient": mistakes.NOT_ADDED,
    "evaluates_the_first_time": mistakes.NO_DROPOUT,
    "two_backwards_of_one_graph": mistakes.S103_AGAIN,
}


@pytest.mark.ranks
@pytest.mark.parametrize("name", UNLISTED)
def test_mistake_without_a_number_of_its_own_has_hints_of_its_own(name: str) -> None:
    report, _ = graded(bank("lab07", "wrong")[name])
    assert report.hints == UNLISTED[name].hints


def test_idle_part_alone_that_is_wrong_gets_no_hints_for_the_times() -> None:
    for times, mistake in (((126, 105), mistakes.OTHER_IDLE), ((126, 100), mistakes.OTHER_TIME)):
        assert lab07.check_predictions(*times, 17 / 39).hints == mistake.hints


@pytest.mark.ranks
def test_pictures_of_what_is_not_done_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    def undone(*_: object) -> None:
        raise NotImplementedError("your code here")

    lab07.show_cuts(lambda costs, n_stages: undone())
    lab07.show_step(lambda *_: undone())
    said = capsys.readouterr().out
    assert "Your cut: not done yet." in said
    assert "Your step: not done yet." in said
