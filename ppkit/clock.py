"""When every action runs, given what it waits for: the one place that knows an action's dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from ppkit.schedule import Op, Schedule

__all__ = ["Rule", "Rules", "Walk", "activation_into", "gradient_into", "rules", "unit_rules", "walk"]

# A value is what one stage hands to its neighbour for one micro-batch: an activation or a gradient. It is
# numbered by the stage it goes into, and + micro-batch, so that one dict look-up finds it.
_STRIDE = 1 << 32
_NOTHING = -1


def activation_into(stage: int) -> int:
    """Number of the activation of micro-batch 0 that ``stage`` needs."""
    return 2 * stage * _STRIDE


def gradient_into(stage: int) -> int:
    """Number of the gradient of micro-batch 0 that ``stage`` needs."""
    return (2 * stage + 1) * _STRIDE


class Rule(NamedTuple):
    """What one operation on one stage waits for, makes and costs; micro-batch 0's values, -1 for none."""

    takes: int
    makes: int
    seconds: float
    delay: float  # seconds from when the value that it takes is sent to when it is there


Rules: TypeAlias = "Mapping[Op, Mapping[int, Rule]]"


@dataclass(frozen=True, slots=True)
class Walk:
    """When each rank's actions started and ended, in seconds, as far as they could run.

    Args:
        starts: for each rank, for each of its actions that ran.
        ends: likewise.
        sent: for each value, when it was sent.
    """

    starts: list[list[float]]
    ends: list[list[float]]
    sent: dict[int, float]


def rules(schedule: Schedule, seconds: Mapping[Op, Sequence[float]], transfer: Sequence[float]) -> Rules:
    """The rule of each operation and stage.

    Args:
        schedule: whose stages, and whether it says itself when to send.
        seconds: for each operation, for each stage, how long it takes.
        transfer: for each stage, how long a message between it and the next stage takes.
    """
    from ppkit.schedule import Op  # it imports this module

    last, comms, rank = schedule.n_stages - 1, schedule.has_comms, schedule.stage_to_rank
    table: dict[Op, dict[int, Rule]] = {op: {} for op in Op}
    for stage in range(schedule.n_stages):
        first, final = stage == 0, stage == last
        activation = _NOTHING if first else activation_into(stage)
        gradient = _NOTHING if final else gradient_into(stage)
        output = _NOTHING if final else activation_into(stage + 1)
        input_gradient = _NOTHING if first else gradient_into(stage - 1)
        # Where the schedule has sends, they hand a value to another rank; else computing it does.
        by_send_up = comms and not final and rank[stage] != rank[stage + 1]
        by_send_down = comms and not first and rank[stage] != rank[stage - 1]
        forward = _NOTHING if by_send_up else output
        backward = _NOTHING if by_send_down else input_gradient
        below, above = 0.0 if first else transfer[stage - 1], 0.0 if final else transfer[stage]
        for op, takes, makes, delay in (
            (Op.F, activation, forward, below),
            (Op.B, gradient, backward, above),
            (Op.I, gradient, backward, above),
            (Op.W, _NOTHING, _NOTHING, 0.0),  # it follows its I on the same rank, so it waits for nothing
            (Op.SEND_F, _NOTHING, output, 0.0),
            (Op.RECV_F, activation, _NOTHING, below),
            (Op.SEND_B, _NOTHING, input_gradient, 0.0),
            (Op.RECV_B, gradient, _NOTHING, above),
            (Op.REDUCE, _NOTHING, _NOTHING, 0.0),
        ):
            table[op][stage] = Rule(takes, makes, seconds[op][stage], delay)
    return table


def unit_rules(schedule: Schedule) -> Rules:
    """The rules under which every action takes one tick, and a message none."""
    from ppkit.schedule import Op  # it imports this module

    ones, zeros = [1] * schedule.n_stages, [0] * schedule.n_stages
    return rules(schedule, dict.fromkeys(Op, ones), zeros)


_UNKNOWN = Rule(_NOTHING, _NOTHING, 1, 0)  # a stage that the schedule has not: drawn, then refused by validate


def walk(schedule: Schedule, table: Rules) -> Walk:
    """Run every rank's actions in its own order, each as soon as its rank is free and its value is there.

    Sends don't block. A rank whose value is never sent stays where it is: its lists end there. Every
    action is looked at once, and once more if it had to wait.
    """
    starts: list[list[float]] = [[] for _ in schedule.actions]
    ends: list[list[float]] = [[] for _ in schedule.actions]
    sent: dict[int, float] = {}
    waiting: dict[int, list[int]] = {}
    ready = list(range(schedule.n_ranks))
    while ready:
        rank = ready.pop()
        actions, started, ended = schedule.actions[rank], starts[rank], ends[rank]
        now = ended[-1] if ended else 0
        for position in range(len(started), len(actions)):
            action = actions[position]
            takes, makes, seconds, delay = table[action.op].get(action.stage, _UNKNOWN)
            if takes >= 0:
                takes += action.microbatch  # type: ignore[operator]  # only REDUCE has none, and takes nothing
                at = sent.get(takes)
                if at is None:
                    waiting.setdefault(takes, []).append(rank)
                    break
                if at + delay > now:
                    now = at + delay
            started.append(now)
            now += seconds
            ended.append(now)
            if makes >= 0:
                makes += action.microbatch  # type: ignore[operator]
                sent[makes] = now
                ready += waiting.pop(makes, ())
    return Walk(starts, ends, sent)
