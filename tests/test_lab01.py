"""Lab 01: right answers earn every point, each wrong one its own hint, and no answer stops the session."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from bank import Submission, bank, graded

from ppkit.builders import naive
from ppkit.checks import lab01, trial
from ppkit.checks.mistakes import Mistake, general
from ppkit.checks.mistakes import naive as mistakes
from ppkit.checks.reference import naive as reference

RIGHT, WRONG = bank("lab01", "right"), bank("lab01", "wrong")


# --- what is right ---


@pytest.mark.parametrize(
    ("check", "points"),
    [("forward_stage", 20), ("backward_stage", 20), ("train_step", 25)],
    ids=lambda value: str(value),
)
def test_reference_earns_every_point(check: str, points: int) -> None:
    report, _ = graded(Submission("lab01", f"check_{check}", getattr(reference, check)))
    assert report == points, str(report)
    assert report.passed
    assert report.timeline is not None
    assert report.timeline.n_ranks == 4


def test_sizes_that_agree_are_not_blamed() -> None:
    report = str(graded(WRONG["a_buffer_that_lies_on_its_side"])[0])
    assert "280 bytes for a receive buffer" not in report
    assert "280 bytes for a receive buffer of 240 bytes" in str(graded(WRONG["a_buffer_that_is_too_small"])[0])


def test_partial_of_the_learners_function_is_a_function() -> None:
    step = functools.partial(RIGHT["clears_at_the_end_and_tells_everybody_the_loss"].function)
    assert lab01.check_train_step(step).passed


# --- what is wrong ---


def test_every_mistake_that_the_lab_promises_is_in_the_bank() -> None:
    recognised = {submission.code for submission in WRONG.values()}
    assert recognised >= {f"N{number:02}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 16)} | {"G22"}


def test_session_goes_on_after_every_kind_of_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TIME_LIMIT", 1.0)
    for name in ("never_ends", "leaves_at_once", "divides_by_its_rank"):
        graded(WRONG[name])
        assert lab01.check_backward_stage(reference.backward_stage).passed


def test_time_limit_is_seconds() -> None:
    assert trial.TIME_LIMIT <= 10


def test_error_names_rank_and_line_and_shows_what_was_printed() -> None:
    report, _ = graded(WRONG["divides_by_its_rank"])
    assert "rank 0 raised ZeroDivisionError: division by zero" in str(report)
    assert "return 1 / rank" in str(report)
    assert "rank 0 | my rank is 0" in str(report)
    assert "my rank is 1" in report._repr_html_()


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("sends_the_activation_backward", mistakes.N05_DIRECTION),
        ("wraps_around_at_the_last", mistakes.N05),
        ("leaves_all_messages_out", mistakes.NO_MESSAGES),
        ("a_buffer_that_is_too_small", mistakes.N06),
        ("sends_and_receives_three_rows", mistakes.N06_SENT),
        ("sends_three_rows_to_a_buffer_for_all", mistakes.N06_SENT),
        ("returns_them_in_the_other_order", mistakes.SWAPPED),
        ("passes_the_received_gradient_on", mistakes.PASSED_ON),
        ("trains_on_the_summed_loss", mistakes.SUMMED),
        ("returns_the_sum_of_losses", mistakes.SUMMED),
        ("takes_what_the_receive_returns", general.NOT_RECEIVED),
        ("receives_into_the_batch", general.NO_BUFFER),
        ("takes_the_backward_away", mistakes.N14_NO_BACKWARD),
        ("clears_the_gradients_before_the_step", mistakes.N14_CLEARED),
        ("takes_the_step_away", mistakes.N14),
    ],
)
def test_near_mistakes_have_hints_of_their_own(name: str, mistake: Mistake) -> None:
    assert graded(WRONG[name])[0].hints == mistake.hints


# --- what is not done yet ---


def blank(*_: Any) -> None:
    raise NotImplementedError("your code here")


def nothing(*_: Any) -> None:
    return None


@pytest.mark.parametrize("answer", [None, ..., blank, nothing], ids=["None", "ellipsis", "stub", "returns None"])
@pytest.mark.parametrize("check", ["check_forward_stage", "check_backward_stage", "check_train_step"])
def test_unfinished_work_is_not_done_yet(check: str, answer: Any) -> None:
    report = getattr(lab01, check)(answer)
    assert (float(report), report.done, report.passed, report.state) == (0.0, False, False, "not done yet")


def test_planted_bug_is_not_done_yet_and_has_a_hint() -> None:
    def planted(stage: Any, optimizer: Any, batch: Any) -> None:
        import torch
        import torch.distributed as dist

        optimizer.zero_grad()
        output = stage(batch)
        dist.send(output.detach(), dst=1)
        output_grad = torch.zeros_like(output)
        output.backward(output_grad)
        dist.recv(output_grad, src=1)
        optimizer.step()

    report = lab01.check_first_rank_step(planted)
    assert (float(report), report.done, report.mistake) == (0.0, False, "N09")
    assert "rank 0" in report.hints[2]


# --- the tasks on paper ---

SCHEDULE = [[str(action) for action in row] for row in naive(3).with_comms().actions]


@pytest.mark.parametrize("answer", [SCHEDULE, [" ".join(row) for row in SCHEDULE], naive(3).with_comms()], ids=str)
def test_schedule_may_be_lists_texts_or_a_schedule(answer: Any) -> None:
    assert lab01.check_schedule(answer) == 15


@pytest.mark.parametrize("answer", [None, ..., [[...], [...], [...]], [[], [], []], [SCHEDULE[0], SCHEDULE[1], [...]]])
def test_schedule_with_an_empty_row_is_not_done_yet(answer: Any) -> None:
    report = lab01.check_schedule(answer)
    assert (float(report), report.done) == (0.0, False)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([SCHEDULE[0], SCHEDULE[1], SCHEDULE[2][::-1]], "2F0"),
        ([["0F0", "0RECV_B0", "0SEND_F0", "0B0"], *SCHEDULE[1:]], "deadlock"),
        ([["0F0", "0B0"], ["1F0", "1B0"], ["2F0", "2B0"]], "Rank 0 lacks 0RECV_B0, 0SEND_F0"),
        (SCHEDULE[::-1], "misplaced"),
        ([SCHEDULE[0], SCHEDULE[1]], "3 ranks"),
        ([["0X0"], ["1F0"], ["2F0"]], "0X0"),
        (7, "actions"),
    ],
)
def test_wrong_schedule_is_shown_with_what_is_wrong(answer: Any, words: str) -> None:
    report = lab01.check_schedule(answer)
    assert (float(report), report.done) == (0.0, True)
    assert words in str(report)
    assert report.hints


@pytest.mark.parametrize(
    ("answer", "points", "done", "words"),
    [
        ((0.25, 49152), 10, True, "is right"),
        ((..., ...), 0, False, "no number yet"),
        ((0.25, ...), 5, False, "no number yet"),
        ((0.75, 49152), 5, True, "too large."),
        ((25, 49152 / 2), 0, True, "too large. A fraction from 0 to 1 is asked, not a percentage"),
        ((0.25, 49152 / 2), 5, True, "24576 bytes is too small."),
        ((float("nan"), -1), 0, True, "is no number"),
        (("a quarter", [1]), 0, True, "is no number"),
    ],
)
def test_estimates_earn_five_points_each(answer: tuple[Any, Any], points: int, done: bool, words: str) -> None:
    report = lab01.check_estimates(*answer)
    assert (float(report), report.done) == (points, done)
    assert words in str(report)


# --- what is shown beside the checks ---


def test_losses_stand_beside_those_of_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    lab01.show_losses(RIGHT["gradient_by_grad"].function)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all(line.endswith("0.0000") for line in lines[1:])
    lab01.show_losses(blank)
    assert "not done yet" in capsys.readouterr().out


def test_picture_of_an_unfinished_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lab01.show_step(blank)
    assert capsys.readouterr().out.startswith("Your step: not done yet.\n")
    lab01.show_step(lambda *_: 1 / 0)
    assert capsys.readouterr().out.startswith("Your step: does not work yet.\n3 ranks: rank 0 raised ZeroDivisionError")
