"""Right answers to lab 04 that look unlike the solution; each earns every point of its check.

The test runs this file as a notebook would its cells; `answers` marks a submission with the check it is for.
"""

# ruff: noqa: F821  # the test gives `answers`

import torch


@answers("check_stage_to_rank")
def by_walking(stage, p, v, how):
    rank, step = 0, 1
    for _ in range(stage):
        if how == "V" and rank == p - 1 and step == 1:
            step = -1  # the turn: the next stage is here, too
        elif how == "V":
            rank += step
        else:
            rank = (rank + 1) % p
    return rank


@answers("check_stage_to_rank")
def as_a_tensor(stage, n_ranks, n_chunks, placement):
    there = torch.arange(n_ranks)
    return (torch.cat([there, there.flip(0)]) if placement == "V" else there.repeat(n_chunks))[stage]


@answers("check_interleaved")
def by_numbers(p, m, v):
    def chunk(k, forward):
        at = k % (p * v) // p
        return at if forward else v - 1 - at

    def text(rank, k, op):
        return f"{chunk(k, op == 'F') * p + rank}{op}{k // (p * v) * p + k % p}"

    rows = []
    for rank in range(p):
        warm_up = min(2 * (p - rank - 1) + (v - 1) * p, m * v)
        row = []
        for k in range(m * v + warm_up):
            if k < m * v:
                row.append(text(rank, k, "F"))
            if k >= warm_up:
                row.append(text(rank, k - warm_up, "B"))
        rows.append(tuple(row))
    return tuple(rows)


@answers("check_interleaved")
def by_counting_what_is_held(p, m, v):
    from collections import deque

    forwards = [(c, g + i) for g in range(0, m, p) for c in range(v) for i in range(p)]
    rows = []
    for rank in range(p):
        todo, owed, row = deque(forwards), deque((v - 1 - c, i) for c, i in forwards), []
        while owed:
            if todo and len(owed) - len(todo) < (v - 1) * p + 2 * (p - 1 - rank) + 1:
                op, (c, i) = "F", todo.popleft()
            else:
                op, (c, i) = "B", owed.popleft()
            row.append(f"{rank + c * p}{op}{i}")
        rows.append(row)
    return rows


@answers("check_interleaved")
def with_less_ahead(p, m, v):
    """With messages that take no time, half of the way is enough of a warm-up, and holds less."""
    turns = [(c, i) for g in range(0, m, p) for c in range(v) for i in range(g, g + p)]
    rows = []
    for r in range(p):
        w = min((v - 1) * p + p - 1 - r, m * v)
        row = [f"{c * p + r}F{i}" for c, i in turns[:w]]
        for n, (c, i) in enumerate(turns):
            row += [f"{turns[w + n][0] * p + r}F{turns[w + n][1]}"] if w + n < m * v else []
            row.append(f"{(v - 1 - c) * p + r}B{i}")
        rows.append(row)
    return rows


answers("check_predictions", name="numbers_of_other_types")((torch.tensor(4.5), "11", 168.0))


def chain_input(x, y, g):
    return torch.autograd.grad([y], [x], [g], retain_graph=True, allow_unused=False)[0]


def chain_weights(stage, x, y, g):
    with torch.no_grad():
        through = g * (1 - y**2)
        return [through.T @ x, through.sum(dim=0)]


answers("check_split", name="by_the_chain_rule")((chain_input, chain_weights))


def only_its_input(x, y, g):
    torch.autograd.backward(y, g, retain_graph=True, inputs=[x])
    return x.grad


def only_its_weights(stage, x, y, g):
    stage.zero_grad()
    torch.autograd.backward(y, g, inputs=list(stage.parameters()))
    return tuple(parameter.grad for parameter in stage.parameters())


answers("check_split", name="by_backwards_of_chosen_inputs")((only_its_input, only_its_weights))


@answers("check_zb_h1")
def by_counting(p, m):
    rows = []
    for r in range(p):
        row, forwards, inputs, weights = [], 0, 0, 0
        while weights < m:
            if inputs - weights > (r if inputs < m else 0):
                row.append(f"{r}W{weights}")
                weights += 1
            elif forwards < m and forwards - inputs < p - r:
                row.append(f"{r}F{forwards}")
                forwards += 1
            else:
                row.append(f"{r}I{inputs}")
                inputs += 1
        rows.append(row)
    return rows


@answers("check_zb_h1")
def weights_newest_first(p, m):
    rows = []
    for r in range(p):
        warm_up, owed = min(p - 1 - r, m), []
        row = [f"{r}F{i}" for i in range(warm_up)]
        for i in range(m):
            row += [f"{r}F{warm_up + i}"] if warm_up + i < m else []
            row.append(f"{r}I{i}")
            owed.append(i)
            row += [f"{r}W{owed.pop()}"] if len(owed) > r else []
        rows.append(row + [f"{r}W{i}" for i in reversed(owed)])
    return rows


def of_the_input(stage_input, output, output_grad):
    return torch.autograd.grad(output, stage_input, output_grad, retain_graph=True)[0]


def of_parameters_read_once(stage, stage_input, output, output_grad):
    return torch.autograd.grad(output, stage.parameters(), output_grad)


answers("check_split", name="parameters_as_the_stage_gives_them")((of_the_input, of_parameters_read_once))
