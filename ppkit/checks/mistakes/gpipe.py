"""Hints for the mistakes of a training step over micro-batches: G18 to G32 of the catalogue."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

G22 = Mistake(
    "G22",
    "The first step is right. From the second on, the parameters are those that come out when gradients of earlier "
    "steps are still counted.",
    "A backward adds to the gradients that are there. Nothing takes them away by itself.",
    "The beginning, or the end, of your step: what must hold for the gradients before the first backward?",
)
