"""Right answers to lab 07 that look unlike the solution; each earns every point of its check.

The test runs this file as a notebook would its cells; `answers` marks a submission with the check it is for.
"""

# ruff: noqa: F821  # the test gives `answers`

import functools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# --- predictions ---

answers("check_predictions", name="two_decimals")(("126", 105.0, 0.33))

# --- cut_layers ---


def refuse(n, p):
    raise ValueError(f"cannot cut {n} layers in {p} stages")


@answers("check_cut_layers")
def by_bisection_on_the_slowest_stage(costs, p):
    """The only candidates are sums of neighbours: the smallest for which filling up needs at most p stages."""
    n = len(costs)
    if p > n:
        refuse(n, p)

    def filled(limit):
        sizes, room = [], -1.0
        for i, cost in enumerate(costs):
            if not sizes or cost > room or n - i <= p - len(sizes):  # a layer must be left for each later stage
                sizes, room = [*sizes, 0], limit
            sizes[-1] += 1
            room -= cost
        return sizes

    sums = sorted({sum(costs[a:b]) for a in range(n) for b in range(a + 1, n + 1)})
    candidates = [bound * (1 + 1e-9) for bound in sums if bound >= max(costs)]
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if len(filled(candidates[middle])) <= p:
            high = middle
        else:
            low = middle + 1
    return filled(candidates[low])


@answers("check_cut_layers")
def from_the_end_with_a_cache(layers, stages):
    from functools import cache

    if stages > len(layers):
        refuse(len(layers), stages)

    @cache
    def best(first, left):
        if left == 1:
            return sum(layers[first:]), (len(layers) - first,)
        options = []
        for end in range(first + 1, len(layers) - left + 2):
            most, sizes = best(end, left - 1)
            options.append((max(most, sum(layers[first:end])), (end - first, *sizes)))
        return min(options)

    return best(0, stages)[1]


@functools.cache
def most_and_sizes(costs, k, s):
    if s == 1:
        return sum(costs[:k]), (k,)
    options = []
    for j in range(s - 1, k):
        most, sizes = most_and_sizes(costs, j, s - 1)
        options.append((max(most, sum(costs[j:k])), (*sizes, k - j)))
    return min(options)


@answers("check_cut_layers")
def cached_function_of_another_cell(costs, n_stages):
    if n_stages > len(costs):
        refuse(len(costs), n_stages)
    return most_and_sizes(tuple(costs), len(costs), n_stages)[1]


@answers("check_cut_layers")
def table_of_torch_tensors(costs, n_stages):
    n = len(costs)
    if n_stages > n:
        raise ValueError(" ".join(map(str, ("stages:", n_stages, "layers:", n))))
    until = torch.tensor([0.0, *costs], dtype=torch.float64).cumsum(0)
    best, choice = until.clone(), []
    best[0] = torch.inf
    for _ in range(n_stages - 1):
        both = torch.maximum(best[:, None], until[None, :] - until[:, None])
        both[torch.ones_like(both).tril().bool()] = torch.inf  # a stage has a layer
        best, cut = both.min(dim=0)
        choice.append(cut)
    ends = [n]
    for cut in reversed(choice):
        ends.insert(0, cut[ends[0]])
    return torch.diff(torch.tensor([0, *ends]))


# --- find_skips ---


@answers("check_find_skips")
def open_and_done(stages):
    waiting, done = {}, {}
    for place, uses in enumerate(stages):
        for what, name in uses:
            if what == "stash":
                if name in waiting or name in done:
                    raise ValueError(f"{name} again")
                waiting[name] = place
            elif name in waiting:
                done[name] = [waiting.pop(name), place]
            else:
                raise ValueError(f"nothing to pop: {name}")
    for name in waiting:
        raise ValueError(f"never popped: {name}")
    return done


class BadSkip(ValueError):
    """A kind of its own."""


@answers("check_find_skips")
def name_by_name(stages):
    uses = [(what, name, number) for number, stage in enumerate(stages) for what, name in stage]
    found = {}
    for name in dict.fromkeys(name for _, name, _ in uses):
        mine = [(what, number) for what, other, number in uses if other == name]
        if [what for what, _ in mine] != ["stash", "pop"]:
            raise BadSkip(name)
        found[name] = tuple(number for _, number in mine)
    return found


# --- first_rank_step ---


@answers("check_first_rank_step")
def both_receives_in_flight(stage, optimizer, microbatches):
    optimizer.zero_grad()
    outputs = [stage(images) for images in microbatches]
    works = []
    for output in outputs:
        message = output.detach()
        works += dist.batch_isend_irecv([dist.P2POp(dist.isend, message, peer) for peer in (1, 2)])
    for output in outputs:
        parts = torch.empty(2, *output.shape, dtype=output.dtype)
        for work in [dist.irecv(part, source) for part, source in zip(parts, (1, 2), strict=True)]:
            work.wait()
        output.backward(parts.sum(0))
    for work in works:
        work.wait()
    optimizer.step()


@answers("check_first_rank_step")
def autograd_adds_them(stage, optimizer, microbatches):
    """Two views of the output, each with a gradient of its own: one backward from both."""
    optimizer.zero_grad()
    pairs, works = [], []
    for images in microbatches:
        output = stage(images)
        pairs.append([output.view_as(output), output.view_as(output)])
        works += [dist.isend(one.detach(), peer) for one, peer in zip(pairs[-1], (1, 2), strict=True)]
    for pair in pairs:
        grads = [torch.empty_like(one) for one in pair]
        dist.recv(grads[1], 2)
        dist.recv(grads[0], 1)
        torch.autograd.backward(pair, grads)
    for work in works:
        work.wait()
    optimizer.step()


# --- skip_step ---


class SentTo(torch.autograd.Function):
    """Hands its input on to other ranks; its backward adds what they send back."""

    @staticmethod
    def forward(ctx, x, *peers):
        ctx.peers = peers
        ctx.works = [dist.isend(x, peer) for peer in peers]
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        for work in ctx.works:
            work.wait()
        total = 0.0
        for peer in ctx.peers:
            grad = torch.empty(ctx.shape, dtype=torch.float64)
            dist.recv(grad, peer)
            total = total + grad
        return total, *[None for _ in ctx.peers]


class ReceivedFrom(torch.autograd.Function):
    """Takes a value of another rank; its backward sends the gradient there."""

    @staticmethod
    def forward(ctx, anchor, shape, peer, works):
        ctx.peer, ctx.works = peer, works
        x = torch.empty(shape, dtype=torch.float64)
        dist.recv(x, peer)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        ctx.works.append((dist.isend(grad, ctx.peer), grad))
        return None, None, None, None


@answers("check_skip_step")
def functions_of_autograd(stage, optimizer, batches, classes, shapes, skip_shapes, rank, n):
    works, roots, total = [], [], 0.0
    rows = sum(len(one) for one in classes)
    optimizer.zero_grad()
    anchor = torch.zeros((), requires_grad=True)
    for i, target in enumerate(classes):
        inputs = [batches[i]] if rank == 0 else [ReceivedFrom.apply(anchor, shapes[i], rank - 1, works)]
        if rank == n - 1:
            inputs.append(ReceivedFrom.apply(anchor, skip_shapes[i], 0, works))
        y = stage(*inputs)
        if rank == n - 1:
            root = F.cross_entropy(y, target, reduction="sum") / rows
            total += root.item()
        else:
            root = SentTo.apply(y, *((1, n - 1) if rank == 0 else (rank + 1,)))
            root.grad_fn.shape = y.shape
        roots.append(root)
    for root in roots:
        root.backward()
    for work, _ in works:
        work.wait()
    optimizer.step()
    return total


class SkipStep:
    """Receives posted early, a table of peers, and the loss scaled by its share."""

    def __call__(self, stage, optimizer, microbatches, targets, shapes, skip_shapes, rank, n_ranks):
        last, double = n_ranks - 1, torch.float64
        ups = {0: [], last: [rank - 1, 0]}.get(rank, [rank - 1])
        downs = {0: [last, 1], last: []}.get(rank, [rank + 1])
        rooms = [[torch.empty(s, dtype=double) for s in pair] for pair in zip(shapes, skip_shapes, strict=True)]
        arriving = [[dist.irecv(x, peer) for x, peer in zip(room, ups, strict=False)] for room in rooms]
        optimizer.zero_grad(set_to_none=False)
        done, sends, losses = [], [], []
        for i, target in enumerate(targets):
            for work in arriving[i]:
                work.wait()
            xs = [x.requires_grad_() for x, _ in zip(rooms[i], ups, strict=False)] or [microbatches[i]]
            y = stage(*xs)
            if rank == last:
                y = F.cross_entropy(y, target) * len(target) / sum(map(len, targets))
                losses.append(y.detach())
            sends += [dist.isend(y.detach(), peer) for peer in downs]
            done.append((xs, y))
        for xs, y in done:
            grads = [torch.zeros_like(y) for _ in downs]
            for work in [dist.irecv(grad, peer) for grad, peer in zip(grads, downs, strict=True)]:
                work.wait()
            y.backward(sum(grads) if grads else None)
            sends += [dist.isend(x.grad, peer) for x, peer in zip(xs, ups, strict=False)]
        for work in sends:
            work.wait()
        optimizer.step()
        return sum(losses)


answers("check_skip_step", name="a_class_with_early_receives")(SkipStep())


@answers("check_skip_step")
def blocking_in_the_right_order(stage, optimizer, microbatches, targets, shapes, skip_shapes, rank, n_ranks):
    """Along the long way first, over the short way second: no circle."""
    last, kept, total = n_ranks - 1, [], 0.0
    optimizer.zero_grad()
    for i, target in enumerate(targets):
        x = microbatches[i] if rank == 0 else torch.empty(shapes[i], dtype=torch.float64)
        if rank:
            dist.recv(x, rank - 1)
            x.requires_grad_()
        if rank == last:
            skip = torch.empty(skip_shapes[i], dtype=torch.float64)
            dist.recv(skip, 0)
            y = stage(x, skip.requires_grad_())
            kept.append((x, skip, F.cross_entropy(y, target, reduction="sum") / sum(map(len, targets))))
        else:
            y = stage(x)
            dist.send(y.detach(), rank + 1)
            if rank == 0:
                dist.send(y.detach(), last)
            kept.append((x, None, y))
    for x, skip, y in kept:
        grad = None
        if rank < last:
            grad = torch.empty_like(y)
            dist.recv(grad, rank + 1)
        if rank == 0:
            other = torch.empty_like(y)
            dist.recv(other, last)
            grad.add_(other)
        y.backward(grad)
        if rank:
            dist.send(x.grad, rank - 1)
        if rank == last:
            total += float(y.detach())
            dist.send(skip.grad, 0)
    optimizer.step()
    return total


@answers("check_skip_step")
def outputs_sent_with_their_graphs(stage, optimizer, microbatches, targets, shapes, skip_shapes, rank, n_ranks):
    """A message has no graph, with `detach` or without."""
    last, kept, sends, losses = n_ranks - 1, [], [], []
    users = (1, last) if rank == 0 else (rank + 1,) if rank < last else ()
    optimizer.zero_grad()

    def receive(shape, source):
        x = torch.zeros(shape, dtype=torch.float64)
        dist.recv(x, source)
        return x.requires_grad_()

    for i, target in enumerate(targets):
        x = receive(shapes[i], rank - 1) if rank else microbatches[i]
        skip = receive(skip_shapes[i], 0) if rank == last else None
        y = stage(x) if skip is None else stage(x, skip)
        if rank == last:
            y = F.cross_entropy(y, target, reduction="sum") / sum(map(len, targets))
        sends += [(dist.isend(y, user), y) for user in users]
        kept.append((x, skip, y))
    for x, skip, y in kept:
        y.backward(sum(receive(y.shape, user).detach() for user in users) if users else None)
        losses += [y.item()] if rank == last else []
        for leaf, source in ((skip, 0), (x, rank - 1)):
            if leaf is not None and leaf.grad is not None:
                sends.append((dist.isend(leaf.grad, source), leaf.grad))
    for work, _ in sends:
        work.wait()
    optimizer.step()
    return sum(losses)


# --- light_forward, recomputing_backward ---


def checkpointed(stage, stage_input):
    x = stage_input.detach().requires_grad_()
    output = checkpoint(stage, x, use_reentrant=False)
    return output, (x, output)


def through_the_checkpoint(stage, kept, output_grad):
    x, output = kept
    output.backward(output_grad)
    return x.grad


answers("check_recomputation", name="torchs_own_checkpoint")((checkpointed, through_the_checkpoint))


def reentrant(stage, stage_input):
    x = stage_input.detach().requires_grad_()
    output = checkpoint(stage, x, use_reentrant=True)
    return output, {"input": x, "output": output}


def through_the_reentrant_one(stage, kept, output_grad):
    torch.autograd.backward(kept["output"], output_grad)
    return kept["input"].grad


answers("check_recomputation", name="torchs_reentrant_checkpoint")((reentrant, through_the_reentrant_one))


class Again(torch.autograd.Function):
    """Recomputes in its own backward, which autograd calls."""

    @staticmethod
    def forward(ctx, x, stage):
        ctx.stage, ctx.state = stage, torch.get_rng_state()
        ctx.save_for_backward(x)
        with torch.no_grad():
            return stage(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.stage(x), grad)
        return x.grad, None


def by_a_function(stage, stage_input):
    x = stage_input.requires_grad_()
    y = Again.apply(x, stage)
    return y, (x, y)


answers("check_recomputation", name="a_function_of_autograd")((by_a_function, through_the_checkpoint))


def graph_thrown_away(stage, stage_input):
    state = torch.random.get_rng_state()
    output = stage(stage_input).detach()  # the graph is gone with the only tensor that led to it
    return output, lambda: (stage_input, state)


def with_gradients_by_hand(stage, kept, output_grad):
    x, state = kept()
    now = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    y = stage(x.requires_grad_())
    torch.random.set_rng_state(now)
    found, *grads = torch.autograd.grad(y, (x, *stage.parameters()), output_grad)
    for parameter, grad in zip(stage.parameters(), grads, strict=True):
        parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    return found


answers("check_recomputation", name="without_no_grad_and_by_hand")((graph_thrown_away, with_gradients_by_hand))
