"""A learner's prediction beside the formula and what was seen."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from ppkit.predict import side_by_side


def printed(capsys: pytest.CaptureFixture[str], *args: Any, **kwargs: Any) -> list[list[str]]:
    side_by_side(*args, **kwargs)
    return [
        [cell.strip() for cell in line.split("   ") if cell.strip()] for line in capsys.readouterr().out.split("\n")
    ]


def test_formula_and_measurement_stand_beside_the_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    names, values, verdict, _ = printed(capsys, "a step", 650, formula=660, unit="ms", simulated=660.0, on_ranks=671.3)
    assert names == ["your prediction", "formula", "simulated", "on ranks"]
    assert values == ["a step", "650 ms", "660 ms", "660 ms", "671 ms"]
    assert verdict == ["Your prediction holds."]


@pytest.mark.parametrize(
    ("predicted", "said"),
    [
        (None, "No prediction yet: write a number in its cell, then run that cell and this one again."),
        (100, "Your prediction is below the formula's value: read on to see why."),
        (1000, "Your prediction is above the formula's value: read on to see why."),
        ("four", "A prediction is a number; got 'four'."),
        (float("nan"), "A prediction is a number; got nan."),
        (True, "A prediction is a number; got True."),
        (numpy.float32(660), "Your prediction holds."),
    ],
)
def test_verdict(capsys: pytest.CaptureFixture[str], predicted: Any, said: str) -> None:
    *_, verdict, _ = printed(capsys, "a step", predicted, formula=660)
    assert verdict == [said]


def test_without_a_formula_the_first_of_what_was_seen_judges(capsys: pytest.CaptureFixture[str]) -> None:
    names, values, verdict, _ = printed(capsys, "bubble", 0.2, simulated=0.124, measured=0.2)
    assert names == ["your prediction", "simulated", "measured"]
    assert values == ["bubble", "0.2", "0.124", "0.2"]
    assert verdict == ["Your prediction is above the simulated value: read on to see why."]


def test_a_number_that_is_not_there_yet_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    *_, values, verdict, _ = printed(capsys, "bubble", 0.2, measured=None)
    assert values == ["bubble", "0.2", "–"]
    assert verdict == ["There is no number yet to compare your prediction with: measured is None."]
    *_, verdict, _ = printed(capsys, "bubble", 0.2, measured=None, simulated=0.1)
    assert verdict == ["Your prediction is above the simulated value: read on to see why."]


def test_a_prediction_is_compared_with_something() -> None:
    with pytest.raises(TypeError, match="formula="):
        side_by_side("a step", 650)
