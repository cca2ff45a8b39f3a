"""Sets a learner's prediction beside the formula and the measurement."""

from __future__ import annotations

import math

from ppkit.units import number

__all__ = ["side_by_side"]

_CLOSE = 0.1  # a prediction within a tenth of the formula counts as right: rounding is no mistake


def side_by_side(quantity: str, predicted: float | None, formula: float, unit: str = "", **seen: float) -> None:
    """Print a prediction, the formula's value and what was simulated or measured in one table, with a verdict.

    Args:
        quantity: what was predicted.
        predicted: the learner's number; None for none yet.
        formula: the value that theory gives.
        unit: of all the numbers.
        **seen: further values by the name of their column, such as `simulated=` or `measured=`.
    """
    columns = {"your prediction": _text(predicted, unit), "formula": _text(formula, unit)}
    columns |= {name.replace("_", " "): _text(value, unit) for name, value in seen.items()}
    widths = [max(len(name), len(value)) for name, value in columns.items()]
    label = " " * len(quantity)
    print(label, *(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)), sep="   ")
    print(quantity, *(f"{value:>{width}}" for value, width in zip(columns.values(), widths, strict=True)), sep="   ")
    print(_verdict(predicted, formula))


def _text(value: float | None, unit: str) -> str:
    if not isinstance(value, (int, float)):
        return "–"
    return f"{number(value)} {unit}".strip()


def _verdict(predicted: float | None, formula: float) -> str:
    if predicted is None:
        return "No prediction yet: put a number in the cell above and run both again."
    if not isinstance(predicted, (int, float)) or not math.isfinite(predicted):
        return f"A prediction is a number; got {predicted!r}."
    if math.isclose(predicted, formula, rel_tol=_CLOSE, abs_tol=1e-9):
        return "Your prediction holds."
    return f"Your prediction is {'above' if predicted > formula else 'below'} the formula's value: read on to see why."
