"""Task 3: skips, checked before the run."""

from __future__ import annotations

from typing import Any

from ppkit.checks.drivers import lab07 as ranks
from ppkit.checks.judge import Passed, Unfinished, Wrong, graded, require_function
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.balance_skips import NOT_NAMED, S98, S99, S100, S101
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.trial import on_ranks

__all__ = ["check_find_skips"]

Stages = list[list[tuple[str, str]]]

RIGHT: tuple[tuple[Stages, dict[str, tuple[int, int]]], ...] = (
    ([[("stash", "large")], [], [("pop", "large")]], {"large": (0, 2)}),
    (
        [[("stash", "large"), ("stash", "small")], [], [("pop", "small")], [("pop", "large")]],
        {"large": (0, 3), "small": (0, 2)},
    ),
    (
        [[("stash", "red")], [("stash", "blue")], [("pop", "red")], [("pop", "blue")]],
        {"red": (0, 2), "blue": (1, 3)},
    ),
    (
        [[("stash", "first")], [("pop", "first"), ("stash", "second")], [("pop", "second")]],
        {"first": (0, 1), "second": (1, 2)},
    ),
    ([[], [("stash", "near"), ("pop", "near")], []], {"near": (1, 1)}),
    ([[], []], {}),
)
# What is wrong with it, the skip to name, the arrangement, and the mistake of taking it for right.
BROKEN: tuple[tuple[str, str, Stages, Mistake], ...] = (
    ("a pop two stages before its stash", "large", [[("pop", "large")], [], [("stash", "large")]], S98),
    ("a pop before its stash, in one stage", "near", [[], [("pop", "near"), ("stash", "near")]], S98),
    (
        "a name stashed twice",
        "small",
        [[("stash", "small")], [("stash", "small")], [("pop", "small")]],
        S99,
    ),
    (
        "a name stashed once more after its pop",
        "blue",
        [[("stash", "blue")], [("pop", "blue")], [("stash", "blue")], [("pop", "blue")]],
        S99,
    ),
    ("a name popped twice", "red", [[("stash", "red")], [("pop", "red")], [("pop", "red")]], S99),
    ("a pop without a stash", "lost", [[("stash", "red")], [("pop", "red"), ("pop", "lost")]], S100),
    ("a stash without a pop", "unused", [[("stash", "unused"), ("stash", "red")], [("pop", "red")]], S100),
)


@graded("Task 3, find_skips", 10)
def check_find_skips(find_skips: Any) -> Passed:
    """Check what the learner's function says of right and of broken arrangements of skips."""
    require_function(find_skips, "find_skips", ("stages",))
    arguments = [stages for stages, _ in RIGHT], [stages for _, _, stages, _ in BROKEN]
    trial = on_ranks(ranks.verdicts, find_skips, *arguments, n_ranks=1, where="your function", expected=Expected(()))
    right, broken = trial.results[0]["right"], trial.results[0]["broken"]
    if all(outcome == ("", None) for outcome in (*right, *broken)):
        raise Unfinished("your function returned None.")
    for (stages, wanted), (kind, said) in zip(RIGHT, right, strict=True):
        if kind:
            raise Wrong(f"{_text(stages)}\nThis is right, but was refused: {said}", mistake=S101)
        if not isinstance(said, dict):
            raise Wrong(f"{_text(stages)}\nIt returned {said or 'nothing'}; it must return a dict.", mistake=RETURNED)
        if said != wanted:
            raise Wrong(f"{_text(stages)}\nIt returned {said} instead of {wanted}.", mistake=S101)
    for (what, name, stages, mistake), (kind, said) in zip(BROKEN, broken, strict=True):
        if not kind:
            raise Wrong(f"{_text(stages)}\nIt has {what}: {name!r}. No error was raised.", mistake=mistake)
        if kind != "ValueError" or name not in said:
            text = f"It has {what}: {name!r}. The error is of type {kind} and says {said!r}."
            raise Wrong(f"{_text(stages)}\n{text}", mistake=NOT_NAMED)
    return Passed(
        f"{len(RIGHT)} right arrangements: each skip from its stage to its stage.",
        f"{len(BROKEN)} broken ones: each refused, and the skip named.",
    )


def _text(stages: Stages) -> str:
    """The arrangement, a line for each stage after the first line of the fact."""
    rows = (
        f"  stage {number}: {', '.join(f'{what} {name}' for what, name in uses) or 'nothing'}"
        for number, uses in enumerate(stages)
    )
    return "\n".join(["An arrangement of skips:", *rows])
