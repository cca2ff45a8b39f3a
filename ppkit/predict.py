"""Sets a learner's prediction beside the formula and the measurement."""

from __future__ import annotations

import math

from ppkit.units import number
from ppkit.values import real

__all__ = ["side_by_side"]

_CLOSE = 0.1  # a prediction within a tenth counts as right: rounding is no mistake


def side_by_side(
    quantity: str, predicted: float | None, formula: float | None = None, unit: str = "", **seen: float | None
) -> None:
    """Print a prediction, the formula's value and what was simulated or measured in one table, with a verdict.

    Args:
        quantity: what was predicted.
        predicted: the learner's number; None for none yet.
        formula: the value that theory gives; None where there is no formula.
        unit: of all the numbers.
        **seen: further values by the name of their column, such as `simulated=` or `measured=`. Without a formula
            the first of them that is a number judges the prediction; None for none yet.

    Raises:
        TypeError: there is nothing to compare the prediction with.
    """
    right = ({} if formula is None else {"formula": formula}) | {name.replace("_", " "): seen[name] for name in seen}
    if not right:
        raise TypeError("side_by_side() compares a prediction with formula=…, or with what was seen, as simulated=…")
    columns = {"your prediction": _text(predicted, unit)} | {n: _text(value, unit) for n, value in right.items()}
    widths = [max(len(name), len(value)) for name, value in columns.items()]
    label = " " * len(quantity)
    print(label, *(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)), sep="   ")
    print(quantity, *(f"{value:>{width}}" for value, width in zip(columns.values(), widths, strict=True)), sep="   ")
    print(_verdict(predicted, right))


def _text(value: float | None, unit: str) -> str:
    return "–" if math.isnan(real(value)) else f"{number(real(value))} {unit}".strip()


def _verdict(predicted: float | None, values: dict[str, float | None]) -> str:
    if predicted is None:
        return "No prediction yet: write a number in its cell, then run that cell and this one again."
    guess = real(predicted)
    if not math.isfinite(guess):
        return f"A prediction is a number; got {predicted!r}."
    name, right = next(((n, real(v)) for n, v in values.items() if not math.isnan(real(v))), ("", math.nan))
    if not name:
        missing = ", ".join(f"{n} is {v!r}" for n, v in values.items())
        return f"There is no number yet to compare your prediction with: {missing}."
    if math.isclose(guess, right, rel_tol=_CLOSE, abs_tol=1e-9):
        return "Your prediction holds."
    judge = "formula's" if name == "formula" else name
    return f"Your prediction is {'above' if guess > right else 'below'} the {judge} value: read on to see why."
