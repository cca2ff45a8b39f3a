"""Wrong answers to lab 02, each with the mistake by which its check must recognise it.

The test runs this file as a notebook would its cells; `fails` marks a submission with its check, the mistake's code,
and words that the report must hold. A code of None stands for a mistake that is not in the catalogue.
"""

# ruff: noqa: F821, B905  # the test gives `fails`; forward_all and microbatch_loss are ppkit's in the check

import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

# --- gpipe_schedule ---


@fails("check_schedule", None, "rank 0 has a forward after a backward")
def one_microbatch_after_the_other(p, m):
    return [[f"{s}{op}{i}" for i in range(m) for op in "FB"] for s in range(p)]


@fails("check_schedule", "G25", "the backwards of rank 0 go in the order")
def first_stage_goes_backwards(p, m):
    rows = [[f"{s}F{i}" for i in range(m)] + [f"{s}B{i}" for i in range(m)] for s in range(p)]
    rows[0][m:] = rows[0][m:][::-1]
    return rows


@fails("check_schedule", None, "the forwards of rank 0 go in the order 2, 1, 0")
def first_rank_s_forwards_go_down(p, m):
    down = [f"0F{i}" for i in reversed(range(m))] + [f"0B{i}" for i in range(m)]
    return [down, *([f"{s}{op}{i}" for op in "FB" for i in range(m)] for s in range(1, p))]


@fails("check_schedule", None, "the forwards of rank 0 go in the order 2, 1, 0")
def all_forwards_go_down(p, m):
    return [[f"{s}{op}{i}" for op in "FB" for i in reversed(range(m))] for s in range(p)]


@fails("check_schedule", None, "0B0")
def backwards_before_forwards(p, m):
    return [[f"{s}B{i}" for i in range(m)] + [f"{s}F{i}" for i in range(m)] for s in range(p)]


@fails("check_schedule", None, "2 stages, 3 micro-batches")
def forgets_the_last_microbatch(p, m):
    n = max(1, m - 1)
    return [[f"{s}F{i}" for i in range(n)] + [f"{s}B{i}" for i in range(n)] for s in range(p)]


@fails("check_schedule", None, "1 stage, 1 micro-batch: a row is a str; it must be a list of texts")
def one_text_for_each_rank(n_stages, n_microbatches):
    return [" ".join(f"{r}F{i} {r}B{i}" for i in range(n_microbatches)) for r in range(n_stages)]


@fails("check_schedule", None, "2 stages, 3 micro-batches", "1F0 is misplaced: stage 1 lives on rank 1")
def one_list_for_all_ranks(p, m):
    rows = [[]] * p
    for s in range(p):
        rows[s] += [f"{s}F{i}" for i in range(m)] + [f"{s}B{i}" for i in range(m)]
    return rows


@fails("check_schedule", None, "1 stage, 1 micro-batch: actions needs one row")
def always_two_ranks(p, m):
    return [["0F0", "0B0"], ["1F0", "1B0"]]


@fails("check_schedule", None, "an int")
def returns_a_number(p, m):
    return p * m


# --- microbatch_loss ---


@fails("check_microbatch_loss", "G18", "micro-batch 0")
def its_own_mean(output, targets, n_rows):
    return F.cross_entropy(output, targets)


@fails("check_microbatch_loss", "G19", "micro-batch 0")
def divides_a_mean_by_all_rows(output, targets, n_rows):
    return F.cross_entropy(output, targets) / n_rows


@fails("check_microbatch_loss", None, "no gradient")
def returns_a_number_without_history(output, targets, n_rows):
    return F.cross_entropy(output, targets, reduction="sum").item() / n_rows


# --- forward_all ---


def receive(shape, source):
    x = torch.empty(shape, dtype=torch.float64)
    dist.recv(x, source)
    return x


@fails("check_forward_all", "G23", "rank 1", "one piece of memory")
def one_buffer_for_all(stage, microbatches, shapes, rank, n_ranks):
    buffer = torch.empty(shapes[0], dtype=torch.float64)
    pairs = []
    for i, shape in enumerate(shapes):
        x = microbatches[i] if rank == 0 else buffer[: shape[0]]
        if rank:
            dist.recv(x, rank - 1)
            x = x.detach().requires_grad_()
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
        pairs.append((x, y))
    return pairs


@fails("check_forward_all", "G24", "0 pairs for 3")
def forgets_to_store(stage, microbatches, shapes, rank, n_ranks):
    for i, shape in enumerate(shapes):
        x = torch.empty(shape, dtype=torch.float64) if rank else microbatches[i]
        if rank:
            dist.recv(x, rank - 1)
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
    return []


@fails("check_forward_all", "G24", "1 pair for 3")
def keeps_the_last_alone(stage, microbatches, shapes, rank, n_ranks):
    for i, shape in enumerate(shapes):
        x = receive(shape, rank - 1).requires_grad_() if rank else microbatches[i]
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
        pairs = [(x, y)]
    return pairs


@fails("check_microbatch_loss", None, "a Tensor of shape [4]")
def a_loss_for_each_row(output, targets, n_rows):
    return F.cross_entropy(output, targets, reduction="none") / n_rows


@fails("check_microbatch_loss", None, "second time")
def runs_the_backward_itself(output, targets, n_rows):
    loss = F.cross_entropy(output, targets, reduction="sum") / n_rows
    loss.backward()
    return loss


@fails("check_forward_all", "N02", "rank 1", "no gradient")
def stores_copies_of_its_inputs(stage, microbatches, shapes, rank, n_ranks):
    pairs = []
    for i, shape in enumerate(shapes):
        x = receive(shape, rank - 1).requires_grad_() if rank else microbatches[i]
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
        pairs.append((x.clone(), y))
    return pairs


@fails("check_forward_all", "F41", "send→1 was never waited for")
def keeps_its_sends_and_leaves(stage, microbatches, shapes, rank, n_ranks):
    pairs, sends = [], []
    for i, shape in enumerate(shapes):
        x = receive(shape, rank - 1).requires_grad_() if rank else microbatches[i]
        y = stage(x)
        if rank < n_ranks - 1:
            message = y.detach()
            sends.append((dist.isend(message, rank + 1), message))
        pairs.append((x, y))
    return pairs


@fails("check_forward_all", "N01", "rank 1", "no gradient")
def asks_for_no_gradient(stage, microbatches, shapes, rank, n_ranks):
    pairs = []
    for i, shape in enumerate(shapes):
        x = receive(shape, rank - 1) if rank else microbatches[i]
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
        pairs.append((x, y))
    return pairs


@fails("check_forward_all", "N06", "rank 1")
def every_shape_is_the_first(stage, microbatches, shapes, rank, n_ranks):
    pairs = []
    for i, _ in enumerate(shapes):
        x = receive(shapes[0], rank - 1).requires_grad_() if rank else microbatches[i]
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
        pairs.append((x, y))
    return pairs


@fails("check_forward_all", None, "no backward can start")
def stores_what_it_sends(stage, microbatches, shapes, rank, n_ranks):
    pairs = []
    for i, shape in enumerate(shapes):
        x = receive(shape, rank - 1).requires_grad_() if rank else microbatches[i]
        y = stage(x).detach()
        if rank < n_ranks - 1:
            dist.send(y, rank + 1)
        pairs.append((x, y))
    return pairs


# --- first_rank_step ---


def forwards(stage, microbatches):
    outputs = []
    for batch in microbatches:
        outputs.append(stage(batch))
        dist.send(outputs[-1].detach(), dst=1)
    return outputs


@fails("check_first_rank_step", "G21", "6 steps for 2 batches")
def steps_for_each_gradient(stage, optimizer, microbatches):
    optimizer.zero_grad()
    for output in forwards(stage, microbatches):
        output_grad = torch.empty_like(output)
        dist.recv(output_grad, src=1)
        output.backward(output_grad)
        optimizer.step()


@fails("check_first_rank_step", "G22", "the last micro-batch alone")
def clears_before_each_backward(stage, optimizer, microbatches):
    for output in forwards(stage, microbatches):
        output_grad = torch.empty_like(output)
        dist.recv(output_grad, src=1)
        optimizer.zero_grad()
        output.backward(output_grad)
    optimizer.step()


@fails("check_first_rank_step", "G26", "keep its graph")
def keeps_graphs_to_be_safe(stage, optimizer, microbatches):
    optimizer.zero_grad()
    for output in forwards(stage, microbatches):
        output_grad = torch.empty_like(output)
        dist.recv(output_grad, src=1)
        output.backward(output_grad, retain_graph=True)
    optimizer.step()


# --- gpipe_step ---


def step_with(loss_of, *, clear="before", stepping="after", kept=False, returns=None):
    """A step whose parts are changed."""

    def step(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
        if clear == "before":
            optimizer.zero_grad()
        n_rows, m = sum(map(len, targets)), len(targets)
        losses = []
        for (x, y), labels in zip(forward_all(stage, microbatches, shapes, rank, n_ranks), targets):
            if clear == "between":
                optimizer.zero_grad()
            if rank == n_ranks - 1:
                loss = loss_of(y, labels, n_rows, m)
                losses.append(loss.item())
                loss.backward(retain_graph=kept)
            else:
                y.backward(receive(y.shape, rank + 1))
            if rank:
                dist.send(x.grad, rank - 1)
            if stepping == "each":
                optimizer.step()
        if stepping == "after":
            optimizer.step()
        return (returns or sum)(losses) if rank == n_ranks - 1 else None

    return step


def right(y, labels, n_rows, m):
    return F.cross_entropy(y, labels, reduction="sum") / n_rows


def mark(name, code, *words, loss=right, **changes):
    fails("check_gpipe_step", code, *words, name=name)(step_with(loss, **changes))


mark("loss_is_not_scaled", "G18", "unscaled", loss=lambda y, labels, n, m: F.cross_entropy(y, labels))
mark("loss_is_scaled_twice", "G19", "twice", loss=lambda y, labels, n, m: right(y, labels, n, m) / m)
mark("mean_of_means", "G20", "small micro-batches", loss=lambda y, labels, n, m: F.cross_entropy(y, labels) / m)
mark("steps_for_each_microbatch", "G21", "inplace", stepping="each")
mark("never_clears", "G22", "after step 1", clear="never")
mark("clears_in_between", "G22", "the last micro-batch alone", clear="between")
mark("keeps_the_graph", "G26", "keep its graph", kept=True)
mark("returns_the_sum_of_means", "G32", "a loss of", returns=lambda losses: sum(losses) * len(losses))
mark("returns_the_last_share", "G32", "a loss of", returns=lambda losses: losses[-1])
mark("never_steps", "N14", "before the step", stepping="never")


@fails("check_gpipe_step", "N14", "rank 1: its parameters are what they were before the step")
def forwards_alone(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    optimizer.zero_grad()
    stored = forward_all(stage, microbatches, shapes, rank, n_ranks)
    optimizer.step()
    n_rows = sum(map(len, targets))
    return sum(microbatch_loss(y, labels, n_rows) for (_, y), labels in zip(stored, targets)) if rank else None


@fails("check_gpipe_step", "N14", "rank 1: its parameters are what they were before the step")
def clears_after_the_backwards(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    class Late:
        def zero_grad(self):
            pass

        def step(self):
            optimizer.zero_grad()
            optimizer.step()

    return step_with(right)(stage, Late(), microbatches, targets, shapes, rank, n_ranks)


@fails("check_gpipe_step", None, "a backward began before the last forward")
def naive_with_small_batches(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    optimizer.zero_grad()
    n_rows, total = sum(map(len, targets)), 0.0
    for i, labels in enumerate(targets):
        one = [microbatches[i]] if rank == 0 else None
        ((x, y),) = forward_all(stage, one, [shapes[i]], rank, n_ranks)
        if rank == n_ranks - 1:
            loss = microbatch_loss(y, labels, n_rows)
            total += loss.item()
            loss.backward()
        else:
            y.backward(receive(y.shape, rank + 1))
        if rank:
            dist.send(x.grad, rank - 1)
    optimizer.step()
    return total


@fails("check_gpipe_step", "G27", "1 backward")
def one_backward_at_the_end(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    optimizer.zero_grad()
    n_rows = sum(map(len, targets))
    stored = forward_all(stage, microbatches, shapes, rank, n_ranks)
    total = 0.0
    if rank == n_ranks - 1:
        total = sum(microbatch_loss(y, labels, n_rows) for (_, y), labels in zip(stored, targets))
        total.backward()
    for x, y in stored:
        if rank < n_ranks - 1:
            y.backward(receive(y.shape, rank + 1))
        if rank:
            dist.send(x.grad, rank - 1)
    optimizer.step()
    return total


@fails("check_gpipe_step", "G25", "rank 0", "swapped")
def first_rank_goes_the_other_way(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    optimizer.zero_grad()
    n_rows, total = sum(map(len, targets)), 0.0
    pairs = list(zip(forward_all(stage, microbatches, shapes, rank, n_ranks), targets))
    for (x, y), labels in reversed(pairs) if rank == 0 else pairs:
        if rank == n_ranks - 1:
            loss = microbatch_loss(y, labels, n_rows)
            total += loss.item()
            loss.backward()
        else:
            y.backward(receive(y.shape, rank + 1))
        if rank:
            dist.send(x.grad, rank - 1)
    optimizer.step()
    return total


@fails("check_gpipe_step", "F41", "a deadlock", "Rank 1's send→0 was never waited for, and never arrived")
def leaves_before_its_last_gradient_is_sent(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    optimizer.zero_grad()
    n_rows, total, sends = sum(map(len, targets)), 0.0, []
    pairs = list(zip(forward_all(stage, microbatches, shapes, rank, n_ranks), targets))
    for i, ((x, y), labels) in enumerate(pairs):
        if rank == n_ranks - 1:
            loss = microbatch_loss(y, labels, n_rows)
            total += loss.item()
            loss.backward()
        else:
            time.sleep(0.2 * (i == len(pairs) - 1))  # the neighbour is gone by then
            y.backward(receive(y.shape, rank + 1))
        if rank:
            sends.append(dist.isend(x.grad, rank - 1))
    optimizer.step()
    return total


@fails("check_gpipe_step", "G24", "second time")
def keeps_only_the_last_output(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    optimizer.zero_grad()
    n_rows, total = sum(map(len, targets)), 0.0
    for i, shape in enumerate(shapes):
        x = receive(shape, rank - 1).requires_grad_() if rank else microbatches[i]
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
    for labels in targets:
        if rank == n_ranks - 1:
            loss = microbatch_loss(y, labels, n_rows)
            total += loss.item()
            loss.backward()
        else:
            y.backward(receive(y.shape, rank + 1))
        if rank:
            dist.send(x.grad, rank - 1)
    optimizer.step()
    return total


@fails("check_gpipe_step", "G23", "rank 1", "one and the same buffer")
def receives_into_one_buffer(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    optimizer.zero_grad()
    n_rows, total = sum(map(len, targets)), 0.0
    buffer, pairs = torch.empty(shapes[0], dtype=torch.float64), []
    for i, _ in enumerate(shapes):
        if rank:
            dist.recv(buffer, rank - 1)
        x = buffer.detach().requires_grad_() if rank else microbatches[i]
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
        pairs.append((x, y))
    for (x, y), labels in zip(pairs, targets):
        if rank == n_ranks - 1:
            loss = microbatch_loss(y, labels, n_rows)
            total += loss.item()
            loss.backward()
        else:
            y.backward(receive(y.shape, rank + 1))
        if rank:
            dist.send(x.grad, rank - 1)
    optimizer.step()
    return total
