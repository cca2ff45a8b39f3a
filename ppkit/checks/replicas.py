"""Runs a learner's function on replicas, and explains how their collectives failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ppkit.checks.judge import Wrong
from ppkit.checks.messages import Expected, Message, never_waited
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.data_parallel import D51
from ppkit.checks.mistakes.general import EXCEPTION, EXCEPTION_HERE, UNPAIRED
from ppkit.checks.mistakes.replicas import COLLECTIVE_ALONE, NOT_AWAITED, OTHER_COLLECTIVES, OTHER_ROOTS
from ppkit.checks.trial import Trial, on_ranks

__all__ = ["on_replicas", "require_waits"]

_COLLECTIVE = re.compile(r"waits in (wait for )?(?!i?send|i?recv|wait)")


def on_replicas(
    driver: Callable[..., Any], *args: Any, n_ranks: int, where: str, messages: Sequence[Message] = ()
) -> Trial:
    """Call `driver(*args)` on ranks that hold replicas: `on_ranks`, where only the driver sends messages.

    Raises:
        Unfinished: the function still raises NotImplementedError.
        Wrong: a rank raised, exited, crashed, waited for ever or took too long.
    """
    try:
        return on_ranks(driver, *args, n_ranks=n_ranks, where=where, expected=Expected(tuple(messages)))
    except Wrong as verdict:
        verdict.mistake = _of_replicas(verdict, EXCEPTION if n_ranks > 1 else EXCEPTION_HERE)
        raise


def require_waits(trial: Trial) -> None:
    """Refuse collectives that nobody has waited for: what they leave in a tensor is luck.

    Raises:
        Wrong: the first of them, with its rank.
    """
    for event in never_waited(trial.timeline, "COLLECTIVE"):
        raise trial.wrong(f"nobody waits for its asynchronous {event.name}.", NOT_AWAITED, rank=event.rank)


def _of_replicas(verdict: Wrong, raised: Mistake) -> Mistake | None:
    """The mistake where there are no stages, and mostly collectives instead of messages."""
    fact, mistake = verdict.facts[0], verdict.mistake
    if "with different tensors" in fact:
        return D51
    if "name different roots" in fact:
        return OTHER_ROOTS
    if "in different collectives" in fact:
        return OTHER_COLLECTIVES
    if "a deadlock" in fact:
        verdict.facts = verdict.facts[:1]  # the others are about messages between stages
        return COLLECTIVE_ALONE if _COLLECTIVE.search(fact) else UNPAIRED
    return raised if mistake and mistake.code else mistake
