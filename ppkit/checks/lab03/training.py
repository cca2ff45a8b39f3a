"""Tasks 3 to 5: an exchange, a step with a bug in it, and the whole step; what they show beside the checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppkit.builders import one_f_one_b
from ppkit.checks.drivers import lab03 as ranks
from ppkit.checks.judge import Passed, Wrong, graded, require_function
from ppkit.checks.lab03.order import Order, judge_order
from ppkit.checks.messages import Expected, Message, never_waited
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.mistakes.naive import N03, N09_EXCHANGE
from ppkit.checks.mistakes.one_f_one_b import F34, F36, F37, F38, F39, F41_RECEIVE, F41_SPOILT, G21_BETWEEN
from ppkit.checks.oracle_gpipe import Cut
from ppkit.checks.show import show_beside
from ppkit.checks.steps import (
    STEP_PARAMETERS,
    digits_cut,
    judge_losses,
    judge_manner,
    judge_weights,
    recognise,
    require_waits,
    train_trial,
    weights_difference,
)
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import difference
from ppkit.simulate import simulate
from ppkit.timeline import Timeline

__all__ = ["check_exchange", "check_first_rank_step", "check_one_f_one_b_step", "show_step"]

Function = Callable[..., Any]
EXCHANGE_PARAMETERS = ("outgoing", "incoming", "peer")
FIRST_RANK_PARAMETERS = ("stage", "optimizer", "microbatches", "n_ranks")
# Ranks, and the rows of each step's micro-batches: more than ranks, ragged, fewer than ranks.
SETTINGS = ((2, ((3, 3, 3, 3),)), (3, ((4, 4, 4, 4, 2), (4, 4, 4, 4, 2))), (4, ((6, 5), (4, 3))))

# Task 3: exchange


@graded("Task 3, exchange", 15)
def check_exchange(exchange: Any) -> Passed:
    """Check an exchange of two ranks, three times in a row."""
    require_function(exchange, "exchange", EXCHANGE_PARAMETERS)
    nbytes, rounds = 300 * 100 * 8, 3
    messages = tuple(Message(rank, 1 - rank, nbytes) for rank in range(2) for _ in range(rounds))
    try:
        trial = on_ranks(ranks.exchange, exchange, rounds, n_ranks=2, where="2 ranks", expected=Expected(messages))
    except Wrong as verdict:
        _explain(verdict, 2, 0)
        raise
    for rank, seen in enumerate(trial.results):
        _judge_exchanged(trial, rank, seen)
    trial.require_messages()
    require_waits(trial)
    return Passed(
        "Three times each rank got what the other had sent.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _judge_exchanged(trial: Trial, rank: int, seen: Sequence[Any]) -> None:
    if all(value is None for value in seen):
        if not any(trial.timeline.bytes_sent):
            raise trial.unfinished("your function returned None, and nothing was sent.", rank=rank)
        raise trial.wrong("your function returned nothing; it returns `incoming`.", RETURNED, rank=rank)
    for number, value in enumerate(seen):
        right = torch.full((300, 100), 10.0 * number + 1 - rank, dtype=torch.float64)
        if not isinstance(value, torch.Tensor):
            raise trial.wrong(f"your function returned {value or 'nothing'}.", RETURNED, rank=rank)
        if text := difference(value, right):
            early = bool((value == -1).any())
            spoilt = bool((value == -2).any())
            mistake = N09_EXCHANGE if early else F41_SPOILT if spoilt else WRONG_VALUES
            raise trial.wrong(f"what it got in exchange {number} {text}.", mistake, rank=rank)


# Task 4: find the bug


@graded("Task 4, the bug", 15)
def check_first_rank_step(first_rank_step: Any) -> Passed:
    """Check the mended step of the first of three ranks; the others are ppkit's."""
    require_function(first_rank_step, "first_rank_step", FIRST_RANK_PARAMETERS)
    stages, data = digits_cut(3, ((3, 3, 3, 3, 3), (3, 3, 3, 3, 3)))
    trial = train_trial(ranks.first_rank, first_rank_step, stages, data)
    if sum(event.kind == "OPTIM" for event in trial.timeline.of_rank(0)) > len(data):
        raise trial.unfinished("the bug is still in it: its weights are not those of one process.", G21_BETWEEN, rank=0)
    backwards = [number for op, number in _orders(trial.timeline.step(0))[0] if op == "B"]
    if backwards != sorted(backwards):
        order = ", ".join(map(str, backwards))
        raise trial.wrong(f"its backwards go in the order {order}.", F36, rank=0)
    recognise(trial, 0, stages, data)
    if text := weights_difference(trial, 0, stages, data):
        raise trial.wrong(text, WRONG_VALUES, rank=0)
    judge_manner(trial, 0, data)
    return Passed(
        "On 3 ranks, in two steps: every weight of rank 0 is that of one process.",
        timeline=trial.timeline,
        output=trial.output,
    )


# Task 5: the whole step


@graded("Task 5, one_f_one_b_step", 35)
def check_one_f_one_b_step(one_f_one_b_step: Any) -> Passed:
    """Check training over 2, 3 and 4 ranks: losses and weights of one process, 1F1B's order, and what is held."""
    require_function(one_f_one_b_step, "one_f_one_b_step", STEP_PARAMETERS)
    for n_ranks, sizes in SETTINGS:
        try:
            trial = _judge_setting(one_f_one_b_step, n_ranks, sizes)
        except Wrong as verdict:
            _explain(verdict, n_ranks, len(sizes[0]))
            raise
    return Passed(
        "On 2, 3 and 4 ranks, with equal and ragged micro-batches, and with fewer of them than ranks: the losses and "
        "all weights are those of one process after every step.",
        "Every rank ran its forwards and backwards in 1F1B's order, and held no more activations than that takes.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _judge_setting(step: Function, n_ranks: int, sizes: Sequence[Sequence[int]]) -> Trial:
    stages, data = digits_cut(n_ranks, sizes)
    trial = train_trial(ranks.train, step, stages, data)
    if any(trial.timeline.bytes_sent):
        _require_order(trial, data)
    judge_weights(trial, stages, data)
    judge_losses(trial, stages, data)
    _require_memory(trial, data)
    for rank in range(n_ranks):
        judge_manner(trial, rank, data)
    require_waits(trial)
    return trial


def _orders(timeline: Timeline) -> list[Order]:
    return [
        [(event.kind, event.microbatch or 0) for event in timeline.of_rank(rank) if event.kind in ("F", "B")]
        for rank in range(timeline.n_ranks)
    ]


def _require_order(trial: Trial, data: Sequence[Cut]) -> None:
    n_steps = min(len(data), trial.timeline.n_steps)
    for step in range(n_steps):
        if found := judge_order(_orders(trial.timeline.step(step)), len(data[step])):
            rank, text, mistake = found
            raise trial.wrong(f"in step {step}, {text}.", mistake, rank=rank)


def _require_memory(trial: Trial, data: Sequence[Cut]) -> None:
    for step, one in enumerate(data):
        held = trial.timeline.step(step).peak_in_flight
        right = simulate(one_f_one_b(len(held), len(one))).peak_in_flight
        for rank in range(len(held)):
            if held[rank] > right[rank]:
                text = f"it held {held[rank]} micro-batches' activations at once; 1F1B needs {right[rank]}."
                raise trial.wrong(text, F39, rank=rank)


def _explain(verdict: Wrong, n_ranks: int, m: int) -> None:
    """Find the mistake of 1F1B behind a run that got stuck or failed; m is 0 where there are no micro-batches."""
    code = verdict.mistake.code if verdict.mistake else ""
    if 0 < m < n_ranks and not code.startswith("F"):
        verdict.mistake = F34
    elif "a deadlock" in verdict.facts[0] and verdict.timeline is not None:
        _explain_deadlock(verdict, verdict.timeline, m)


def _explain_deadlock(verdict: Wrong, timeline: Timeline, m: int) -> None:
    if verdict.mistake is N03:
        verdict.mistake = F38
    found = judge_order(_orders(timeline), m) if m else None
    if found and found[2] is F37 and not any(event.kind == "OPTIM" for event in timeline.of_rank(found[0])):
        found = None  # it got stuck before its end
    if found:
        rank, text, verdict.mistake = found
        verdict.facts = (*verdict.facts, f"Until then, on rank {rank}, {text}.")
        return
    if received := next(never_waited(timeline, "RECV"), None):
        verdict.mistake = F41_RECEIVE
        verdict.facts = (*verdict.facts, f"Rank {received.rank}'s {received.label} was never waited for.")


def show_step(one_f_one_b_step: Function) -> None:
    """Draw one step of the learner's on three emulated devices, and 1F1B's schedule, on one time axis."""
    parts = digits_cut(3, ((3,) * 6,))
    show_beside(
        one_f_one_b(3, 6), ranks.train, one_f_one_b_step, *parts, name="one_f_one_b_step", parameters=STEP_PARAMETERS
    )
