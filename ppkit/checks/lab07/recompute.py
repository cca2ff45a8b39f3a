"""Task 6: a stage that forgets its activations and computes them again, judged on its own and in a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppkit.builders import one_f_one_b
from ppkit.checks.drivers import lab07 as ranks
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.lab07.oracle import WIDTH, Results, build_thick_stages, without_recomputation
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes.balance_skips import (
    G31,
    NO_DROPOUT,
    NO_INPUT_GRAD,
    NOT_ADDED,
    OTHER_NUMBERS,
    S106,
    S107,
    S108,
    TOO_MUCH,
)
from ppkit.checks.mistakes.general import RETURNED, WRONG_VALUES
from ppkit.checks.oracle_gpipe import Cut, cut
from ppkit.checks.trial import Trial, on_ranks
from ppkit.checks.values import all_equal, first_difference
from ppkit.simulate import simulate

__all__ = ["check_recomputation"]

SEED = 11
# Stages, rows of the micro-batches, and dropout.
SETTINGS = ((1, (4, 4, 3), 0.0), (3, (8, 8, 8, 5), 0.4))


@graded("Task 6, recomputation", 15)
def check_recomputation(light_forward: Any, recomputing_backward: Any) -> Passed:
    """Check a stage's forward and backward, alone without dropout and then in 1F1B over three ranks with it."""
    require_function(light_forward, "light_forward", ("stage", "stage_input"))
    require_function(recomputing_backward, "recomputing_backward", ("stage", "kept", "output_grad"))
    for n_stages, sizes, dropout in SETTINGS:
        stages, batch = build_thick_stages(n_stages, dropout), _numbers(sizes)
        schedule = one_f_one_b(n_stages, len(sizes))
        rows = [[(action.op.value, action.microbatch) for action in row] for row in schedule.actions]
        with_dropout = "with dropout" if dropout else "without dropout"
        trial = on_ranks(
            *(ranks.recompute, (light_forward, recomputing_backward), stages, batch, rows, SEED),
            n_ranks=n_stages,
            where=f"{n_stages} stage{'s' * (n_stages > 1)}, {with_dropout}",
            expected=Expected(()),
        )
        _require_results(trial)
        right = without_recomputation(stages, batch, SEED)
        plain = without_recomputation(build_thick_stages(n_stages, 0.0), batch, SEED)
        order = [(event.rank, event.kind, event.microbatch) for event in simulate(schedule) if event.kind in "FB"]
        for rank, op, i in order:  # as they depend on each other: the first that differs is where it went wrong
            _compare(trial, rank, (op, i or 0), right[rank], plain[rank] if dropout else None)
        whole = _bytes_of_all(stages[0], batch.inputs[0])
        own = max(_require_little(trial, rank, batch, whole) for rank in range(n_stages))
    return Passed(
        "Outputs, gradients of the stage's input and gradients of all weights are those of one process that recomputes "
        "nothing: without dropout, and with dropout on 3 ranks that run 1F1B.",
        f"For each micro-batch in flight a rank held {own:.0f} bytes; all activations are {whole}.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _numbers(sizes: Sequence[int]) -> Cut:
    numbers = torch.Generator().manual_seed(3)
    inputs = torch.randn(sum(sizes), WIDTH, dtype=torch.float64, generator=numbers)
    return cut((inputs, torch.randint(WIDTH, (sum(sizes),), generator=numbers)), sizes)


def _require_results(trial: Trial) -> None:
    """Refuse what has no output, or no gradient."""
    if (odd := trial.results[0]["odd"]) is None:
        return
    name, returned = odd
    if name == "light_forward" and returned is None:
        raise trial.unfinished("`light_forward` returned None.")
    wanted = "a pair, (output, kept)" if name == "light_forward" else "a tensor, the gradient of the stage's input"
    text = f"`{name}` returned {returned or 'None'}; it must return {wanted}."
    raise trial.wrong(text, NO_INPUT_GRAD if returned is None else RETURNED)


def _compare(trial: Trial, rank: int, action: tuple[str, int], right: Results, plain: Results | None) -> None:
    """Refuse an output or gradients other than those of one process; `plain` are those without dropout, if it is on."""
    op, i = action
    got = trial.results[rank]["results"]
    text = first_difference(got[action], right[action])
    if not text:
        return
    if op == "F":
        after_a_backward = any(other == "B" for other, _ in list(got)[: list(got).index(action)])
        mistake = WRONG_VALUES if plain is None else S106 if after_a_backward else OTHER_NUMBERS
        if plain and all_equal(got[action], plain[action]):
            mistake = NO_DROPOUT
        raise trial.wrong(f"in the forward of micro-batch {i}, the {text}.", mistake, rank=rank)
    lost = any(value is None for value in got[action].values())
    mistake = NOT_ADDED if lost else G31 if plain else S108 if i and _alone(got, right, i) else WRONG_VALUES
    raise trial.wrong(f"after the backward of micro-batch {i}, the gradient of {text}.", mistake, rank=rank)


def _alone(got: Results, right: Results, i: int) -> bool:
    """Whether the parameters' gradients are this micro-batch's without those before it."""
    before, now = right["B", i - 1], right["B", i]
    return all_equal(got["B", i], {name: now[name] - before[name] for name in now if name != "the stage's input"})


def _require_little(trial: Trial, rank: int, batch: Cut, whole: int) -> float:
    """Refuse more than an input and an output for each micro-batch; return the most that one takes."""
    most = 2 * batch.inputs[0].numel() * 8
    held: float = max(nbytes / n for n, nbytes in trial.results[rank]["held"])
    if held > most:
        text = f"between forward and backward each micro-batch holds {held:.0f} bytes; its input takes {most // 2}, "
        mistake = S107 if held >= whole - most else TOO_MUCH
        raise trial.wrong(f"{text}and all that a plain forward keeps {whole}.", mistake, rank=rank)
    return held


def _bytes_of_all(stage: nn.Module, stage_input: Tensor) -> int:
    """What a plain forward keeps, its input included."""
    leaf = stage_input.clone().requires_grad_()
    saved = ranks.Saved(stage)
    with torch.random.fork_rng(devices=[]), saved:
        output = stage(leaf)
        return saved.nbytes([leaf, output])
