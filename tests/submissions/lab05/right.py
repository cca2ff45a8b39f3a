"""Right answers to lab 05 that look unlike the solution; each earns every point of its check.

The test runs this file as a notebook would its cells; `answers` marks a submission with the check it is for.
"""

# ruff: noqa: F821  # the test gives `answers`

import copy
import random
import threading

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

answers("check_predictions", name="words_and_expressions")(
    (1.5 * 4 * (6_500 + 5_050 + 510), 2.0, "Four times  as large", "DataParallel")
)


# --- epoch_rows and accuracy ---


def by_torchs_sampler(n_rows, epoch, rank, n_ranks):
    sampler = DistributedSampler(range(n_rows), n_ranks, rank, seed=7)
    sampler.set_epoch(epoch)
    return torch.tensor(list(sampler))


def gathered_and_put_in_order(right, n_rows, rank, n_ranks):
    everyone = [torch.empty_like(right, dtype=torch.int32) for _ in range(n_ranks)]
    dist.all_gather(everyone, right.int())
    return torch.stack(everyone, dim=1).flatten()[:n_rows].float().mean()


answers("check_rows", name="torchs_sampler_and_a_gather")((by_torchs_sampler, gathered_and_put_in_order))


def in_blocks(n_rows, epoch, rank, n_ranks):
    order = list(range(n_rows))
    random.Random(epoch * 31).shuffle(order)
    size = -(-n_rows // n_ranks)
    return [order[i % n_rows] for i in range(rank * size, (rank + 1) * size)]


def counted_on_rank_0(right, n_rows, rank, n_ranks):
    mine = len(range(rank, n_rows, n_ranks))
    count = torch.tensor([right[:mine].sum().item()])
    dist.reduce(count, dst=0)
    dist.broadcast(count, src=0)
    return count.item() / n_rows


answers("check_rows", name="blocks_and_a_reduce")((in_blocks, counted_on_rank_0))


# --- train_loop ---


@answers("check_loop")
def in_torchs_ddp(model, batches):
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    losses = torch.zeros(len(batches), dtype=torch.float64)
    for i, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        loss = F.cross_entropy(ddp(images.chunk(n_ranks)[rank]), labels.chunk(n_ranks)[rank])
        loss.backward()
        optimizer.step()
        losses[i] = loss.detach()
    dist.all_reduce(losses)
    return losses / n_ranks


@answers("check_loop")
def all_gradients_in_one_vector(model, batches):
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for images, labels in batches:
        part = slice(rank * len(images) // n_ranks, (rank + 1) * len(images) // n_ranks)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[part]), labels[part])
        loss.backward()
        vector = torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.parameters())])
        dist.all_reduce(vector)
        vector /= n_ranks
        losses.append(vector[0])
        pieces = vector[1:].split([p.numel() for p in model.parameters()])
        for p, piece in zip(model.parameters(), pieces, strict=True):
            p.grad = piece.view_as(p)
        optimizer.step()
    return losses


# --- data_parallel_step ---


@answers("check_data_parallel_step")
def deep_copies_whose_gradients_are_added(model, images, labels, devices):
    devices = devices[: len(images)]
    total = 0.0
    for x, y, device in zip(images.chunk(len(devices)), labels.chunk(len(devices)), devices, strict=False):
        replica = copy.deepcopy(model).to(device)
        loss = F.cross_entropy(replica(x.to(device)), y.to(device), reduction="sum") / len(images)
        loss.backward()
        total += loss.item()
        for ours, its in zip(model.parameters(), replica.parameters(), strict=True):
            ours.grad = its.grad.clone() if ours.grad is None else ours.grad + its.grad
    return total


@answers("check_data_parallel_step")
def in_threads_and_the_first_without_a_copy(model, images, labels, devices):
    pieces = [x for x in images.tensor_split(len(devices)) if len(x)]
    replicas = [model, *(copy.deepcopy(model).to(device) for device in devices[1 : len(pieces)])]
    outputs = [None] * len(pieces)

    def run(i):
        outputs[i] = replicas[i](pieces[i].to(devices[i]))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(pieces))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loss = F.cross_entropy(torch.cat([output.to(devices[0]) for output in outputs]), labels)
    loss.backward()
    for replica in replicas[1:]:
        for p, q in zip(model.parameters(), replica.parameters(), strict=True):
            p.grad += q.grad.to(devices[0])
    return loss.item()


# --- begin_alike and replica_step ---


def only_rank_0_counts(model):
    with torch.no_grad():
        for value in model.state_dict().values():
            if dist.get_rank():
                value.zero_()
            dist.all_reduce(value)


def weighted_means(model, optimizer, images, labels, n_rows):
    optimizer.zero_grad(set_to_none=False)
    loss = nn.CrossEntropyLoss()(model(images), labels)
    loss.backward()
    works = []
    for p in model.parameters():
        p.grad.mul_(len(images) / n_rows)
        works.append(dist.all_reduce(p.grad, async_op=True))
    parts = [torch.zeros((), dtype=loss.dtype) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, loss.detach() * len(images) / n_rows)
    for work in works:
        work.wait()
    optimizer.step()
    return float(sum(parts))


answers("check_replicas", name="start_by_a_sum_and_steps_by_weights")((only_rank_0_counts, weighted_means))


def wrapped_once(model):
    DistributedDataParallel(model)


def by_hooks(model, optimizer, images, labels, n_rows):
    hooks = [p.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad)) for p in model.parameters()]
    optimizer.zero_grad()
    loss = F.nll_loss(F.log_softmax(model(images), dim=1), labels, reduction="sum") / n_rows
    loss.backward()
    for hook in hooks:
        hook.remove()
    optimizer.step()
    dist.all_reduce(whole := loss.detach().clone())
    return whole


answers("check_replicas", name="a_wrapper_that_broadcasts_and_hooks")((wrapped_once, by_hooks))


def sent_by_rank_0(model):
    for tensor in model.state_dict().values():
        if dist.get_rank() == 0:
            for other in range(1, dist.get_world_size()):
                dist.send(tensor, other)
        else:
            dist.recv(tensor, 0)


def everyone_to_everyone(model, optimizer, images, labels, n_rows):
    rank, others = dist.get_rank(), [r for r in range(dist.get_world_size()) if r != dist.get_rank()]
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels, reduction="sum") / n_rows
    loss.backward()
    mine = torch.cat([loss.detach().view(1), *(p.grad.view(-1) for p in model.parameters())])
    parts = {r: torch.empty_like(mine) for r in others} | {rank: mine}
    works = [dist.isend(mine, r) for r in others] + [dist.irecv(parts[r], r) for r in others]
    for work in works:
        work.wait()
    whole = sum(parts[r] for r in sorted(parts))
    for p, part in zip(model.parameters(), whole[1:].split([p.numel() for p in model.parameters()]), strict=True):
        p.grad.copy_(part.view_as(p))
    optimizer.step()
    return whole[0]


answers("check_replicas", name="messages_instead_of_collectives")((sent_by_rank_0, everyone_to_everyone))


def state_as_objects(model):
    states = [model.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(states, src=0)
    model.load_state_dict(states[0])


class Step:
    """A step whose gradients all travel to rank 0 and back."""

    def __call__(self, model, optimizer, images, labels, n_rows):
        self.share = images.shape[0] / n_rows
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels) * self.share
        loss.backward()
        vector = nn.utils.parameters_to_vector(p.grad for p in model.parameters())
        vector = torch.cat([vector, loss.detach().reshape(1)])
        dist.reduce(vector, 0)
        dist.broadcast(vector, 0)
        nn.utils.vector_to_parameters(vector[:-1], [p.grad for p in model.parameters()])
        optimizer.step()
        return vector[-1]


answers("check_replicas", name="objects_and_a_class")((state_as_objects, Step()))


# --- Reducer ---


@answers("check_reducer")
class SlicesOfOneTensor:
    """All buckets are parts of one flat tensor, in which the gradients live; counters instead of sets."""

    def __init__(self, model, bucket_bytes):
        self.n_ranks, self.sync = dist.get_world_size(), True
        self.bucket_of, self.left, self.spans, self.place = {}, [], [], {}
        at, begin = 0, 0
        for p in list(model.parameters())[::-1]:
            self.place[p] = at
            at += p.numel()
            self.bucket_of[p] = len(self.spans)
            p.register_post_accumulate_grad_hook(self.arrived)
            if (at - begin) * p.element_size() >= bucket_bytes:
                self.spans.append((begin, at))
                begin = at
        if at > begin:
            self.spans.append((begin, at))
        self.flat = torch.zeros(at, dtype=torch.float64)
        self.reset()

    def reset(self):
        self.left = [sum(b == i for b in self.bucket_of.values()) for i in range(len(self.spans))]
        self.works, self.seen = [], set()

    def arrived(self, p):
        if not self.sync:
            return
        self.left[self.bucket_of[p]] -= 1
        while len(self.works) < len(self.spans) and self.left[len(self.works)] == 0:
            self.launch()

    def launch(self):
        number = len(self.works)
        begin, end = self.spans[number]
        self.flat[begin:end] = 0
        for p, at in self.place.items():
            if self.bucket_of[p] == number and p.grad is not None:
                self.flat[at : at + p.numel()] = p.grad.flatten() / self.n_ranks
        self.works.append(dist.all_reduce(self.flat[begin:end], async_op=True))

    def finish(self):
        for _ in range(len(self.spans) - len(self.works)):
            self.launch()
        for work in self.works:
            work.wait()
        for p, at in self.place.items():
            p.grad = self.flat[at : at + p.numel()].view(p.shape).clone()
        self.reset()


@answers("check_reducer")
def closures_and_futures(model, bucket_bytes):
    buckets, parameters = [], list(reversed(dict(model.named_parameters()).values()))
    while parameters:
        buckets.append([])
        while parameters and sum(p.numel() * p.element_size() for p in buckets[-1]) < bucket_bytes:
            buckets[-1].append(parameters.pop(0))
    ready, flying = set(), []

    class Handle:
        def finish(self):
            while len(flying) < len(buckets):
                start()
            for bucket, future in zip(buckets, flying, strict=True):
                flat = future.wait()[0] / dist.get_world_size()
                for p in bucket:
                    p.grad, flat = flat[: p.numel()].reshape(p.shape).clone(), flat[p.numel() :]
            ready.clear()
            flying.clear()

    handle = Handle()

    def start():
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in buckets[len(flying)]]
        flying.append(dist.all_reduce(torch.cat([g.reshape(-1) for g in grads]), async_op=True).get_future())

    def hook(p):
        if handle.sync:
            ready.add(p)
            while len(flying) < len(buckets) and ready >= set(buckets[len(flying)]):
                start()

    for bucket in buckets:
        for p in bucket:
            p.register_post_accumulate_grad_hook(hook)
    return handle
