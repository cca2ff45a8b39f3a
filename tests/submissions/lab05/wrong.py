"""Wrong answers to lab 05, each with the mistake by which its check must recognise it.

The test runs this file as a notebook would its cells; `fails` marks a submission with its check, the mistake's code,
and words that the report must hold. A code of None stands for a mistake that is not in the catalogue.
"""

# ruff: noqa: F821  # the test gives `fails`

import copy
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

# --- predictions ---

fails("check_predictions", None, "too small", "too large", name="one_way_and_every_parameter")(
    (36_180, 6, "twice as large", "both")
)
fails("check_predictions", "D49", "too large", name="every_microbatch_counted")((289_440, 8, "as large", "ddp"))

# --- epoch_rows and accuracy ---


def right_rows(n_rows, epoch, rank, n_ranks):
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(epoch)).tolist()
    return (order + order[: -n_rows % n_ranks])[rank::n_ranks]


def right_accuracy(right, n_rows, rank, n_ranks):
    count = right[: len(range(rank, n_rows, n_ranks))].sum()
    dist.all_reduce(count)
    return count / n_rows


def rows(code, *words):
    def keep(function):
        fails("check_rows", code, *words, name=function.__name__)((function, right_accuracy))

    return keep


def metric(code, *words):
    def keep(function):
        fails("check_rows", code, *words, name=function.__name__)((right_rows, function))

    return keep


@rows("D56", "every rank gets the same")
def no_sampler(n_rows, epoch, rank, n_ranks):
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(epoch))


@rows("D56", "every epoch")
def no_set_epoch(n_rows, epoch, rank, n_ranks):
    return right_rows(n_rows, 0, rank, n_ranks)


@rows("D56", "never another one")
def shuffles_its_own_share(n_rows, epoch, rank, n_ranks):
    order = torch.randperm(-(-n_rows // n_ranks), generator=torch.Generator().manual_seed(epoch))
    return ((order * n_ranks + rank) % n_rows).tolist()


@rows(None, "left out")
def each_rank_its_own_shuffle(n_rows, epoch, rank, n_ranks):
    order = torch.randperm(n_rows).tolist()
    return (order + order[: -n_rows % n_ranks])[rank::n_ranks]


@rows(None, "left out", "of 9 rows")
def remainder_dropped(n_rows, epoch, rank, n_ranks):
    return right_rows(n_rows // n_ranks * n_ranks, epoch, rank, n_ranks)


@rows(None, "not equally many")
def shares_of_unequal_size(n_rows, epoch, rank, n_ranks):
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(epoch)).tolist()
    return order[rank::n_ranks]


@rows(None, "3 are enough")
def one_row_more_than_needed(n_rows, epoch, rank, n_ranks):
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(epoch)).tolist()
    size = -(-n_rows // n_ranks) + 1
    return [(order + order)[rank + i * n_ranks] for i in range(size)]


@rows(None, "go from 0 to 11")
def counts_from_one(n_rows, epoch, rank, n_ranks):
    return [row + 1 for row in right_rows(n_rows, epoch, rank, n_ranks)]


@rows(None, "must return a list")
def returns_a_number(n_rows, epoch, rank, n_ranks):
    return n_rows // n_ranks


@metric("D57", "instead of 0.6")
def padding_counted(right, n_rows, rank, n_ranks):
    counts = torch.tensor([right.sum().item(), len(right)])
    dist.all_reduce(counts)
    return counts[0] / counts[1]


@metric("D57", "instead of 0.6")
def padding_counted_in_the_numerator(right, n_rows, rank, n_ranks):
    count = right.sum()
    dist.all_reduce(count)
    return count / n_rows


@metric(None, "instead of 0.6")
def mean_of_the_ranks_accuracies(right, n_rows, rank, n_ranks):
    mean = right[: len(range(rank, n_rows, n_ranks))].double().mean()
    dist.all_reduce(mean)
    return mean / n_ranks


@metric(None, "rank 0", "instead of 0.75")
def its_own_rows_alone(right, n_rows, rank, n_ranks):
    return right[: len(range(rank, n_rows, n_ranks))].double().mean()


@metric(None, "deadlock")
def reduces_on_rank_0_alone(right, n_rows, rank, n_ranks):
    count = right[: len(range(rank, n_rows, n_ranks))].sum()
    if rank == 0:
        dist.all_reduce(count)
    return count / n_rows


@rows(None, "not equally many", "of 9 rows")
def repeats_as_many_as_are_left_over(n_rows, epoch, rank, n_ranks):
    order = right_rows(n_rows, epoch, 0, 1)
    return (order + order[: n_rows % n_ranks])[rank::n_ranks]


@metric(None, "rank 1", "instead of 0.75")
def known_on_rank_0_alone(right, n_rows, rank, n_ranks):
    count = right[: len(range(rank, n_rows, n_ranks))].sum()
    dist.reduce(count, dst=0)
    return count / n_rows


@metric(None, "instead of 0.75")
def booleans_added_up(right, n_rows, rank, n_ranks):
    right = right & (rank + torch.arange(len(right)) * n_ranks < n_rows)
    dist.all_reduce(right)
    return right.sum() / n_rows


@metric(None, "75 instead of 0.75")
def in_per_cent(right, n_rows, rank, n_ranks):
    return 100 * right_accuracy(right, n_rows, rank, n_ranks)


@metric(None, "instead of 0.6")
def repeats_sought_on_the_last_rank(right, n_rows, rank, n_ranks):
    kept = right[:-1] if rank == n_ranks - 1 and n_rows % n_ranks else right
    dist.all_reduce(counts := torch.tensor([kept.sum(), len(kept)]))
    return counts[0] / counts[1]


@metric(None, "nobody waits for its asynchronous all_reduce")
def sum_not_waited_for(right, n_rows, rank, n_ranks):
    count = right[: len(range(rank, n_rows, n_ranks))].sum()
    dist.all_reduce(count, async_op=True)
    return count / n_rows


@metric("D51", "different tensors")
def gathers_what_differs_in_length(right, n_rows, rank, n_ranks):
    mine = right[: len(range(rank, n_rows, n_ranks))].int()
    everyone = [torch.empty_like(mine) for _ in range(n_ranks)]
    dist.all_gather(everyone, mine)
    return torch.cat(everyone).float().mean()


# --- train_loop ---


def mean_loss(loss):
    loss = loss.detach() / dist.get_world_size()
    dist.all_reduce(loss)
    return loss.item()


def average(tensors, divide=True):
    for tensor in tensors:
        dist.all_reduce(tensor)
        if divide:
            tensor /= dist.get_world_size()


def loop_with(*, rank=dist.get_rank, wrap=None, before=None, gradients=None, after=None, tell=mean_loss):
    def train_loop(model, batches):
        n_ranks = dist.get_world_size()
        call = wrap(model) if wrap else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for images, labels in batches:
            x, t = images.tensor_split(n_ranks)[rank()], labels.tensor_split(n_ranks)[rank()]
            optimizer.zero_grad()
            loss = F.cross_entropy(call(x), t)
            if before:
                before(loss)
            loss.backward()
            if gradients:
                gradients(model)
            optimizer.step()
            if after:
                after(model)
            losses.append(tell(loss))
        return losses

    return train_loop


def loop(name, code, *words, **changes):
    fails("check_loop", code, *words, name=f"loop_{name}")(loop_with(**changes))


def grads(model, **options):
    average([p.grad for p in model.parameters()], **options)


def thirds(model):
    for p in model.parameters():
        p.grad /= dist.get_world_size() ** 2


loop("never_averages", None, "drifted apart", tell=float)
loop("wrapped_and_passed_by", "D55", "drifted apart", wrap=lambda model: DistributedDataParallel(model).module)
loop("wrapped_with_the_rank_fixed", None, "rank 0's rows", rank=lambda: 0, wrap=DistributedDataParallel)
loop("averages_the_losses_alone", "D54", "drifted apart", before=lambda loss: average([loss.data]))
loop("averages_after_the_step", "D47", "drifted apart", after=grads)
loop("sums_the_gradients", "D44", "sum of the ranks", gradients=lambda model: grads(model, divide=False))
loop("clears_too_late", None, "what they were before", gradients=lambda model: model.zero_grad())
loop(
    "steps_with_rank_0s_gradient",
    None,
    "rank 0's rows",
    gradients=lambda m: [dist.broadcast(p.grad, 0) for p in m.parameters()],
)
loop(
    "averages_twice",
    None,
    "by 3 once more",
    gradients=lambda model: (grads(model), grads(model, divide=False), thirds(model)),
)
loop("does_not_wait", None, "nobody waits", gradients=lambda model: not_waited_for(model))
loop("tells_its_own_loss", None, "that of its own rows", gradients=grads, tell=lambda loss: loss.item())
loop("tells_a_sum_of_losses", None, "the sum of the ranks'", gradients=grads, tell=lambda loss: 3 * mean_loss(loss))


@fails("check_loop", "D56", "all rows of every batch")
def loop_over_everything(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for images, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@fails("check_loop", None, "nothing")
def loop_returns_nothing(model, batches):
    loop_with(gradients=grads)(model, batches)


# --- data_parallel_step ---


def pieces_of(images, labels, devices):
    n = min(len(devices), len(images))
    return list(zip(images.tensor_split(n), labels.tensor_split(n), devices, strict=False))


def replica_of(model, device):
    return {name: p.to(device, copy=True) for name, p in model.named_parameters()}


def outputs_of(model, images, labels, devices):
    for x, _, device in pieces_of(images, labels, devices):
        yield torch.func.functional_call(model, replica_of(model, device), (x,))


@fails("check_data_parallel_step", "D45", "7 rows")
def mean_of_the_pieces_means(model, images, labels, devices):
    pieces = pieces_of(images, labels, devices)
    losses = [
        F.cross_entropy(torch.func.functional_call(model, replica_of(model, device), (x,)), y)
        for x, y, device in pieces
    ]
    loss = sum(losses) / len(losses)
    loss.backward()
    return loss


@fails("check_data_parallel_step", "D44", "exactly 2 times")
def sum_of_the_pieces_means(model, images, labels, devices):
    total = 0.0
    for x, y, device in pieces_of(images, labels, devices):
        loss = F.cross_entropy(torch.func.functional_call(model, replica_of(model, device), (x,)), y)
        loss.backward()
        total += loss.item()
    return total


@fails("check_data_parallel_step", None, "missing")
def gradients_stay_on_the_copies(model, images, labels, devices):
    outputs = [copy.deepcopy(model).to(device)(x) for x, _, device in pieces_of(images, labels, devices)]
    loss = F.cross_entropy(torch.cat(outputs), labels)
    loss.backward()
    return loss


@fails("check_data_parallel_step", None, "2 devices and 8 rows")
def gradients_of_the_first_alone(model, images, labels, devices):
    replicas = [model, *(copy.deepcopy(model) for _ in devices[1:])]
    outputs = [replica(x) for replica, (x, _, _) in zip(replicas, pieces_of(images, labels, devices), strict=False)]
    loss = F.cross_entropy(torch.cat(outputs), labels)
    loss.backward()
    return loss


@fails("check_data_parallel_step", None, "one set of parameters")
def never_copied(model, images, labels, devices):
    outputs = [model.to(device)(x.to(device)) for x, _, device in pieces_of(images, labels, devices)]
    loss = F.cross_entropy(torch.cat(outputs), labels)
    loss.backward()
    return loss


@fails("check_data_parallel_step", None, "called 1 time")
def torchs_own_without_gpus(model, images, labels, devices):
    loss = F.cross_entropy(torch.nn.DataParallel(model)(images), labels)
    loss.backward()
    return loss


@fails("check_data_parallel_step", None, "without any rows")
def empty_pieces_too(model, images, labels, devices):
    parts = zip(images.tensor_split(len(devices)), devices, strict=True)
    outputs = [torch.func.functional_call(model, replica_of(model, device), (x,)) for x, device in parts]
    loss = F.cross_entropy(torch.cat(outputs), labels)
    loss.backward()
    return loss


@fails("check_data_parallel_step", None, "differs")
def dealt_out_like_cards(model, images, labels, devices):
    pieces = [images[i :: len(devices)] for i in range(len(devices))]
    outputs = [
        torch.func.functional_call(model, replica_of(model, device), (x,))
        for x, device in zip(pieces, devices, strict=True)
    ]
    loss = F.cross_entropy(torch.cat(outputs), labels)
    loss.backward()
    return loss


@fails("check_data_parallel_step", None, "exactly 0.5 times")
def mean_over_the_copies(model, images, labels, devices):
    loss = F.cross_entropy(torch.cat(list(outputs_of(model, images, labels, devices))), labels)
    (loss / min(len(devices), len(images))).backward()
    return loss


@fails("check_data_parallel_step", None, "others than before")
def takes_the_step_too(model, images, labels, devices):
    loss = F.cross_entropy(torch.cat(list(outputs_of(model, images, labels, devices))), labels)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return loss


@fails("check_data_parallel_step", None, "no backward has run")
def computes_the_loss_alone(model, images, labels, devices):
    return F.cross_entropy(torch.cat(list(outputs_of(model, images, labels, devices))), labels)


@fails("check_data_parallel_step", None, "your function: ZeroDivisionError", "line")
def raises_an_error(model, images, labels, devices):
    return len(images) // (len(devices) - 2)


@fails("check_data_parallel_step", None, "nothing")
def the_loss_is_lost(model, images, labels, devices):
    F.cross_entropy(torch.cat(list(outputs_of(model, images, labels, devices))), labels).backward()


# --- begin_alike and replica_step ---


def alike(model):
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)


def step_with(*, scale=lambda n, n_rows: n / n_rows, before=None, gradients=None, after=None, clear=True, tell=None):
    def replica_step(model, optimizer, images, labels, n_rows):
        if clear:
            optimizer.zero_grad()
        share = len(images) / n_rows
        loss = F.cross_entropy(model(images), labels)
        if before:
            before(model, loss)
        (loss * scale(len(images), n_rows)).backward()
        if gradients:
            gradients(model)
        optimizer.step()
        if after:
            after(model)
        if tell:
            return tell(loss)
        total = loss.detach() * share
        dist.all_reduce(total)
        return total

    return replica_step


def summed(model):
    for p in model.parameters():
        dist.all_reduce(p.grad)


def step(name, code, *words, gradients=summed, **changes):
    fails("check_replicas", code, *words, name=f"step_{name}")((alike, step_with(gradients=gradients, **changes)))


def begin(code, *words):
    def keep(function):
        fails("check_replicas", code, *words, name=function.__name__)((function, step_with(gradients=summed)))

    return keep


@begin("D42", "first.weight is its own")
def no_broadcast(model):
    pass


@begin("D43", "buffer mean is its own")
def parameters_alone(model):
    for parameter in model.parameters():
        dist.broadcast(parameter.detach(), src=0)


@begin(None, "neither its own nor rank 0's")
def begins_with_the_mean(model):
    average([p.detach() for p in model.parameters()])


@begin(None, "different roots")
def each_rank_hands_out(model):
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=dist.get_rank())


@begin(None, "different collectives")
def broadcast_on_one_rank_alone(model):
    if dist.get_rank() == 1:
        alike(model)


@begin(None, "deadlock", "waits in recv")
def received_and_never_sent(model):
    for parameter in model.parameters():
        if dist.get_rank():
            dist.recv(parameter.detach(), src=0)
        else:
            dist.recv(parameter.detach(), src=1)


def not_waited_for(model):
    for p in model.parameters():
        dist.all_reduce(p.grad, async_op=True)


def parameters_averaged(model):
    average([p.detach() for p in model.parameters()])


step("sums_the_means", "D44", "exactly 2 times", scale=lambda n, n_rows: 1.0)
step("means_of_unequal_shards", "D45", "shards of 5, 3, 1", scale=lambda n, n_rows: 1 / dist.get_world_size())
step("averages_the_parameters", "D46", "own shard", scale=lambda n, n_rows: 1.0, gradients=parameters_averaged)
step("averages_parameters_late", "D46", "own shard", scale=lambda n, r: 1.0, gradients=None, after=parameters_averaged)
step("does_not_wait", "D47", "had been waited for", gradients=not_waited_for)
step("averages_before_the_backward", "D47", "NoneType", before=lambda model, loss: summed(model), gradients=None)
step("averages_after_the_step", "D47", "own shard", gradients=None, after=summed)
step("reduces_the_loss", "D54", "own shard", before=lambda model, loss: dist.all_reduce(loss.data), gradients=None)
step("never_clears", "G22", "step 1", clear=False)
step("scaled_twice", None, "0.5 times", scale=lambda n, n_rows: n / n_rows / dist.get_world_size())
step("tells_its_own_loss", None, "returned a loss", tell=lambda loss: loss.item())


def computes_and_returns(model, optimizer, images, labels, n_rows):
    loss = F.cross_entropy(model(images), labels) * len(images) / n_rows
    loss.backward()
    summed(model)
    dist.all_reduce(total := loss.detach())
    return total


fails("check_replicas", None, "no steps for one batch", name="step_never_taken")((alike, computes_and_returns))
fails("check_replicas", None, "took 2 steps", name="step_taken_twice")(
    (alike, lambda m, o, x, t, n: (step_with(gradients=summed)(m, o, x, t, n), o.step())[0])
)


# --- Reducer ---


class Base:
    """Right, with places to go wrong."""

    divide = True

    def __init__(self, model, bucket_bytes):
        self.sync, self.complete, self.sent, self.now = True, set(), {}, {}
        self.buckets = self.fill(self.parameters(model), bucket_bytes)
        for bucket in self.buckets:
            for p in bucket:
                self.listen(p)

    def parameters(self, model):
        return list(model.parameters())[::-1]

    def fill(self, parameters, bucket_bytes):
        buckets, size = [[]], 0
        for p in parameters:
            if size >= bucket_bytes:
                buckets.append([])
                size = 0
            buckets[-1].append(p)
            size += p.numel() * p.element_size()
        return buckets

    def listen(self, p):
        p.register_post_accumulate_grad_hook(self.ready)

    def ready(self, p):
        if self.sync:
            self.complete.add(p)
            self.start_full()

    def start_full(self):
        while len(self.sent) < len(self.buckets) and self.complete.issuperset(self.buckets[len(self.sent)]):
            self.send(len(self.sent))

    def gradient(self, p):
        return torch.zeros_like(p) if p.grad is None else p.grad

    def send(self, i):
        flat = torch.cat([self.gradient(p).flatten() for p in self.buckets[i]])
        if self.divide:
            flat /= dist.get_world_size()
        self.sent[i] = flat, dist.all_reduce(flat, async_op=True)

    def send_the_rest(self):
        for i in range(len(self.buckets)):
            if i not in self.sent:
                self.send(i)

    def finish(self):
        self.send_the_rest()
        for i, (flat, work) in self.sent.items():
            work.wait()
            self.hand_back(self.buckets[i], flat)
        self.complete.clear()
        self.sent.clear()

    def hand_back(self, bucket, flat):
        for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad = part.view_as(p).clone()


def reducer(code, *words):
    return fails("check_reducer", code, *words)


@reducer("D44", "exactly 2 times")
class SumsUp(Base):
    divide = False


@reducer(None, "exactly 0.5 times")
class DividesTwice(Base):
    def hand_back(self, bucket, flat):
        super().hand_back(bucket, flat / dist.get_world_size())


@reducer(None, "in step 1")
class RemembersTheStepBefore(Base):
    def send_the_rest(self):
        super().send_the_rest()
        self.complete = Kept(self.complete)


class Kept(set):
    """A set that nobody can clear."""

    def clear(self):
        pass


@reducer(None, "in step 0", "differs")
class UnpacksFromBehind(Base):
    def hand_back(self, bucket, flat):
        super().hand_back(bucket[::-1], flat)


@reducer(None, "in step 0", "differs")
class AddsTheMean(Base):
    def hand_back(self, bucket, flat):
        own = [self.gradient(p) for p in bucket]
        super().hand_back(bucket, flat)
        for p, grad in zip(bucket, own, strict=True):
            p.grad += grad


@reducer("D47", "had been waited for")
class DoesNotWait(Base):
    def finish(self):
        self.send_the_rest()
        for i, (flat, _) in self.sent.items():
            self.hand_back(self.buckets[i], flat)
        self.complete.clear()
        self.sent.clear()


@reducer("D47", "zero everywhere")
class StartsABucketWithItsFirstGradient(Base):
    def start_full(self):
        while len(self.sent) < len(self.buckets) and self.complete.intersection(self.buckets[len(self.sent)]):
            self.send(len(self.sent))


@reducer("D48", "2 micro-batches each")
class TakesTheHooksGradient(Base):
    def listen(self, p):
        def note(gradient):
            self.now[p] = gradient
            self.ready(p)

        p.register_hook(note)

    def gradient(self, p):
        return self.now[p] if p in self.now else super().gradient(p)

    def finish(self):
        super().finish()
        self.now.clear()


@reducer("D49", "began before the last")
class ReducesEveryMicrobatch(Base):
    def ready(self, p):
        self.complete.add(p)
        self.start_full()


@reducer("D50", "opposite orders")
class SendsWhatIsFull(Base):
    def start_full(self):
        for i, bucket in enumerate(self.buckets):
            if i not in self.sent and self.complete.issuperset(bucket):
                self.send(i)

    def finish(self):
        self.send_the_rest()
        super().finish()


@reducer("D51", "different tensors")
class SendsWhatHasAGradient(Base):
    def send(self, i):
        self.buckets[i] = [p for p in self.buckets[i] if p.grad is not None]
        flat = torch.cat([torch.zeros(0, dtype=torch.float64), *(p.grad.flatten() for p in self.buckets[i])])
        flat /= dist.get_world_size()
        self.sent[i] = flat, dist.all_reduce(flat, async_op=True)


@reducer("D52", "deadlock")
class ForgetsTheUnused(Base):
    def send_the_rest(self):
        pass


@reducer("D52", "missing")
class LeavesTheUnusedWithoutAGradient(Base):
    def hand_back(self, bucket, flat):
        for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            if p.grad is not None:
                p.grad = part.view_as(p).clone()


@reducer("D53", "pieces")
class CountsATiedWeightTwice(Base):
    def parameters(self, model):
        return [p for layer in list(model.children())[::-1] for p in (layer.bias, layer.weight)]


@reducer("D53", "0.5 times")
class DividesATiedWeightTwice(Base):
    divide = False

    def parameters(self, model):
        self.layers = list(model.children())
        return super().parameters(model)

    def send(self, i):
        for layer in self.layers:
            for p in (layer.bias, layer.weight):
                if p.grad is not None and any(p is one for one in self.buckets[i]):
                    p.grad /= dist.get_world_size()
        super().send(i)


@reducer(None, "differs")
class NeverHandsBack(Base):
    def hand_back(self, bucket, flat):
        pass


@reducer(None, "differs")
class ForgetsTheLastBucket(Base):
    def fill(self, parameters, bucket_bytes):
        return [b for b in super().fill(parameters, bucket_bytes) if sum(map(self.size, b)) >= bucket_bytes]

    def size(self, p):
        return p.numel() * p.element_size()


@reducer(None, "pieces of 80, 640")
class OneForEachParameter(Base):
    def fill(self, parameters, bucket_bytes):
        return super().fill(parameters, 1)


@reducer(None, "1 piece")
class OneForAll(Base):
    def fill(self, parameters, bucket_bytes):
        return super().fill(parameters, 10**9)


class Done:
    """Stands for the work of an all-reduce that is over."""

    def wait(self):
        pass


@reducer(None, "rank 0", "rank 1 waits in recv", "before rank 0's is over")
class BlocksInTheHook(Base):
    def send(self, i):
        flat = torch.cat([self.gradient(p).flatten() for p in self.buckets[i]]) / dist.get_world_size()
        dist.all_reduce(flat)
        self.sent[i] = flat, Done()


@reducer(None, "rank 1 waits in recv")
class WaitsInTheHook(Base):
    def start_full(self):
        super().start_full()
        for _, work in self.sent.values():
            work.wait()


@reducer(None, "no all-reduce had begun")
class StartsAtTheEnd(Base):
    def start_full(self):
        pass


@reducer(None, "no all-reduce had begun")
class FirstLayersFirst(Base):
    def fill(self, parameters, bucket_bytes):
        return super().fill(parameters, bucket_bytes)[::-1]


@reducer(None, "deadlock")
class OnlyRank0Sends(Base):
    def finish(self):
        if dist.get_rank() == 0:
            super().finish()

    def ready(self, p):
        if dist.get_rank() == 0:
            super().ready(p)


@reducer(None, "without a method `finish`")
class NoFinish:
    def __init__(self, model, bucket_bytes):
        pass


@reducer(None, "not come to its end")
class PollsForEver(Base):
    def finish(self):
        while True:
            time.sleep(0.01)


@fails("check_reducer", None, "takes")
def one_argument(model):
    return None
