"""Lab 05 beside its banks: predictions one by one, work that is not done, and the picture of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from bank import bank
from torch import nn

from ppkit.checks import lab05
from ppkit.checks.drivers.lab05_buckets import Setting
from ppkit.checks.lab05.buckets import settings
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.replicas import BLOCKS, COLLECTIVE_ALONE
from ppkit.checks.oracle_replicas import Net, digit_shards, train

pytestmark = pytest.mark.ranks

RIGHT = (72_360, 2, "four times as large", "dataparallel")
ASKED = {"D58", "D59"}  # wrong ideas: a wrong answer to one of several questions keeps the others' points


def test_every_mistake_that_the_lab_promises_is_in_the_bank() -> None:
    codes = {submission.code for submission in bank("lab05", "wrong").values()}
    assert {f"D{number}" for number in range(42, 60)} - codes == ASKED


@pytest.mark.parametrize(
    ("place", "answer", "code", "words"),
    [
        (0, 36_180, None, "too small"),
        (0, 48_240, None, "too small"),
        (0, 4 * 72_360, "D49", "too large"),
        (1, 10, None, "too large"),
        (1, 8, "D49", "too large"),
        (2, "as large", "D58", "it is not 'as large'"),
        (2, "twice as large", "D58", "it is not"),
        (3, "both", "D59", "it is not 'both'"),
        (3, "ddp", "D59", "it is not 'ddp'"),
    ],
)
def test_each_prediction_counts_three_points(place: int, answer: Any, code: str | None, words: str) -> None:
    answers = list(RIGHT)
    answers[place] = answer
    report = lab05.check_predictions(*answers)
    assert (report, report.done, report.mistake) == (9.0, True, code)
    assert words in str(report)


@pytest.mark.parametrize("place", range(4))
def test_missing_prediction_is_not_done_yet(place: int) -> None:
    answers: list[Any] = list(RIGHT)
    answers[place] = ...
    report = lab05.check_predictions(*answers)
    assert (report, report.done) == (9.0, False)


def nothing(*_: Any) -> None:
    """An answer that does nothing."""


class Nothing:
    """A reducer that does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def finish(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("check", "answers"),
    [
        ("check_rows", (nothing, nothing)),
        ("check_rows", (..., ...)),
        ("check_data_parallel_step", (nothing,)),
        ("check_replicas", (nothing, None)),
        ("check_reducer", (Nothing,)),
        ("check_reducer", (None,)),
    ],
)
def test_what_does_nothing_is_not_done_yet(check: str, answers: tuple[Any, ...]) -> None:
    report = getattr(lab05, check)(*answers)
    assert (report, report.done) == (0.0, False), str(report)


def test_loop_as_handed_out_is_not_done_yet_and_has_a_hint() -> None:
    def handed_out(model: nn.Module, batches: Any) -> list[float]:
        rank, n_ranks = 0, dist.get_world_size()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for images, labels in batches:
            x, t = images.tensor_split(n_ranks)[rank], labels.tensor_split(n_ranks)[rank]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), t)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        return losses

    report = lab05.check_loop(handed_out)
    assert (report, report.done, len(report.hints)) == (0.0, False, 3)


@pytest.mark.parametrize(
    ("name", "mistake"), [("BlocksInTheHook", BLOCKS), ("WaitsInTheHook", BLOCKS), ("OnlyRank0Sends", COLLECTIVE_ALONE)]
)
def test_deadlock_is_blamed_on_the_hook_only_where_the_backward_hangs(name: str, mistake: Mistake) -> None:
    assert lab05.check_reducer(bank("lab05", "wrong")[name].function).hints == mistake.hints


def test_picture_of_a_step_that_is_not_done_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lab05.show_step(...)
    assert "not done yet" in capsys.readouterr().out


# --- what the checks are made of ---


@pytest.mark.parametrize("sizes", [[[4, 4], [4, 4]], [[5, 3, 1], [2, 4, 3]], [[7]]])
def test_oracle_is_plain_training_with_the_whole_batch(sizes: list[list[int]]) -> None:
    data, model = digit_shards(sizes), Net()
    told = train(model, data)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for step, batch in enumerate(data):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.cat(batch.inputs)), torch.cat(batch.targets))
        loss.backward()  # type: ignore[no-untyped-call]
        assert told.losses[step] == pytest.approx(loss.item(), abs=1e-12)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(told.gradients[step][name], parameter.grad, rtol=0, atol=1e-12)
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(told.weights[step][name], parameter.detach(), rtol=0, atol=1e-12)


def test_settings_cover_what_the_task_promises() -> None:
    tried: list[Setting] = settings()
    assert {one.n_ranks for one in tried} == {2, 3}
    assert {one.n_microbatches for one in tried} == {1, 2}
    assert len({one.how[0] != one.how[-1] for one in tried}) == 2
    assert any(sum(p.numel() for p in one.model.parameters()) * 8 < one.bucket_bytes for one in tried)
