"""Whether a schedule can run: every action once, in its place, and no rank waiting for ever."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from ppkit.clock import Walk, unit_rules, walk
from ppkit.errors import ScheduleError
from ppkit.grid import Row, draw
from ppkit.schedule import Action, Op, Schedule

__all__ = ["check_contents", "check_waits", "validate"]

Cell = tuple[int, int]  # rank, position among its actions

# A micro-batch's progress on a stage: what is done so far -> what may come next.
_NEW, _F, _FB, _FI, _FIW = range(5)
_DONE = (_FB, _FIW)
_STEPS: dict[Op, dict[int, int]] = {Op.F: {_NEW: _F}, Op.B: {_F: _FB}, Op.I: {_F: _FI}, Op.W: {_FI: _FIW}}


def validate(schedule: Schedule) -> Schedule:
    """Check that ``schedule`` can run and computes every gradient once.

    Every stage needs, for every micro-batch, F and then B, or F, I and W, on its own rank; in a schedule that is
    ``forward_only`` F and nothing else. With messages written in, each is sent after it is made, received before
    it is needed, and received from a rank in the order that rank sends. Sends don't block and receives do; no
    rank may wait for ever. Takes time linear in the number of actions.

    Returns:
        The schedule itself.

    Raises:
        ScheduleError: the first thing that is wrong, and the grid with its cell in brackets.
    """
    check_contents(schedule)
    check_waits(schedule, walk(schedule, unit_rules(schedule)))
    return schedule


def check_contents(schedule: Schedule) -> None:
    """Raise ScheduleError unless every action is there once, in its place, after what it builds on."""
    _check_actions(schedule)
    if schedule.has_comms:
        from ppkit.pairing import check_messages  # it imports this module

        check_messages(schedule)


def check_waits(schedule: Schedule, done: Walk) -> None:
    """Raise ScheduleError if ``done``, the schedule's walk, ended with ranks that wait for each other.

    The contents must have been checked.
    """
    stuck = {r: len(done.starts[r]) for r, row in enumerate(schedule.actions) if len(done.starts[r]) < len(row)}
    if stuck:
        _explain_cycle(schedule, stuck)


def fail(
    schedule: Schedule,
    message: str,
    at: Iterable[Cell] = (),
    *,
    rank: int,
    action: Action,
    missing: bool = False,
) -> NoReturn:
    """Raise ScheduleError with ``message`` and the grid, its cells ``at`` marked; or ``action`` is missing."""
    rows = schedule.ticks()
    columns = [[column for column, cell in enumerate(row) if cell is not None] for row in rows]
    at = list(at)
    # By position: a repeated action must be marked where it is wrong. Ticks keep the order of a rank.
    marked = [(r, columns[r][position]) for r, position in at]
    notes = {rank: f"[{action}] is missing"} if missing else {}
    grid = draw(rows, marked, notes, marked or [(rank, _last_of(action, rows[rank]))])
    raise ScheduleError(
        f"{schedule.name}: {message}\n\n{grid}",
        rank=rank,
        stage=action.stage,
        action=str(action),
        values={"microbatch": action.microbatch, "cells": tuple(at)},
    )


def _last_of(missing: Action, row: Row) -> int:
    """Column of the last action on the stage and micro-batch of ``missing``; of the row's end if there is none."""
    return max((at for at, cell in enumerate(row) if cell and _same_part(cell, missing)), default=len(row) - 1)


def find(schedule: Schedule, action: Action) -> Cell | None:
    """Where ``action`` first is; None if it is nowhere."""
    for rank, row in enumerate(schedule.actions):
        if action in row:
            return rank, row.index(action)
    return None


def _check_actions(schedule: Schedule) -> None:
    n_stages, m, ranks = schedule.n_stages, schedule.n_microbatches, schedule.stage_to_rank
    only = schedule.forward_only
    done = (_F,) if only else _DONE
    progress: dict[int, int] = {}  # by stage * m + micro-batch; sparse, for a count may be a typo
    complete = 0
    reduced: set[Action] = set()
    for rank, row in enumerate(schedule.actions):
        for position, action in enumerate(row):
            stage, microbatch = action.stage, action.microbatch
            if stage >= n_stages or ranks[stage] != rank or (microbatch is not None and microbatch >= m):
                _explain_place(schedule, rank, position)
            if only and not action.op.is_forward:
                _explain_backward(schedule, rank, position)
            steps = _STEPS.get(action.op)
            if steps is not None:
                cell = stage * m + microbatch  # type: ignore[operator]  # only REDUCE has none
                step = steps.get(progress.get(cell, _NEW))
                if step is None:
                    _explain_order(schedule, rank, position)
                progress[cell] = step
                complete += step in done
            elif action.op is Op.REDUCE:
                whole = all(progress.get(stage * m + part) in _DONE for part in range(m))
                if action in reduced or not whole:
                    _explain_reduce(schedule, rank, position, repeated=action in reduced)
                reduced.add(action)
    if complete < n_stages * m:
        cell = next(cell for cell in range(n_stages * m) if progress.get(cell) not in done)
        _explain_missing(schedule, cell // m, cell % m, progress.get(cell, _NEW))


def _explain_place(schedule: Schedule, rank: int, position: int) -> NoReturn:
    action = schedule.actions[rank][position]
    if action.stage >= schedule.n_stages:
        what = f"{action} names stage {action.stage}; the stages are 0 to {schedule.n_stages - 1}"
    elif action.microbatch is not None and action.microbatch >= schedule.n_microbatches:
        last = schedule.n_microbatches - 1
        what = f"{action} names micro-batch {action.microbatch}; the micro-batches are 0 to {last}"
    else:
        owner = schedule.stage_to_rank[action.stage]
        what = f"{action} is misplaced: stage {action.stage} lives on rank {owner}, not on rank {rank}"
        if not any(other.stage == action.stage for other in schedule.actions[owner]):
            what += f". If all of it is to be on rank {rank}, say so with stage_to_rank"
    fail(schedule, f"rank {rank}, position {position}: {what}", [(rank, position)], rank=rank, action=action)


def _explain_backward(schedule: Schedule, rank: int, position: int) -> NoReturn:
    action = schedule.actions[rank][position]
    what = f"{action} has no place in a schedule that is forward only. Remove it, or leave out forward_only=True"
    fail(schedule, f"rank {rank}, position {position}: {what}", [(rank, position)], rank=rank, action=action)


def _explain_order(schedule: Schedule, rank: int, position: int) -> NoReturn:
    row = schedule.actions[rank]
    action = row[position]
    stage, op, microbatch = action.stage, action.op, action.microbatch
    before = {other.op: at for at, other in enumerate(row[:position]) if _same_part(other, action)}
    marks = [(rank, position)]
    if op in before:
        what = f"{action} is repeated: position {before[op]} has it already. Remove one"
        marks.insert(0, (rank, before[op]))
    elif op is not Op.F and Op.F not in before:
        what = f"{action} runs before its forward, {Action(stage, Op.F, microbatch)}. Put the forward first"
    elif op is Op.W and Op.B not in before:
        needs = Action(stage, Op.I, microbatch)
        what = f"{action} runs before {needs}: the weight gradient needs what the input gradient leaves"
    else:
        other = next(o for o in (Op.B, Op.I, Op.W) if o in before)
        clash = Action(stage, other, microbatch)
        what = f"{action} and {clash}: B is the full backward, I and W its halves. Use B alone, or I and W"
        marks.insert(0, (rank, before[other]))
    fail(schedule, f"rank {rank}, position {position}: {what}", marks, rank=rank, action=action)


def _same_part(one: Action, other: Action) -> bool:
    return one.stage == other.stage and one.microbatch == other.microbatch


def _explain_reduce(schedule: Schedule, rank: int, position: int, *, repeated: bool) -> NoReturn:
    action = schedule.actions[rank][position]
    what = (
        "is repeated: reduced twice, gradients are wrong. Remove one"
        if repeated
        else (f"runs before the last gradient of stage {action.stage} and leaves it out. Put it after them all")
    )
    message = f"rank {rank}, position {position}: {action} {what}"
    fail(schedule, message, [(rank, position)], rank=rank, action=action)


def _explain_missing(schedule: Schedule, stage: int, microbatch: int, progress: int) -> NoReturn:
    op, instead = {_NEW: (Op.F, None), _F: (Op.B, (Op.I, Op.W)), _FI: (Op.W, None)}[progress]
    action, rank = Action(stage, op, microbatch), schedule.stage_to_rank[stage]
    either = f" (or {' and '.join(str(Action(stage, o, microbatch)) for o in instead)})" if instead else ""
    fail(
        schedule,
        f"{action}{either} is missing: rank {rank} has stage {stage}, so it must run it",
        rank=rank,
        action=action,
        missing=True,
    )


def _explain_cycle(schedule: Schedule, stuck: dict[int, int]) -> NoReturn:
    """Follow who waits for whom from one stuck rank until a rank comes again."""
    table = unit_rules(schedule)
    makers: dict[int, Cell] = {}
    for rank, first in stuck.items():
        for position, action in enumerate(schedule.actions[rank][first:], start=first):
            if (value := table[action.op][action.stage].makes) >= 0:
                makers[value + (action.microbatch or 0)] = (rank, position)
    path: dict[int, Cell] = {}
    rank = min(stuck)
    while rank not in path:
        waiting = schedule.actions[rank][stuck[rank]]
        path[rank] = makers[table[waiting.op][waiting.stage].takes + (waiting.microbatch or 0)]
        rank = path[rank][0]
    ranks = list(path)
    cycle = ranks[ranks.index(rank) :]
    text = "\n".join(f"  {_wait(schedule, stuck, r, path[r])}" for r in cycle)
    advice = "Change the order on one of them, so that what another waits for comes first."
    fail(
        schedule,
        f"a deadlock: no rank in this circle can go on.\n{text}\n{advice}",
        [(r, stuck[r]) for r in cycle],
        rank=cycle[0],
        action=schedule.actions[cycle[0]][stuck[cycle[0]]],
    )


def _wait(schedule: Schedule, stuck: dict[int, int], rank: int, maker: Cell) -> str:
    other, position = maker
    waits = schedule.actions[rank][stuck[rank]]
    text = f"rank {rank} waits at {waits} for {schedule.actions[other][position]}, "
    if position == stuck[other]:
        return f"{text}where rank {other} itself waits"
    return f"{text}which rank {other} has after {schedule.actions[other][stuck[other]]}"
