"""Right answers to lab 03 that look unlike the solution; each earns every point of its check.

The test runs this file as a notebook would its cells; `answers` marks a submission with the check it is for.
"""

# ruff: noqa: F821  # the test gives `answers`

import torch
import torch.distributed as dist
import torch.nn.functional as F


@answers("check_schedule")
def by_counting_what_is_held(p, m):
    rows = []
    for rank in range(p):
        row, forwards, backwards = [], 0, 0
        while backwards < m:
            if forwards < m and forwards - backwards < p - rank:
                row.append(f"{rank}F{forwards}")
                forwards += 1
            else:
                row.append(f"{rank}B{backwards}")
                backwards += 1
        rows.append(row)
    return rows


@answers("check_exchange")
def both_in_flight(a, b, other):
    works = [dist.irecv(b, other), dist.isend(a, other)]
    for work in works:
        work.wait()
    return b


@answers("check_exchange")
def as_a_batch(outgoing, incoming, peer):
    operations = [dist.P2POp(dist.isend, outgoing, peer), dist.P2POp(dist.irecv, incoming, peer)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return incoming


@answers("check_exchange")
def lower_rank_sends_first(outgoing, incoming, peer):
    if dist.get_rank() < peer:
        dist.send(outgoing, peer)
        dist.recv(incoming, peer)
    else:
        dist.recv(incoming, peer)
        dist.send(outgoing, peer)
    return incoming


@answers("check_first_rank_step")
def with_an_index(stage, optimizer, microbatches, n_ranks):
    optimizer.zero_grad()
    m, outputs, sends = len(microbatches), {}, []
    warm_up = min(n_ranks - 1, m)
    for i in range(m + warm_up):
        if i < m:
            outputs[i] = stage(microbatches[i])
            message = outputs[i].detach()
            sends.append((dist.isend(message, 1), message))
        if i >= warm_up:
            output = outputs.pop(i - warm_up)
            dist.recv(grad := torch.empty_like(output), src=1)
            output.backward(grad)
    for work, _ in sends:
        work.wait()
    optimizer.step()


class OneForwardOneBackward:
    """A class that posts its receives early and runs a list of actions."""

    def __call__(self, stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
        self.rank, self.n_ranks, self.last = rank, n_ranks, rank == n_ranks - 1
        self.stage, self.targets = stage, targets
        self.works, self.held, self.total = [], {}, 0.0
        self.inputs = microbatches or [torch.empty(shape, dtype=torch.float64) for shape in shapes]
        self.arriving = [dist.irecv(x, rank - 1) for x in self.inputs] if rank else []
        optimizer.zero_grad()
        m, ahead = len(targets), min(n_ranks - 1 - rank, len(targets))
        plan = [("F", i) for i in range(ahead)]
        for i in range(m):
            if ahead + i < m:
                plan.append(("F", ahead + i))
            plan.append(("B", i))
        for kind, i in plan:
            self.forward(i) if kind == "F" else self.backward(i)
        for work, _ in self.works:
            work.wait()
        optimizer.step()
        result, self.held, self.works, self.inputs = self.total, {}, [], []
        return result if self.last else None

    def forward(self, i):
        x, self.inputs[i] = self.inputs[i], None
        if self.rank:
            self.arriving[i].wait()
            x.requires_grad_()
        self.held[i] = x, self.stage(x)
        if not self.last:
            message = self.held[i][1].detach()
            self.works.append((dist.isend(message, self.rank + 1), message))

    def backward(self, i):
        x, y = self.held.pop(i)
        if self.last:
            share = len(self.targets[i]) / sum(map(len, self.targets))
            loss = F.cross_entropy(y, self.targets[i]) * share
            self.total += float(loss.detach())
            loss.backward()
        else:
            grad = torch.empty_like(y)
            dist.recv(grad, self.rank + 1)
            torch.autograd.backward(y, grad)
        if self.rank:
            self.works.append((dist.isend(x.grad, self.rank - 1), x.grad))


answers("check_one_f_one_b_step", name="a_class_with_early_receives")(OneForwardOneBackward())
