"""Right answers to lab 02 that look unlike the solution; each earns every point of its check.

The test runs this file as a notebook would its cells; `answers` marks a submission with the check it is for.
"""

# ruff: noqa: F821, B905  # the test gives `answers`

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ppkit import Schedule


@answers("check_schedule")
def by_a_loop_over_stages(p, m):
    rows = []
    for stage in range(p):
        row = [f"{stage}F{i}" for i in range(m)]
        row.extend(f"{stage}B{i}" for i in range(m))
        rows.append(row)
    return rows


@answers("check_schedule")
def backwards_last_in_first_out(n_stages, n_microbatches):
    order = range(n_microbatches)
    return tuple(tuple([f"{s}F{i}" for i in order] + [f"{s}B{i}" for i in reversed(order)]) for s in range(n_stages))


@answers("check_schedule")
def as_a_schedule(n_stages, n_microbatches):
    rows = [[f"{s}{op}{i}" for op in "FB" for i in range(n_microbatches)] for s in range(n_stages)]
    return Schedule("mine", n_stages, n_stages, n_microbatches, rows)


@answers("check_microbatch_loss")
def the_mean_weighted_by_its_share(logits, labels, total):
    return F.cross_entropy(logits, labels) * (len(labels) / total)


@answers("check_microbatch_loss")
def by_log_softmax(output, targets, n_rows):
    chosen = torch.log_softmax(output, dim=1)[torch.arange(len(targets)), targets]
    return -chosen.sum() / n_rows


@answers("check_forward_all")
def posts_all_receives_first(stage, microbatches, shapes, rank, n_ranks):
    if rank:
        buffers = [torch.empty(shape, dtype=torch.float64) for shape in shapes]
        works = [dist.irecv(buffer, rank - 1) for buffer in buffers]
    pairs, sends = [], []
    for i in range(len(shapes)):
        if rank:
            works[i].wait()
            x = buffers[i].requires_grad_()
        else:
            x = microbatches[i]
        y = stage(x)
        if rank < n_ranks - 1:
            sends.append((dist.isend(y.detach(), rank + 1), y))
        pairs.append([x, y])
    for work, _ in sends:
        work.wait()
    return pairs


@answers("check_forward_all")
def with_a_tag_for_each_microbatch(stage, microbatches, shapes, rank, n_ranks):
    def one(i, shape):
        x = microbatches[i] if rank == 0 else torch.zeros(shape, dtype=torch.double)
        if rank > 0:
            dist.recv(x, rank - 1, tag=i)
            x.requires_grad = True
        y = stage(x)
        if rank != n_ranks - 1:
            dist.send(y.data, rank + 1, tag=i)
        return x, y

    return tuple(one(i, shape) for i, shape in enumerate(shapes))


@answers("check_first_rank_step")
def receives_all_gradients_before_the_backwards(stage, optimizer, microbatches):
    optimizer.zero_grad()
    outputs = []
    for batch in microbatches:
        outputs.append(stage(batch))
        dist.send(outputs[-1].detach(), dst=1)
    grads = [torch.empty_like(output) for output in outputs]
    for grad in grads:
        dist.recv(grad, src=1)
    for output, grad in reversed(list(zip(outputs, grads))):
        output.backward(grad)
    optimizer.step()


@answers("check_gpipe_step")
def last_in_first_out(stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
    optimizer.zero_grad()
    n_rows, total = sum(map(len, targets)), 0.0
    stored = forward_all(stage, microbatches, shapes, rank, n_ranks)
    while stored:
        x, y = stored.pop()
        if rank == n_ranks - 1:
            loss = microbatch_loss(y, targets[len(stored)], n_rows)
            loss.backward()
            total += loss.detach()
        else:
            dist.recv(grad := torch.zeros_like(y), src=rank + 1)
            y.backward(gradient=grad)
        if rank:
            dist.send(x.grad, rank - 1)
    optimizer.step()
    return total


class Pipeline:
    """A class, with messages in flight, and the gradients scaled at the end."""

    def __call__(self, stage, optimizer, microbatches, targets, shapes, rank, n_ranks):
        self.stage, self.rank, self.last = stage, rank, rank == n_ranks - 1
        optimizer.zero_grad(set_to_none=False)
        pairs = [self.forward(microbatches, i, shape) for i, shape in enumerate(shapes)]
        losses = [self.backward(pair, labels) for pair, labels in zip(pairs, targets)]
        n_rows = sum(map(len, targets))
        for parameter in stage.parameters():
            parameter.grad /= n_rows
        optimizer.step()
        return sum(losses) / n_rows if self.last else None

    def forward(self, microbatches, i, shape):
        if self.rank == 0:
            x = microbatches[i]
        else:
            x = torch.empty(*shape, dtype=torch.float64)
            dist.irecv(x, self.rank - 1).wait()
            x.requires_grad_(True)
        y = self.stage(x)
        if not self.last:
            dist.isend(y.detach().clone(), self.rank + 1).wait()
        return x, y

    def backward(self, pair, labels):
        x, y = pair
        loss = 0.0
        if self.last:
            loss = F.cross_entropy(y, labels, reduction="sum")
            torch.autograd.backward(loss)
        else:
            grad = torch.empty_like(y)
            dist.irecv(grad, self.rank + 1).wait()
            torch.autograd.backward([y], [grad])
        if self.rank:
            dist.isend(x.grad, self.rank - 1).wait()
        return float(loss)


answers("check_gpipe_step", name="a_class_that_scales_gradients_at_the_end")(Pipeline())
