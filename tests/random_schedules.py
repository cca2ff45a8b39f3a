"""Random schedules and costs: valid ones, but otherwise of any kind."""

from __future__ import annotations

import random
from typing import Any

from ppkit.schedule import Action, Op, Schedule
from ppkit.simulate import Costs


def random_schedule(rng: random.Random) -> Schedule:
    """A valid one: random placement, and whatever can run next, in random order."""
    n_ranks, n_stages, m = rng.randint(1, 4), rng.randint(1, 6), rng.randint(1, 5)
    ranks = tuple(rng.randrange(n_ranks) for _ in range(n_stages))
    split = {(s, i): rng.random() < 0.5 for s in range(n_stages) for i in range(m)}
    rows: list[list[Action]] = [[] for _ in range(n_ranks)]
    forward: set[tuple[int, int]] = set()
    backward: set[tuple[int, int]] = set()
    todo = [Action(s, Op.F, i) for s, i in split]
    while todo:
        ready = [
            a
            for a in todo
            if (a.op is Op.F and (a.stage == 0 or (a.stage - 1, a.microbatch) in forward))
            or (a.op in (Op.B, Op.I) and (a.stage == n_stages - 1 or (a.stage + 1, a.microbatch) in backward))
            or a.op is Op.W
        ]
        action = rng.choice(ready)
        todo.remove(action)
        rows[ranks[action.stage]].append(action)
        cell = (action.stage, action.microbatch or 0)
        if action.op is Op.F:
            forward.add(cell)
            todo.append(Action(cell[0], Op.I if split[cell] else Op.B, cell[1]))
        elif action.op in (Op.B, Op.I):
            backward.add(cell)
            if action.op is Op.I:
                todo.append(Action(cell[0], Op.W, cell[1]))
    return Schedule("random", n_ranks, n_stages, m, tuple(map(tuple, rows)), ranks)


def random_costs(rng: random.Random, n_stages: int) -> Costs:
    """Uneven stages, latency and sizes, all exact in binary."""

    def some(least: int) -> Any:
        values = tuple(rng.randint(least, 40) / 8 for _ in range(n_stages))
        return rng.choice([values, list(values), values[0]])

    split = rng.random() < 0.5
    return Costs(
        forward=some(0),
        backward=some(0),
        input_grad=some(0) if split else None,
        weight_grad=some(0) if split else None,
        latency=rng.choice([0, 0, rng.randint(1, 16) / 8]),
        bandwidth=rng.choice([None, 2 ** rng.randint(0, 6)]),
        activation_bytes=rng.choice([0, 3, [rng.randint(0, 64) for _ in range(n_stages)]]),
    )
