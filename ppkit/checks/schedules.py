"""Schedules that a learner's function makes: made on a rank, judged as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from ppkit.checks.judge import Unfinished, Wrong
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import NO_ROWS, RETURNED, SCHEDULE
from ppkit.checks.mistakes.orders import ABSENT, MISPLACED, REPEATED
from ppkit.checks.trial import on_ranks
from ppkit.errors import ScheduleError
from ppkit.schedule import Action, Op, Schedule

__all__ = ["cannot_run", "order_of", "run_builder"]

_INVALID = ((" is repeated", REPEATED), (" is missing", ABSENT), (" is misplaced", MISPLACED))


def run_builder(
    driver: Callable[..., Any],
    builder: Any,
    sizes: Sequence[tuple[int, ...]],
    *,
    stage_to_rank: Callable[..., tuple[int, ...]] = lambda p, _m: tuple(range(p)),
    explain: Callable[..., Mistake | None] = lambda *_: None,
) -> list[Schedule]:
    """Call a learner's builder for every size, on a rank, and return its schedules.

    Args:
        driver: calls it there, and returns plain lists of texts.
        builder: the learner's.
        sizes: numbers of ranks and of micro-batches, and of chunks on each rank where there are several.
        stage_to_rank: which rank holds each stage, for a size.
        explain: finds the mistake in rows that cannot run, from them and the size.

    Raises:
        Unfinished: it returns nothing yet.
        Wrong: one is no schedule, or cannot run.
    """
    trial = on_ranks(driver, builder, sizes, n_ranks=1, where="your function", expected=Expected(()))
    schedules = []
    for size, rows in zip(sizes, trial.results[0], strict=True):
        p, m, *chunks = size
        batches = f"{m} micro-batch{'es' * (m > 1)}"
        where = f"{p} ranks, {batches}, {chunks[0]} chunks" if chunks else f"{p} stage{'s' * (p > 1)}, {batches}"
        if rows is None:
            raise Unfinished(f"{where}: your function returned None.")
        if not isinstance(rows, list):
            raise Wrong(
                f"{where}: your function returned {rows}; it must return a list for each rank.", mistake=RETURNED
            )
        holders = stage_to_rank(*size)
        try:
            if others := [row for row in rows if not isinstance(row, list)]:
                raise ScheduleError(f"a row is {others[0] or 'nothing'}; it must be a list of texts.")
            schedule = Schedule(where, p, len(holders), m, tuple(rows), holders)
        except ScheduleError as error:
            raise Wrong(f"{where}: {error.message}", mistake=explain(_actions(rows), *size) or NO_ROWS) from None
        try:
            schedule.validate()
        except ScheduleError as error:
            fact, mistake = cannot_run(error, schedule.actions)
            if mistake is not REPEATED:  # there the order of the others tells nothing
                mistake = explain(schedule.actions, *size) or mistake
            raise Wrong(fact, mistake=mistake) from None
        schedules.append(schedule.compute_only())
    return schedules


def cannot_run(error: ScheduleError, rows: Iterable[Iterable[Action]]) -> tuple[str, Mistake]:
    """What to say of a schedule that is not valid: of a learner's rows, not of ppkit's `Schedule`; and the mistake."""
    fact = re.sub(r"\. If all of it is to be on rank \d+, say so with stage_to_rank", "", error.message)
    if not any(action.op in (Op.I, Op.W) for row in rows for action in row):
        fact = re.sub(r" \(or \w+ and \w+\)", "", fact)
    first = fact.split("\n")[0]
    return fact, next((mistake for words, mistake in _INVALID if words in first), SCHEDULE)


def _actions(rows: Sequence[Any]) -> list[list[Action]]:
    """What of the learner's texts are actions."""
    found: list[list[Action]] = []
    for row in rows:
        found.append([])
        for text in row if isinstance(row, list) else ():
            with suppress(ScheduleError):
                found[-1].append(Action.parse(text))
    return found


def order_of(row: Iterable[Action], op: Op) -> list[int]:
    """The micro-batches of one operation, in a rank's order."""
    return [action.microbatch for action in row if action.op is op and action.microbatch is not None]
