"""Judges predictions: numbers and words that a run or a simulation then gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppkit.checks.form import unwritten
from ppkit.checks.judge import Passed, Unfinished, Verdict, Wrong, is_blank
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import ESTIMATE, NO_CHOICE, NO_NUMBER

__all__ = ["Choice", "Estimate", "judge_estimates"]


@dataclass(frozen=True)
class Estimate:
    """One number to predict.

    Attributes:
        name: of the learner's variable.
        value: the learner's.
        right: what comes out.
        unit: in words, with a space before it; "" for a fraction.
        known: mistakes by the wrong number that they give.
        tolerance: how far from the right number the learner's may be, as a part of it.
    """

    name: str
    value: Any
    right: float
    unit: str = ""
    known: Mapping[float, Mistake] = field(default_factory=dict)
    tolerance: float = 1e-3

    def judge(self) -> tuple[str, type[Verdict], Mistake]:
        """What there is to say, the verdict, and the mistake that explains it."""
        if is_blank(self.value):
            return f"`{self.name}` has no number yet.", Unfinished, ESTIMATE
        try:
            guess = float(self.value)
        except (TypeError, ValueError, RuntimeError):
            guess = math.nan
        if math.isnan(guess):
            return f"`{self.name}` is no number: {self.value!r}.", Wrong, NO_NUMBER
        if math.isclose(guess, self.right, rel_tol=self.tolerance):
            return f"`{self.name}`: {guess:g}{self.unit} is right.", Passed, ESTIMATE
        text = f"`{self.name}`: {guess:g}{self.unit} is too {'small' if guess < self.right else 'large'}."
        if not self.unit and guess > 1:
            text += " A fraction from 0 to 1 is asked, not a percentage."
        mistake = next((m for wrong, m in self.known.items() if math.isclose(guess, wrong, rel_tol=1e-3)), ESTIMATE)
        return text, Wrong, mistake


@dataclass(frozen=True)
class Choice:
    """One answer to choose.

    Attributes:
        name: of the learner's variable.
        value: the learner's.
        right: the answer that a run or a simulation gives.
        words: all that there are to choose from.
        mistake: that a wrong one shows.
    """

    name: str
    value: Any
    right: str
    words: Sequence[str]
    mistake: Mistake

    def judge(self) -> tuple[str, type[Verdict], Mistake]:
        """What there is to say, the verdict, and the mistake that explains it."""
        if is_blank(self.value):
            return f"`{self.name}` has no answer yet.", Unfinished, self.mistake
        answer = " ".join(self.value.lower().split()) if isinstance(self.value, str) else self.value
        if answer not in self.words:
            return f"`{self.name}` must be one of {', '.join(map(repr, self.words))}.", Wrong, NO_CHOICE
        if answer == self.right:
            return f"`{self.name}`: {answer!r} is right.", Passed, self.mistake
        return f"`{self.name}`: it is not {answer!r}.", Wrong, self.mistake


def judge_estimates(estimates: Sequence[Estimate | Choice], points: float) -> Passed:
    """Judge predictions, each on its own.

    Args:
        estimates: that the task asks for.
        points: for all of them; each right one earns its part.

    Raises:
        Wrong: one is wrong.
        Unfinished: one is missing, and none is wrong.
    """
    judged = [estimate.judge() for estimate in estimates]
    facts = [fact for fact, _, _ in judged]
    if waiting := [f"`{one.name}`" for one in estimates if one.name in unwritten]:
        facts.append(f"In the form you answered {', '.join(waiting)}: run its cell once more, then this one.")
    earned = points * sum(verdict is Passed for _, verdict, _ in judged) / len(judged)
    wrong = [
        (one.name, mistake) for one, (_, verdict, mistake) in zip(estimates, judged, strict=True) if verdict is Wrong
    ]
    if wrong:
        name, mistake = wrong[0]
        if len(wrong) > 1:
            facts.append(f"The hints are about `{name}`, until it is right.")
        raise Wrong(*facts, mistake=mistake, points=earned)
    if any(verdict is Unfinished for _, verdict, _ in judged):
        raise Unfinished(*facts, points=earned)
    return Passed(*facts)
