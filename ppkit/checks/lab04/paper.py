"""Tasks 1 and 3: where the chunks live, and what is predicted of them."""

from __future__ import annotations

from typing import Any

from ppkit.builders import interleaved_1f1b, one_f_one_b, zero_bubble_v
from ppkit.checks.drivers import lab04 as ranks
from ppkit.checks.estimates import Choice, Estimate, judge_estimates
from ppkit.checks.form import Form, Number
from ppkit.checks.judge import Passed, graded, require_function
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.mistakes.zero_bubble import NOT_PLACED, ONE_WAY, Z70, Z71, Z72, Z77, Z78, Z79
from ppkit.checks.trial import on_ranks
from ppkit.schedule import Op
from ppkit.simulate import Costs, simulate

__all__ = ["ask_predictions", "check_predictions", "check_stage_to_rank"]

PLACEMENTS = ((4, 2, "cards"), (2, 3, "cards"), (3, 4, "cards"), (4, 2, "V"), (2, 2, "V"), (3, 2, "V"))
N_RANKS, N_MICROBATCHES = 4, 12

# Task 1: where the chunks live


@graded("Task 1, stage_to_rank", 10)
def check_stage_to_rank(stage_to_rank: Any) -> Passed:
    """Check the rank of every stage, dealt like cards and in a V, for several numbers of ranks."""
    require_function(stage_to_rank, "stage_to_rank", ("stage", "n_ranks", "n_chunks", "placement"))
    cases = [(stage, p, v, name) for p, v, name in PLACEMENTS for stage in range(p * v)]
    trial = on_ranks(*(ranks.placements, stage_to_rank, cases), n_ranks=1, where="your function", expected=Expected(()))
    seen = dict(zip(cases, trial.results[0], strict=True))
    if all(value is None for value in seen.values()):
        raise trial.unfinished("it returned None.")
    for p, v, name in PLACEMENTS:
        got = [seen[stage, p, v, name] for stage in range(p * v)]
        call = f"with {p} ranks, {v} chunks on each, and placement {name!r}"
        for stage, value in enumerate(got):
            if not isinstance(value, int):
                raise trial.wrong(
                    f"for stage {stage}, {call}, it returned {value or 'nothing'}; a rank is a whole number.", RETURNED
                )
        right = list(_holders(p, v, name))
        if got != right:
            raise trial.wrong(f"{call}, the stages lie on ranks {got}.", _misplaced(got, p, v, name))
    return Passed("Every stage lies on its rank, dealt like cards and in a V.")


def _holders(p: int, v: int, name: str) -> tuple[int, ...]:
    schedule = zero_bubble_v(p, 1) if name == "V" else interleaved_1f1b(p, 1, v)
    return schedule.stage_to_rank


def _misplaced(got: list[Any], p: int, v: int, name: str) -> Mistake:
    right = _holders(p, v, name)
    if got == [stage // v for stage in range(p * v)]:
        return Z70
    if v == 2 and got == list(_holders(p, v, "cards" if name == "V" else "V")):
        return Z71
    return Z72 if name == "V" and got[:p] == list(right[:p]) else NOT_PLACED


# Task 3: predict

ask_predictions = Form(
    Number("idle", "Units of time for which each rank is idle"),
    Number("held_on_rank_0", "Activations that rank 0 holds at most"),
    Number("n_messages", "Messages that all ranks send in a step"),
)


@graded("Task 3, three predictions", 15)
def check_predictions(idle: Any, held_on_rank_0: Any, n_messages: Any) -> Passed:
    """Check three predictions for four ranks of two chunks each against the schedule, simulated."""
    p, m = N_RANKS, N_MICROBATCHES
    schedule = interleaved_1f1b(p, m, 2)
    ours, plain = simulate(schedule, Costs(forward=0.5, backward=1.0)), simulate(one_f_one_b(p, m))
    messages = sum(action.op in (Op.SEND_F, Op.SEND_B) for row in schedule.with_comms().actions for action in row)
    held = plain.peak_in_flight[0]
    estimates: list[Estimate | Choice] = [
        Estimate("idle", idle, ours.idle[0], " units", known={plain.idle[0]: Z79, 2 * plain.idle[0]: Z79}),
        Estimate(
            *("held_on_rank_0", held_on_rank_0, float(ours.peak_in_flight[0]), " chunks"),
            known={held: Z78, 2 * held: Z78},
        ),
        Estimate(
            *("n_messages", n_messages, float(messages), " messages"),
            known={2.0 * (p - 1) * m: Z77, 4.0 * (p - 1) * m: Z77, messages / 2: ONE_WAY},
        ),
    ]
    return judge_estimates(estimates, 15)
