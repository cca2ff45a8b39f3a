"""Right answers to lab 06 that look unlike the solution; each earns every point of its check.

The test runs this file as a notebook would its cells; `answers` marks a submission with the check it is for.
"""

# ruff: noqa: F821  # the test gives `answers`, and the driver forward_stage and backward_stage

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parameters_to_vector, vector_to_parameters

# --- mesh_groups and my_rows ---


def ranges(d, p):
    return tuple(range(r * p, (r + 1) * p) for r in range(d)), [list(range(s, d * p, p)) for s in range(p)]


def every_so_many(batch, rank, d, p):
    return batch[rank // p :: d]


answers("check_mesh", name="ranges_and_strides")((ranges, every_so_many))


def by_asking_each_rank(n_replicas, n_stages):
    rows, columns = {}, {}
    for rank in range(n_replicas * n_stages):
        rows.setdefault(rank // n_stages, []).append(rank)
        columns.setdefault(rank % n_stages, []).append(rank)
    return list(rows.values()), list(columns.values())


def larger_shares_last(batch, rank, n_replicas, n_stages):
    return batch.flip(0).chunk(1)[0].tensor_split(n_replicas)[rank // n_stages].clone()


answers("check_mesh", name="dictionaries_and_a_batch_from_behind")((by_asking_each_rank, larger_shares_last))

# --- make_groups and same_start ---


def of_a_device_mesh(d, p):
    mesh = init_device_mesh("cpu", (d, p), mesh_dim_names=("dp", "pp"))
    return mesh["pp"].get_group(), mesh["dp"].get_group()


def in_one_piece(stage, column):
    flat = parameters_to_vector(stage.parameters()).detach()
    dist.broadcast(flat, src=dist.get_process_group_ranks(column)[0], group=column)
    vector_to_parameters(flat, stage.parameters())


answers("check_groups", name="device_mesh_and_one_vector")((of_a_device_mesh, in_one_piece))


def by_members_alone(n_replicas, n_stages):
    """Which `new_group` allows if it is told so."""
    replica, number = divmod(dist.get_rank(), n_stages)
    row = [replica * n_stages + s for s in range(n_stages)]
    column = [d * n_stages + number for d in range(n_replicas)]
    return [dist.new_group(ranks, use_local_synchronization=True) for ranks in (row, column)]


def others_add_zero(stage, column):
    for weight in stage.parameters():
        if dist.get_rank(column):
            weight.data.zero_()
        dist.all_reduce(weight.data, group=column)


answers("check_groups", name="members_alone_and_a_sum_with_zeros")((by_members_alone, others_add_zero))


def by_enumeration(n_replicas, n_stages):
    mesh = torch.arange(n_replicas * n_stages).view(n_replicas, n_stages)
    column, _ = dist.new_subgroups_by_enumeration(mesh.T.tolist())
    row, _ = dist.new_subgroups(n_stages)
    return row, column


def from_the_first_of_all(stage, column):
    every = [None] * dist.get_world_size(column)
    dist.all_gather_object(every, stage.state_dict(), group=column)
    stage.load_state_dict(every[0])


answers("check_groups", name="subgroups_and_gathered_objects")((by_enumeration, from_the_first_of_all))

# --- finish_step ---


@answers("check_finish_step")
def afterwards_in_one_vector(stage, optimizer, kept, before, after, column):
    while kept:
        backward_stage(*kept.pop(), before, after)
    grads = [weight.grad for weight in stage.parameters()]
    flat = parameters_to_vector(grads) / dist.get_world_size(column)
    dist.all_reduce(flat, group=column)
    vector_to_parameters(flat, grads)
    optimizer.step()


@answers("check_finish_step")
def hooks_that_sum_in_the_last_backward(stage, optimizer, kept, before, after, column):
    works, handles = [], []

    def begin(weight):
        works.append((dist.all_reduce(weight.grad, group=column, async_op=True), weight))

    for i in range(len(kept) - 1, -1, -1):
        if i == 0:
            handles = [weight.register_post_accumulate_grad_hook(begin) for weight in stage.parameters()]
        backward_stage(*kept[i], before, after)
    for handle in handles:
        handle.remove()
    for work, weight in works:
        work.wait()
        weight.grad.div_(dist.get_world_size(column))
    optimizer.step()


# --- sum_and_clip ---


class Clipper:
    """Each copy of the tied weight counts half; torch's own functions do the rest."""

    def __call__(self, weights, tied, row, ends, limit):
        if ends is not None:
            dist.all_reduce(tied.grad, group=ends)
        parts = [float(w.grad.norm()) ** 2 / (2 if w is tied else 1) for w in weights]
        every = [None] * dist.get_world_size(row)
        dist.all_gather_object(every, sum(parts), group=row)
        norm = math.sqrt(sum(every))
        if norm > limit:
            for w in weights:
                w.grad = w.grad * (limit / (norm + 1e-6))
        return torch.tensor(norm)


answers("check_sum_and_clip", name="a_class_that_counts_halves")(Clipper())


@answers("check_sum_and_clip")
def exchanged_and_clamped(weights, tied, row, ends, max_norm):
    if tied is not None:
        both = [torch.empty_like(tied.grad) for _ in range(2)]
        dist.all_gather(both, tied.grad, group=ends)
        tied.grad = both[0] + both[1]
    counted = [w.grad for w in weights if w is not tied or dist.get_rank(ends) == 0]
    squared = torch.stack([grad.square().sum() for grad in counted] or [torch.tensor(0.0)]).sum().reshape(1).double()
    dist.all_reduce(squared, group=row)
    norm = squared.sqrt()
    torch._foreach_mul_([w.grad for w in weights], (max_norm / norm).clamp(max=1.0).item())
    return norm


# --- hybrid_step ---


@answers("check_hybrid_step")
def average_of_weighted_means(stage, optimizer, images, labels, m, row, column):
    """Each replica's mean, weighted so that the average over the replicas is right; the sum in one vector."""
    d, p, s = dist.get_world_size(column), dist.get_world_size(row), dist.get_rank(row)
    ranks = dist.get_process_group_ranks(row)
    neighbours = ranks[s - 1] if s else None, ranks[s + 1] if s + 1 < p else None
    mine = torch.arange(len(labels))[dist.get_rank(column) :: d]
    loss_of_replica = 0.0
    done = []
    for part in mine.tensor_split(m):
        done.append((*forward_stage(stage, images[part], *neighbours), labels[part]))
    for x, y, t in reversed(done):
        loss = None
        if neighbours[1] is None:
            loss = F.cross_entropy(y, t) * len(t) / len(mine) * (len(mine) * d / len(labels))
            loss_of_replica += loss.detach() / d
        backward_stage(x, y, loss, *neighbours)
    flat = torch.cat([w.grad.flatten() for w in stage.parameters()])
    dist.all_reduce(flat, group=column)
    for w, part in zip(stage.parameters(), flat.split([w.numel() for w in stage.parameters()]), strict=True):
        w.grad.copy_(part.view_as(w) / d)
    optimizer.step()
    optimizer.zero_grad()
    return loss_of_replica


@answers("check_hybrid_step")
def cut_in_chunks(stage, optimizer, images, labels, m, row, column):
    """Micro-batches of which the last may be much smaller than the others."""
    rank, d, p, s = dist.get_rank(), dist.get_world_size(column), dist.get_world_size(row), dist.get_rank(row)
    neighbours = rank - 1 if s else None, rank + 1 if s + 1 < p else None
    x, t = (one.chunk(d)[dist.get_rank(column)].chunk(m) for one in (images, labels))
    kept = [forward_stage(stage, rows, *neighbours) for rows in x]
    optimizer.zero_grad()
    share = 0.0
    for (given, output), classes in zip(kept, t, strict=True):
        loss = F.cross_entropy(output, classes, reduction="sum") / len(labels) if s + 1 == p else None
        share += 0.0 if loss is None else loss.item()
        backward_stage(given, output, loss, *neighbours)
    for w in stage.parameters():
        dist.all_reduce(w.grad, group=column)
    optimizer.step()
    return share


class Hybrid1F1B:
    """1F1B along the row with messages of its own, counted inside the group; hooks sum in the last backward."""

    def __call__(self, stage, optimizer, images, labels, m, row, column):
        self.row, self.s, self.p = row, dist.get_rank(row), dist.get_world_size(row)
        self.column, self.stage, self.n = column, stage, len(labels)
        share = [part.tensor_split(dist.get_world_size(column))[dist.get_rank(column)] for part in (images, labels)]
        self.x, self.t = (part.tensor_split(m) for part in share)
        self.held, self.sends, self.total = [], [], 0.0
        optimizer.zero_grad(set_to_none=False)
        ahead = min(self.p - 1 - self.s, m)
        for i in range(ahead):
            self.forward(i)
        for i in range(m):
            if ahead + i < m:
                self.forward(ahead + i)
            self.backward(i, i == m - 1)
        for work, _ in self.sends:
            work.wait()
        optimizer.step()
        return self.total

    def send(self, tensor, stage):
        self.sends.append((dist.isend(tensor, group=self.row, group_dst=stage), tensor))

    def receive(self, tensor, stage):
        dist.irecv(tensor, group=self.row, group_src=stage).wait()
        return tensor

    def forward(self, i):
        x = self.x[i]
        if self.s:
            width = next(self.stage.parameters()).shape[1]
            x = self.receive(torch.empty(len(x), width, dtype=torch.float64), self.s - 1).requires_grad_()
        y = self.stage(x)
        if self.s < self.p - 1:
            self.send(y.detach(), self.s + 1)
        self.held.append((x, y))

    def backward(self, i, is_last):
        handles = []
        if is_last:
            handles = [
                w.register_post_accumulate_grad_hook(lambda w: dist.all_reduce(w.grad, group=self.column))
                for w in self.stage.parameters()
            ]
        x, y = self.held.pop(0)
        if self.s == self.p - 1:
            loss = F.cross_entropy(y, self.t[i], reduction="sum") / self.n
            self.total += float(loss.detach())
            loss.backward()
        else:
            y.backward(self.receive(torch.empty_like(y), self.s + 1))
        if self.s:
            self.send(x.grad, self.s - 1)
        for handle in handles:
            handle.remove()


answers("check_hybrid_step", name="one_f_one_b_with_hooks")(Hybrid1F1B())


def closure():
    def step(stage, optimizer, images, labels, m, row, column):
        replica, s = (dist.get_rank(group) for group in (column, row))
        before, after = (
            dist.get_global_rank(row, one) if 0 <= one < dist.get_world_size(row) else None for one in (s - 1, s + 1)
        )
        x, t = (part.chunk(1)[0].tensor_split(column.size())[replica].tensor_split(m) for part in (images, labels))
        kept = [forward_stage(stage, part, before, after) for part in x]
        losses = []
        for (given, output), classes in zip(kept, t, strict=True):
            if after is None:
                losses.append(F.nll_loss(output.log_softmax(1), classes, reduction="sum").div(len(labels)))
            backward_stage(given, output, losses[-1] if losses else None, before, after)
        works = [dist.all_reduce(w.grad, group=column, async_op=True) for w in stage.parameters()]
        [work.wait() for work in works]
        optimizer.step()
        optimizer.zero_grad()
        return sum(loss.item() for loss in losses) if losses else None

    return step


answers("check_hybrid_step", name="a_closure_with_asynchronous_sums")(closure())
