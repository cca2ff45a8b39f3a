"""Task 4: one step of DataParallel: several devices, one process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppkit.checks.drivers import lab05 as ranks
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.data_parallel import D44, D45
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.mistakes.replicas import (
    BATCH_LOSS,
    NO_BACKWARD,
    NOT_REPLICATED,
    NOT_SCATTERED,
    OTHER_ORDER,
    SCALED,
    STAYS_ON_COPIES,
    UNASKED_STEP,
    WRONG_NUMBERS,
)
from ppkit.checks.oracle import Batch
from ppkit.checks.oracle_hybrid import ratio
from ppkit.checks.oracle_replicas import Net, combine, shard_gradients
from ppkit.checks.replicas import on_replicas
from ppkit.checks.trial import Trial
from ppkit.checks.values import all_equal, first_difference
from ppkit.data import digits

__all__ = ["check_data_parallel_step"]

PARAMETERS = ("model", "images", "labels", "devices")
SIZES = ((8, 2), (7, 3), (3, 4))  # rows, devices: equal pieces, unequal ones, fewer rows than devices


@graded("Task 4, data_parallel_step", 14)
def check_data_parallel_step(data_parallel_step: Any) -> Passed:
    """Check one step of DataParallel on two, three and four devices, which are all the CPU."""
    require_function(data_parallel_step, "data_parallel_step", PARAMETERS)
    images, labels = digits(dtype=torch.float64, n_images=8)
    settings = [((images[:rows], labels[:rows]), devices) for rows, devices in SIZES]
    trial = on_replicas(ranks.on_devices, data_parallel_step, settings, n_ranks=1, where="your function")
    for seen, (batch, n_devices) in zip(trial.results[0], settings, strict=True):
        where = f"with {n_devices} devices and {len(batch[1])} rows"
        if seen["loss"] is None and not any(torch.is_tensor(grad) for grad in seen["gradients"].values()):
            raise trial.unfinished(f"{where}, it returned None, and the model has no gradient.")
        _judge_pieces(trial, where, seen, len(batch[1]), n_devices)
        _judge_gradients(trial, where, seen, batch)
        _judge_loss(trial, where, seen["loss"], batch)
        if seen["moved"]:
            raise trial.wrong(f"{where}, the model's parameters are others than before.", UNASKED_STEP)
    return Passed(
        "With 2, 3 and 4 devices, with equal and unequal pieces: every device computed its own rows with its own copy, "
        "and the model's gradients are those of the whole batch.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _judge_pieces(trial: Trial, where: str, seen: Mapping[str, Any], n_rows: int, n_devices: int) -> None:
    """Refuse other pieces than one for each device, and replicas that are no copies."""
    rows = seen["rows"]
    told = f"{where}, the model was called {len(rows)} time{'s' * (len(rows) != 1)}"
    if n_rows in rows or len(rows) < 2:
        raise trial.wrong(f"{told}, with {_listed(rows)} rows.", NOT_SCATTERED)
    if 0 in rows:
        raise trial.wrong(f"{told}, once without any rows: that device has nothing to do.", NOT_SCATTERED)
    if sum(rows) != n_rows or len(rows) > n_devices:
        raise trial.wrong(f"{told}, with {_listed(rows)} rows.", NOT_SCATTERED)
    if seen["memories"] < len(rows):
        sets = "one set" if seen["memories"] == 1 else f"only {seen['memories']} sets"
        raise trial.wrong(f"{told}, but with {sets} of parameters in memory.", NOT_REPLICATED)


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows)) or "no"


def _judge_gradients(trial: Trial, where: str, seen: Mapping[str, Any], batch: Batch) -> None:
    got, model = seen["gradients"], Net()
    right = shard_gradients(model, batch)
    if not (text := first_difference(got, right)):
        return
    if not any(event.kind == "B" for event in trial.timeline):
        raise trial.wrong(f"{where}, no backward has run.", NO_BACKWARD)
    raise trial.wrong(f"{where}, the gradient of {text}.", _suspect(got, model, batch, seen["rows"]))


def _suspect(got: Mapping[str, Any], model: nn.Module, batch: Batch, rows: Sequence[int]) -> Mistake:
    if all(grad is None for grad in got.values()):
        return STAYS_ON_COPIES
    pieces = list(zip(batch[0].split(list(rows)), batch[1].split(list(rows)), strict=True))
    means = [shard_gradients(model, piece) for piece in pieces]
    parts = [combine([mean], [n / sum(rows)]) for mean, n in zip(means, rows, strict=True)]
    if all_equal(got, combine(means, [1.0] * len(rows))):
        return D44
    if all_equal(got, combine(means, [1 / len(rows)] * len(rows))):
        return D45
    lost: list[dict[str, Tensor]] = [*parts, *means]
    if any(all_equal(got, one) for one in lost):
        return STAYS_ON_COPIES
    if ratio(got, shard_gradients(model, batch)) is not None:
        return SCALED
    return OTHER_ORDER if _in_other_order(got, model, batch, rows) else WRONG_NUMBERS


def _in_other_order(got: Mapping[str, Any], model: nn.Module, batch: Batch, rows: Sequence[int]) -> bool:
    """Whether the rows were dealt out like cards, or their pieces were put together backwards."""
    numbers, n = torch.arange(sum(rows)), len(rows)
    orders = torch.cat([numbers[i::n] for i in range(n)]), torch.cat(numbers.split(list(rows))[::-1])
    return any(all_equal(got, shard_gradients(model, (batch[0][order], batch[1]))) for order in orders)


def _judge_loss(trial: Trial, where: str, loss: Any, batch: Batch) -> None:
    if loss is None or isinstance(loss, str):
        raise trial.wrong(f"{where}, it returned {loss or 'nothing'}; it must return the loss.", RETURNED)
    wanted = cross_entropy(Net()(batch[0]), batch[1]).item()
    if not math.isclose(loss, wanted, rel_tol=1e-6):
        raise trial.wrong(f"{where}, it returned a loss of {loss:.6g} instead of {wanted:.6g}.", BATCH_LOSS)
