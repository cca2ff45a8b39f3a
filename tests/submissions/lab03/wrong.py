"""Wrong answers to lab 03, each with the mistake by which its check must recognise it.

The test runs this file as a notebook would its cells; `fails` marks a submission with its check, the mistake's code,
and words that the report must hold. A code of None stands for a mistake that is not in the catalogue.
"""

# ruff: noqa: F821  # the test gives `fails`

import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

# --- one_f_one_b_schedule ---


def schedule_with(warm_up, *, cool_down=True, newest=False):
    """A schedule with a warm-up of its own."""

    def build(p, m):
        rows = []
        for rank in range(p):
            ahead = warm_up(p, rank, m)
            row, held = [f"{rank}F{i}" for i in range(ahead)], list(range(ahead))
            for i in range(ahead, m):
                held.append(i)
                row += [f"{rank}F{i}", f"{rank}B{held.pop(-1 if newest else 0)}"]
            row += [f"{rank}B{i}" for i in held] if cool_down else []
            rows.append(row)
        return rows

    return build


def schedule(name, code, *words, warm_up=lambda p, r, m: min(p - 1 - r, m), **changes):
    fails("check_schedule", code, *words, name=name)(schedule_with(warm_up, **changes))


schedule("warm_up_one_too_long", "F33", warm_up=lambda p, r, m: min(p - r, m))
schedule("warm_up_one_too_short", "F33", warm_up=lambda p, r, m: min(max(p - 2 - r, 0), m))
schedule("warm_up_beyond_the_microbatches", "F34", warm_up=lambda p, r, m: p - 1 - r)
schedule("same_warm_up_on_all_ranks", "F35", warm_up=lambda p, r, m: min(p - 1, m))
schedule("newest_first", "F36", newest=True)
schedule("no_cool_down", "F37", cool_down=False)


@fails("check_schedule", None, "3 stages, 5 micro-batches: rank 0, position 8: 0B0 is repeated")
def cool_down_begins_at_zero(p, m):
    rows = []
    for rank in range(p):
        ahead = min(p - 1 - rank, m)
        pairs = [f"{rank}{op}{i}" for i in range(m - ahead) for op in "FB"]
        pairs[::2] = [f"{rank}F{i}" for i in range(ahead, m)]
        rows.append([f"{rank}F{i}" for i in range(ahead)] + pairs + [f"{rank}B{i}" for i in range(ahead)])
    return rows


schedule("all_forwards_first", "F35", warm_up=lambda p, r, m: m)


@fails("check_schedule", None, "3 stages, 5 micro-batches", "0F5 names micro-batch 5")
def pairs_for_every_microbatch(p, m):
    rows = []
    for rank in range(p):
        ahead = min(p - 1 - rank, m)
        pairs = [text for i in range(m) for text in (f"{rank}F{ahead + i}", f"{rank}B{i}")]
        rows.append([f"{rank}F{i}" for i in range(ahead)] + pairs)
    return rows


# --- predictions ---

fails("check_predictions", "F40", "it is not 'shorter'", name="idle_for_less", points=10.0)((3, 0.2, "shorter"))
fails("check_predictions", "F40", "it is not 'longer'", name="idle_for_more", points=10.0)((3, 0.2, "longer"))

# --- exchange ---


@fails("check_exchange", "F38", "deadlock")
def sends_then_receives(outgoing, incoming, peer):
    dist.send(outgoing, peer)
    dist.recv(incoming, peer)
    return incoming


@fails("check_exchange", "N04", "deadlock")
def receives_then_sends(outgoing, incoming, peer):
    dist.recv(incoming, peer)
    dist.send(outgoing, peer)
    return incoming


@fails("check_exchange", "F38", "deadlock", "wait for isend(to rank 1")
def waits_for_its_send_before_it_receives(outgoing, incoming, peer):
    dist.isend(outgoing, peer).wait()
    dist.recv(incoming, peer)
    return incoming


@fails("check_exchange", "F41", "deadlock", "was never waited for")
def drops_the_receive(outgoing, incoming, peer):
    sending = dist.isend(outgoing, peer)
    dist.irecv(incoming, peer)
    sending.wait()
    return incoming


@fails("check_exchange", "F41", "deadlock")
def drops_the_handle(outgoing, incoming, peer):
    dist.isend(outgoing.clone(), peer)
    dist.recv(incoming, peer)
    return incoming


@fails("check_exchange", "N09", "rank")
def does_not_wait_for_the_receive(outgoing, incoming, peer):
    receiving = dist.irecv(incoming, peer)
    got = incoming.clone()
    dist.isend(outgoing, peer).wait()
    receiving.wait()
    return got


@fails("check_exchange", "F41", "what it got in exchange 0")
def forgets_its_first_send(outgoing, incoming, peer):
    if len(under_way) == 1 and peer == 1:
        dist.send(torch.zeros(1), peer, tag=1)  # only now may rank 1 receive what rank 0 has begun to send
    under_way.append(dist.isend(outgoing, peer))
    if len(under_way) == 1 and peer == 0:
        dist.recv(torch.zeros(1), peer, tag=1)
    dist.recv(incoming, peer)
    if len(under_way) > 1:
        under_way[-1].wait()
    return incoming


under_way = []


@fails("check_exchange", None, "nothing")
def returns_nothing(outgoing, incoming, peer):
    sending = dist.isend(outgoing, peer)
    dist.recv(incoming, peer)
    sending.wait()


# --- first_rank_step ---


def first_rank_with(step="after", clear="before", warm_up=lambda n, m: min(n - 1, m), newest=False):
    def first_rank_step(stage, optimizer, microbatches, n_ranks):
        if clear == "before":
            optimizer.zero_grad()
        m, outputs, sends = len(microbatches), [], []
        ahead = warm_up(n_ranks, m)
        for i in range(m + ahead):
            if i < m:
                outputs.append(stage(microbatches[i]))
                message = outputs[-1].detach()
                sends.append((dist.isend(message, 1), message))
            if i >= ahead:
                output = outputs.pop(-1 if newest else 0)
                dist.recv(grad := torch.empty_like(output), src=1)
                output.backward(grad)
        for work, _ in sends:
            work.wait()
        if step == "after":
            optimizer.step()

    return first_rank_step


fails("check_first_rank_step", "N14", "before the step", name="bug_mended_and_step_lost")(first_rank_with(step="never"))
fails("check_first_rank_step", "G22", "after step 1", name="bug_mended_and_clearing_lost")(
    first_rank_with(clear="never")
)
fails(
    "check_first_rank_step",
    "F36",
    "rank 0: its backwards go in the order 2, 3, 4, 1, 0",
    name="bug_mended_and_newest_first",
)(first_rank_with(newest=True))

# --- one_f_one_b_step ---


def step_with(
    *,
    warm_up=lambda p, r, m: min(p - 1 - r, m),
    newest=False,
    cool_down=True,
    keep=False,
    wait=True,
    blocking=False,
    pause=0.0,
    scale=lambda n, n_rows, m: n / n_rows,
):
    def step(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
        m, last, n_rows = len(targets), rank == n_ranks - 1, sum(map(len, targets))
        optimizer.zero_grad()
        held, sends, kept, total = [], [], [], 0.0

        def send(tensor, peer):
            if blocking:
                dist.send(tensor, peer)
            else:
                sends.append((dist.isend(tensor, peer), tensor))

        def forward(i):
            x = microbatches[i] if rank == 0 else torch.empty(shapes[i], dtype=torch.float64)
            if rank:
                dist.recv(x, rank - 1)
                x.requires_grad_()
            y = stage(x)
            held.append((i, x, y))
            if keep:
                kept.append(y)
            if not last:
                send(y.detach(), rank + 1)

        def backward():
            nonlocal total
            i, x, y = held.pop(-1 if newest else 0)
            if last:
                loss = F.cross_entropy(y, targets[i]) * scale(len(targets[i]), n_rows, m)
                total += loss.item()
                loss.backward(retain_graph=keep)
            else:
                time.sleep(pause)
                dist.recv(grad := torch.empty_like(y), rank + 1)
                y.backward(grad, retain_graph=keep)
            if rank:
                send(x.grad, rank - 1)

        ahead = warm_up(n_ranks, rank, m)
        for i in range(ahead):
            forward(i)
        for i in range(ahead, m):
            forward(i)
            backward()
        while held and cool_down:
            backward()
        for work, _ in sends if wait else ():
            work.wait()
        optimizer.step()
        return total

    return step


def step(name, code, *words, **changes):
    fails("check_one_f_one_b_step", code, *words, name=name)(step_with(**changes))


step("gpipe_instead", "F35", "forwards run before the first backward", warm_up=lambda p, r, m: m)
step("one_forward_too_many", "F33", warm_up=lambda p, r, m: min(p - r, m))
step("warm_up_not_clamped", "F34", warm_up=lambda p, r, m: p - 1 - r)
step("pops_the_newest", "F36", "backwards go in the order", newest=True)
step("blocking_sends_meet", "F38", "deadlock", blocking=True)
step("never_lets_go_of_graphs", "F39", "it held", keep=True)
step("sends_never_waited_for", "F41", "never waited for", wait=False)
step("sends_lost_at_the_end", "F41", "never waited for", wait=False, pause=0.2)  # the last rank ends before they go
step("loss_not_scaled", "G18", "unscaled", scale=lambda n, n_rows, m: 1.0)
step("mean_of_means", "G20", "small micro-batches", scale=lambda n, n_rows, m: 1 / m)
step("stops_before_the_cool_down", "F37", cool_down=False)
