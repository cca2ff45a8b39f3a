"""Wrong answers that have no number in the catalogue, or share one, still get the hints of their true cause."""

from __future__ import annotations

from typing import Any

import pytest
from bank import bank, graded

from ppkit.checks import lab01, lab02
from ppkit.checks.mistakes import Mistake, general, gpipe, naive, one_f_one_b, orders, zero_bubble

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize(
    ("lab", "name", "mistake"),
    [
        ("lab01", "begins_from_ones_on_the_last_rank", naive.NOT_FROM_LOSS),
        ("lab02", "leaves_before_its_last_gradient_is_sent", one_f_one_b.F41_LOST),
        ("lab02", "one_list_for_all_ranks", orders.MISPLACED),
        ("lab02", "forgets_the_last_microbatch", orders.ABSENT),
        ("lab02", "always_two_ranks", general.NO_ROWS),
        ("lab02", "runs_the_backward_itself", gpipe.LOSS_USED_UP),
        ("lab02", "all_forwards_go_down", gpipe.FORWARDS_OUT_OF_ORDER),
        ("lab02", "naive_with_small_batches", gpipe.EARLY_BACKWARD),
        ("lab02", "forwards_alone", naive.N14_NO_BACKWARD),
        ("lab02", "clears_after_the_backwards", naive.N14_CLEARED),
        ("lab03", "cool_down_begins_at_zero", orders.REPEATED),
        ("lab03", "pairs_for_every_microbatch", one_f_one_b.BEYOND_THE_LAST),
        ("lab03", "forgets_its_first_send", one_f_one_b.F41_SPOILT),
        ("lab03", "does_not_wait_for_the_receive", naive.N09_EXCHANGE),
        ("lab04", "warm_up_longer_than_the_row", zero_bubble.TOO_FEW),
        ("lab04", "messages_of_one_way", zero_bubble.ONE_WAY),
        ("lab04", "weights_the_other_way_round", general.WRONG_HERE),
    ],
)
def test_near_mistakes_are_told_apart(lab: str, name: str, mistake: Mistake) -> None:
    report, _ = graded(bank(lab, "wrong")[name])
    assert report.hints == mistake.hints, str(report)


@pytest.mark.parametrize("answer", ["1/4", (0, 25), float("nan")])
def test_what_is_no_number_was_not_counted_wrong(answer: Any) -> None:
    assert lab01.check_estimates(answer, 49152).hints == general.NO_NUMBER.hints


def test_a_name_that_nobody_has_given_is_not_blamed_on_the_ranks() -> None:
    def microbatch_loss(output: Any, targets: Any, n_rows: int) -> Any:
        return functional.cross_entropy(output, targets) / n_rows  # type: ignore[name-defined]  # noqa: F821

    report = lab02.check_microbatch_loss(microbatch_loss)
    assert "NameError: name 'functional' is not defined" in str(report)
    assert report.hints == general.UNKNOWN_NAME.hints
