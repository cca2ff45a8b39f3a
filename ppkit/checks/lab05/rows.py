"""Task 2: every replica's rows in an epoch, and a metric over all of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from ppkit.checks.drivers import lab05 as ranks
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.data_parallel import D56_EPOCH, D56_NO_SHARDS, D57
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.mistakes.replicas import ONLY_ONE_KNOWS, WRONG_NUMBERS
from ppkit.checks.mistakes.rows import (
    ADDED_AS_BOOL,
    D56_SAME_SHARE,
    MEAN_OF_SHARES,
    OTHER_PLACES,
    OTHER_SHUFFLES,
    OWN_METRIC,
    REMAINDER,
    SCALED_METRIC,
    TOO_MANY_ROWS,
    UNEQUAL_SHARES,
)
from ppkit.checks.replicas import on_replicas, require_waits
from ppkit.checks.trial import Trial

__all__ = ["check_rows"]

ROWS_PARAMETERS = ("n_rows", "epoch", "rank", "n_ranks")
ACCURACY_PARAMETERS = ("right", "n_rows", "rank", "n_ranks")
N_RANKS, SIZES, EPOCHS = 4, (12, 9), 3  # 9: what is left over is another number than what is missing
# By row, whether the model is right: each wrong way to an accuracy gives another number for the ten.
RIGHT = (
    (True, False, True, True, False, True, True, True),
    (True, True, False, True, True, False, False, False, True, True),
)

Shares = list[list[int]]  # of one epoch: each rank's rows


@graded("Task 2, epoch_rows and accuracy", 16)
def check_rows(epoch_rows: Any, accuracy: Any) -> Passed:
    """Check the rows of four ranks in three epochs, and an accuracy over all of them."""
    require_function(epoch_rows, "epoch_rows", ROWS_PARAMETERS)
    require_function(accuracy, "accuracy", ACCURACY_PARAMETERS)
    trial = on_replicas(ranks.rows, epoch_rows, SIZES, EPOCHS, n_ranks=N_RANKS, where=f"{N_RANKS} ranks")
    for index, n_rows in enumerate(SIZES):
        epochs = [[seen[index][epoch] for seen in trial.results] for epoch in range(EPOCHS)]
        for epoch, shares in enumerate(epochs):
            _require_lists(trial, shares, n_rows)
            _judge_shares(trial, shares, n_rows, f"of {n_rows} rows in epoch {epoch}")
        _judge_epochs(trial, epochs, n_rows)
    trial = on_replicas(ranks.accuracies, accuracy, RIGHT, n_ranks=N_RANKS, where=f"{N_RANKS} ranks")
    require_waits(trial)
    for index, right in enumerate(RIGHT):
        for rank, seen in enumerate(trial.results):
            _judge_accuracy(trial, rank, seen[index], right)
    return Passed(
        f"On {N_RANKS} ranks, for {SIZES[0]} rows and for {SIZES[1]}: the shares have equal sizes, no row is left out, "
        "and every epoch has an order of its own.",
        "The accuracy is that of the data set, on every rank, also where rows were repeated.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _require_lists(trial: Trial, shares: list[Any], n_rows: int) -> None:
    if all(share is None for share in shares):
        raise trial.unfinished("`epoch_rows` returned None.")
    for rank, share in enumerate(shares):
        if not isinstance(share, list):
            text = f"`epoch_rows` returned {share or 'nothing'}; it must return a list of row numbers."
            raise trial.wrong(text, RETURNED, rank=rank)
        for row in share:
            if not 0 <= row < n_rows:
                text = f"`epoch_rows` returned a row {row}; {n_rows} rows go from 0 to {n_rows - 1}."
                raise trial.wrong(text, RETURNED, rank=rank)


def _judge_shares(trial: Trial, shares: Shares, n_rows: int, where: str) -> None:
    """Refuse shares of one epoch that are no cut of the data set."""
    sizes = [len(share) for share in shares]
    text = "\n".join(f"  rank {rank}: {share}" for rank, share in enumerate(shares))
    if len({frozenset(share) for share in shares}) == 1:
        raise trial.wrong(f"{where}, every rank gets the same ones.\n{text}", D56_NO_SHARDS)
    if len(set(sizes)) > 1:
        numbers = ", ".join(map(str, sizes))
        raise trial.wrong(f"{where}, the ranks get {numbers}: not equally many.\n{text}", UNEQUAL_SHARES)
    counted = Counter(row for share in shares for row in share)
    missing = [row for row in range(n_rows) if row not in counted]
    if missing:
        dropped = max(counted.values()) == 1
        told = f"{where}, {', '.join(map(str, missing))} {'is' if len(missing) == 1 else 'are'} left out.\n{text}"
        raise trial.wrong(told, REMAINDER if dropped else OTHER_SHUFFLES)
    needed = -(-n_rows // N_RANKS)
    if sizes[0] > needed:
        told = f"{where}, each rank gets {sizes[0]}; {needed} are enough.\n{text}"
        raise trial.wrong(told, TOO_MANY_ROWS)


def _judge_epochs(trial: Trial, epochs: list[Shares], n_rows: int) -> None:
    if all(shares == epochs[0] for shares in epochs):
        text = f"of {n_rows} rows, every epoch gives rank 0 the rows {epochs[0][0]}."
        raise trial.wrong(text, D56_EPOCH)
    if all([set(share) for share in shares] == [set(share) for share in epochs[0]] for shares in epochs):
        text = f"of {n_rows} rows, rank 0 gets {sorted(epochs[0][0])} in every epoch, and never another one."
        raise trial.wrong(text, D56_SAME_SHARE)


def _judge_accuracy(trial: Trial, rank: int, got: Any, right: tuple[bool, ...]) -> None:
    n_rows = len(right)
    if got is None or isinstance(got, str):
        if got is None and not any(trial.timeline.bytes_sent):
            raise trial.unfinished("`accuracy` returned None.", rank=rank)
        raise trial.wrong(f"`accuracy` returned {got or 'nothing'}; it must return a number.", RETURNED, rank=rank)
    wanted = sum(right) / n_rows
    if not math.isclose(got, wanted, rel_tol=1e-5):
        text = (
            f"for {n_rows} rows of which {sum(right)} are right, `accuracy` returned {got:.4g} instead of {wanted:g}."
        )
        raise trial.wrong(text, _suspect(got, rank, right), rank=rank)


def _suspect(got: float, rank: int, right: tuple[bool, ...]) -> Mistake:
    padded = [*right, *right[: -len(right) % N_RANKS]]
    shares = [right[r::N_RANKS] for r in range(N_RANKS)]
    means = [sum(share) / len(share) for share in shares]
    own = {means[rank], sum(padded[rank::N_RANKS]) / len(padded[rank::N_RANKS])}
    for values, mistake in (
        ({sum(padded) / len(padded), sum(padded) / len(right), sum(right) / len(padded)}, D57),
        ({sum(means) / N_RANKS}, MEAN_OF_SHARES),
        (own, OWN_METRIC),
        ({sum(map(any, zip(*(padded[r::N_RANKS] for r in range(N_RANKS)), strict=True))) / len(right)}, ADDED_AS_BOOL),
        ({sum(right) / len(right) * factor for factor in (100, N_RANKS, 1 / N_RANKS)}, SCALED_METRIC),
    ):
        if any(math.isclose(got, value, rel_tol=1e-5) for value in values):
            return mistake
    if rank:  # the others had the right one
        return ONLY_ONE_KNOWS
    return OTHER_PLACES if len(right) % N_RANKS else WRONG_NUMBERS
