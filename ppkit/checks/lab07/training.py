"""Tasks 4 and 5: a first rank with a bug in it, and the whole step with a skip; what they show beside the checks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ppkit.builders import gpipe
from ppkit.checks.drivers import lab07 as ranks
from ppkit.checks.judge import Passed, Wrong, graded, require_function
from ppkit.checks.lab07.oracle import build_skip_stages, messages, train
from ppkit.checks.messages import Expected, Message, never_waited
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.balance_skips import (
    F41_LOST,
    GARBAGE,
    H68,
    RUNNING,
    S102,
    S103,
    S103_AGAIN,
    S104,
    S105,
    SWAPPED,
    TOO_MANY,
)
from ppkit.checks.mistakes.general import MISSING_MESSAGE, RETURNED, UNPAIRED, WRONG_VALUES
from ppkit.checks.mistakes.gpipe import G18, G19, G20, G22, G22_BETWEEN, G23, G24, G25, G26, G32, ONE_BY_ONE
from ppkit.checks.mistakes.naive import N14, N16
from ppkit.checks.mistakes.one_f_one_b import F41
from ppkit.checks.oracle import Training, parameters
from ppkit.checks.oracle_gpipe import Cut
from ppkit.checks.show import show_beside
from ppkit.checks.steps import digits_cut, require_steps
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import all_equal, first_difference
from ppkit.observe.fields import NEVER_FINISHED

__all__ = ["check_first_rank_step", "check_skip_step", "show_step"]

Function = Callable[..., Any]
FIRST_RANK_PARAMETERS = ("stage", "optimizer", "microbatches")
STEP_PARAMETERS = ("stage", "optimizer", "microbatches", "targets", "shapes", "skip_shapes", "rank", "n_ranks")
# Ranks, and the rows of each step's micro-batches: equal, ragged, fewer than ranks.
SETTINGS = ((3, ((4, 4, 4),)), (3, ((5, 5, 5, 2), (5, 5, 5, 2))), (4, ((6, 3),)))

# What the first rank's weights tell, if they are not those of one process
_SUSPECTS: tuple[tuple[str, Mistake, str], ...] = (
    ("chain", H68, "its gradients are those of the way along the stages alone; what came over the skip is lost"),
    ("skip", H68, "its gradients are those of the way over the skip alone; what came along the stages is lost"),
    ("mean", S102, "its gradients are half of what one process computes"),
    ("chain twice", S102, "the part of the gradient that came along the stages counts twice"),
    ("skip twice", S102, "the part of the gradient that came over the skip counts twice"),
)
_SAME_SIZES: tuple[tuple[str, Mistake, str], ...] = (
    ("G25", G25, "the micro-batches' gradients of the skip are swapped"),
    ("running", RUNNING, "to the gradient of each micro-batch, those of the ones before it are added"),
)
_ON_ANY_RANK: tuple[tuple[str, Mistake, str], ...] = (
    ("G18", G18, "its gradients are those of unscaled losses"),
    ("G19", G19, "its gradients are scaled twice"),
    ("G22", G22_BETWEEN, "it learned from the last micro-batch alone"),
    ("swapped", SWAPPED, "its gradients are those of a last stage that takes the skip for its input"),
)

# Task 4: find the bug


@graded("Task 4, the bug", 15)
def check_first_rank_step(first_rank_step: Any) -> Passed:
    """Check the mended step of the first of three ranks; the others are ppkit's."""
    require_function(first_rank_step, "first_rank_step", FIRST_RANK_PARAMETERS)
    stages, data = _parts(3, ((4, 4, 4), (4, 4, 4)))
    trial = _run(ranks.first_rank, first_rank_step, stages, data)
    weights = trial.results[0]["weights"][0]
    if all_equal(weights, train(stages, data[:1], "chain").weights[0][0]):
        raise trial.unfinished("the bug is still in it: its weights are not those of one process.", H68, rank=0)
    right = train(stages, data)
    _recognise(trial, 0, stages, data, right)
    _judge_rank(trial, 0, stages, data, right)
    trial.require_messages()
    _judge_manner(trial, 0, data)
    return Passed(
        "On 3 ranks, in two steps: every weight of rank 0 is that of one process.",
        timeline=trial.timeline,
        output=trial.output,
    )


# Task 5: the whole step


@graded("Task 5, skip_step", 25)
def check_skip_step(skip_step: Any) -> Passed:
    """Check training with a skip over 3 and 4 ranks: the losses and weights of one process, and the messages."""
    require_function(skip_step, "skip_step", STEP_PARAMETERS)
    for n_ranks, sizes in SETTINGS:
        stages, data = _parts(n_ranks, sizes)
        trial = _run(ranks.train, skip_step, stages, data)
        right = train(stages, data)
        _judge_weights(trial, stages, data, right)
        _judge_losses(trial, right)
        for rank in range(n_ranks):
            _judge_manner(trial, rank, data)
        _require_overlap(trial)
    return Passed(
        "On 3 and on 4 ranks, with equal and ragged micro-batches, and with fewer of them than ranks: the losses and "
        "all weights are those of one process after every step.",
        "The skip and its gradient went straight from rank to rank, one message each way for each micro-batch.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _parts(n_ranks: int, sizes: Sequence[Sequence[int]]) -> tuple[list[nn.Module], list[Cut]]:
    return build_skip_stages(n_ranks), digits_cut(2, sizes)[1]


def _run(driver: Function, step: Function, stages: Sequence[nn.Module], data: list[Cut]) -> Trial:
    rows = ", ".join(str(len(part)) for part in data[0].targets)
    expected = messages(stages, data)
    try:
        return on_ranks(
            *(driver, step, stages, data),
            n_ranks=len(stages),
            where=f"{len(stages)} ranks, micro-batches of {rows} rows",
            expected=expected,
        )
    except Wrong as verdict:
        _explain(verdict, expected)
        raise


def _explain(verdict: Wrong, expected: Expected) -> None:
    """Find the mistake behind a second backward; behind a run that got stuck: a lost send, one too many, a circle."""
    if verdict.mistake is G24 and "rank 0 raised" in verdict.facts[0]:
        verdict.mistake = S103_AGAIN
    if verdict.mistake is not UNPAIRED or verdict.timeline is None:
        return
    waits = {event.rank: event.peer for event in verdict.timeline if event.note == NEVER_FINISHED}
    sent = Counter((event.rank, event.peer or 0) for event in verdict.timeline if event.kind == "SEND")
    lost = [one for one in never_waited(verdict.timeline) if one.message is None and one.rank not in waits]
    more = [link for link, n in sent.items() if n > expected.links[link]]
    if lost:
        text = f"On rank {lost[0].rank}, its {lost[0].label} was never waited for, and never arrived."
        verdict.mistake, verdict.facts = F41_LOST, (*verdict.facts, text)
    elif more:
        sender, receiver = more[0]
        text = f"Rank {sender} has sent {sent[more[0]]} messages to rank {receiver}; this task needs "
        verdict.mistake, verdict.facts = N16, (*verdict.facts, f"{text}{expected.links[more[0]]}.")
    elif _in_a_circle(waits):
        verdict.mistake = S105


def _in_a_circle(waits: dict[int, int | None]) -> bool:
    """Whether more than two ranks wait for each other, rank 0 or one that it waits for among them."""
    ring: list[int] = []
    rank: int | None = 0
    while rank is not None and rank in waits and rank not in ring:
        ring.append(rank)
        rank = waits[rank]
    return rank is not None and rank in ring and len(ring) - ring.index(rank) > 2


def _judge_weights(trial: Trial, stages: Sequence[nn.Module], data: list[Cut], right: Training) -> None:
    initial = [parameters(stage) for stage in stages]
    untouched = all(all_equal(seen["weights"][0], own) for seen, own in zip(trial.results, initial, strict=True))
    if untouched and not any(trial.timeline.bytes_sent):
        raise trial.unfinished("no parameter has changed, and nothing was sent.")
    for rank in reversed(range(len(stages))):
        _recognise(trial, rank, stages, data, right)
    _require_direct(trial)
    trial.require_messages()
    for rank in reversed(range(len(stages))):
        _judge_rank(trial, rank, stages, data, right)


def _judge_rank(trial: Trial, rank: int, stages: Sequence[nn.Module], data: list[Cut], right: Training) -> None:
    """Refuse weights other than those of one process."""
    for step, got in enumerate(trial.results[rank]["weights"]):
        if text := first_difference(got, right.weights[step][rank]):
            never = step and all_equal(got, train(stages, data, "never").weights[step][rank])
            odd = not all(torch.isfinite(value).all() for value in got.values())
            mistake = G22 if never else GARBAGE if odd else WRONG_VALUES
            raise trial.wrong(f"after step {step}, {text}.", mistake, rank=rank)


def _recognise(trial: Trial, rank: int, stages: Sequence[nn.Module], data: list[Cut], right: Training) -> None:
    """Refuse the weights after the first step that a known mistake gives."""
    seen = trial.results[rank]
    require_steps(trial, rank, data)
    got = seen["weights"][0]
    if all_equal(got, right.weights[0][rank]):
        return
    if all_equal(got, parameters(stages[rank])):
        raise trial.wrong("its parameters are what they were before the step.", N14, rank=rank)
    if rank and seen["buffers"] < seen["calls"]:
        text = "its stage was called with one and the same buffer for several micro-batches."
        raise trial.wrong(text, G23, rank=rank)
    ragged = len({len(part) for part in data[0].targets}) > 1
    suspects = [*_SUSPECTS] if rank == 0 else []
    suspects += [*_ON_ANY_RANK]
    suspects += [("G20", G20, "small micro-batches count as much as large ones")] if ragged else []
    suspects += [*_SAME_SIZES] if not (rank or ragged) else []
    for name, mistake, text in suspects:
        if all_equal(got, train(stages, data[:1], name).weights[0][rank]):
            raise trial.wrong(f"{text}.", mistake, rank=rank)


def _require_direct(trial: Trial) -> None:
    """Refuse a skip that was handed on by the ranks between, or whose gradient never came back."""
    last = trial.timeline.n_ranks - 1
    sent = [Message(event.rank, event.peer or 0, event.nbytes) for event in trial.timeline if event.kind == "SEND"]
    for source, target, what in ((0, last, "the skip"), (last, 0, "the skip's gradient")):
        if any(message[:2] == (source, target) for message in sent):
            continue
        text = f"{what} should go straight from rank {source} to rank {target}; no message did."
        found, usual = (_onward(one, source < target, last) for one in (sent, trial.expected.messages))
        if found > usual:
            text += f" The ranks between handed on {found} bytes in this direction, where {usual} are enough."
            raise trial.wrong(text, S104)
        raise trial.wrong(text, H68 if source else MISSING_MESSAGE)
    for source, target in ((0, last), (last, 0)):
        n, usual = sum(one[:2] == (source, target) for one in sent), trial.expected.links[source, target]
        if n > usual:
            text = f"{n} messages went from rank {source} to rank {target}, where {usual} are enough."
            raise trial.wrong(text, TOO_MANY)


def _onward(messages: Sequence[Message], forward: bool, last: int) -> int:
    """Bytes that the ranks between the first and the last send in one direction."""
    return sum(one.nbytes for one in messages if 0 < one.sender < last and (one.receiver > one.sender) == forward)


def _judge_losses(trial: Trial, right: Training) -> None:
    last = len(trial.results) - 1
    for step, (loss, wanted) in enumerate(zip(trial.results[last]["losses"], right.losses, strict=True)):
        if loss is None or isinstance(loss, str):
            text = f"the last rank, {last}, returned {loss or 'nothing'}; it must return the loss of the batch."
            raise trial.wrong(text, RETURNED)
        if not math.isclose(loss, wanted, rel_tol=1e-6):
            text = f"in step {step} the last rank, {last}, returned a loss of {loss:.6g} instead of {wanted:.6g}."
            raise trial.wrong(text, G32)


def _judge_manner(trial: Trial, rank: int, data: list[Cut]) -> None:
    """Refuse right numbers that cost more backwards than micro-batches."""
    seen, m = trial.results[rank], sum(map(len, data))
    if seen["backwards"] > m:
        raise trial.wrong(f"{seen['backwards']} backwards ran for {m} micro-batches.", S103, rank=rank)
    if seen["retained"]:
        raise trial.wrong("a backward was told to keep its graph.", G26, rank=rank)
    for event in never_waited(trial.timeline.of_rank(rank)):
        raise trial.wrong(f"its {event.label} was never waited for.", F41, rank=rank)


def _require_overlap(trial: Trial) -> None:
    """Refuse micro-batches that go through one after the other."""
    order = [event.kind for event in trial.timeline.step(0).of_rank(0) if event.kind in ("F", "B")]
    if order[1] == "B":
        raise trial.wrong("its first backward came before its second forward.", ONE_BY_ONE, rank=0)


def show_step(skip_step: Function) -> None:
    """Draw one step of the learner's on three emulated devices, and GPipe's schedule, on one time axis."""
    parts = _parts(3, ((3,) * 4,))
    show_beside(gpipe(3, 4), ranks.train, skip_step, *parts, name="skip_step", parameters=STEP_PARAMETERS)
