"""Right answers to lab 01 that look unlike the solution; each earns every point of its check.

The test runs this file as a notebook would its cells; `answers` marks a submission with the check it is for.
"""

# ruff: noqa: F821  # the test gives `answers`

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


@answers("check_forward_stage")
def isend_and_irecv(stage, batch, shape, rank, n_ranks):
    x = batch
    if rank:
        x = torch.zeros(*shape, dtype=torch.double)
        dist.irecv(x, rank - 1).wait()
        x.requires_grad = True
    y = stage(x)
    if rank + 1 != n_ranks:
        dist.isend(y.data, rank + 1).wait()
    return [x, y]


@answers("check_forward_stage")
def batched_messages_with_tags(stage, batch, shape, rank, n_ranks):
    def exchange(op, tensor, peer):
        for work in dist.batch_isend_irecv([dist.P2POp(op, tensor, peer)]):
            work.wait()

    x = batch
    if rank > 0:
        x = torch.empty(shape, dtype=batch.dtype if batch is not None else torch.float64, requires_grad=True)
        exchange(dist.irecv, x, rank - 1)
    y = stage(x)
    if rank < n_ranks - 1:
        exchange(dist.isend, y.detach().clone(), rank + 1)
    return x, y


@answers("check_forward_stage")
def from_any_sender_with_a_tag(module, inputs, size, me, world):
    if me == 0:
        inputs.requires_grad_()
    else:
        inputs = next(module.parameters()).new_empty(size)
        dist.recv(inputs, tag=7)
        inputs.requires_grad_()
    result = module(inputs)
    if me < world - 1:
        with torch.no_grad():
            dist.send(result, me + 1, tag=7)
    return inputs, result


@answers("check_forward_stage")
def a_graph_node_that_retains_its_gradient(stage, batch, shape, rank, n_ranks):
    received = batch
    if rank > 0:
        received = torch.empty(shape, dtype=torch.float64)
        dist.recv(received, rank - 1)
    stage_input = received.requires_grad_() * 1.0
    stage_input.retain_grad()
    output = stage_input
    for layer in stage:
        output = layer(output)
    if rank < n_ranks - 1:
        dist.send(output.detach(), rank + 1)
    return stage_input, output


class Forward:
    def __init__(self, dtype):
        self.dtype = dtype

    def __call__(self, stage, batch, shape, rank, n_ranks):
        x = self.receive(shape, rank - 1) if rank else batch
        y = stage(x)
        if rank < n_ranks - 1:
            dist.send(y.detach(), rank + 1)
        return x, y

    def receive(self, shape, source):
        x = torch.empty(shape, dtype=self.dtype)
        dist.recv(x, source)
        return x.requires_grad_()


answers("check_forward_stage", name="an_object_of_a_class")(Forward(torch.float64))
answers("check_forward_stage", name="a_bound_method")(Forward(torch.float64).__call__)


@answers("check_forward_stage")
def sends_the_shape_first(stage, batch, shape, rank, n_ranks):
    x = batch
    if rank > 0:
        sizes = torch.empty(2, dtype=torch.int64)
        dist.recv(sizes, rank - 1)
        x = torch.empty(*sizes.tolist(), dtype=torch.float64)
        dist.recv(x, rank - 1)
        x.requires_grad_()
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(torch.tensor(y.shape), rank + 1)
        dist.send(y.detach(), rank + 1)
    return x, y


@answers("check_backward_stage")
def torch_autograd_backward(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        torch.autograd.backward(loss)
    else:
        grad = torch.empty(output.shape, dtype=output.dtype)
        dist.irecv(grad, rank + 1, tag=3).wait()
        torch.autograd.backward([output], [grad])
    if rank:
        dist.isend(stage_input.grad, rank - 1, tag=3).wait()


@answers("check_backward_stage")
def a_weighted_sum(x, y, loss, r, p):
    if r + 1 < p:
        grad = torch.empty_like(y)
        dist.recv(grad, r + 1)
        loss = (y * grad).sum()
    loss.backward()
    if r > 0:
        dist.send(x.grad.clone(), r - 1)


@answers("check_backward_stage")
def a_hook_sends_before_the_backward_is_over(stage_input, output, loss, rank, n_ranks):
    works = []
    if rank > 0:
        stage_input.register_hook(lambda grad: works.append(dist.isend(grad.clone(), rank - 1)))
    if rank < n_ranks - 1:
        grad = torch.empty_like(output)
        dist.recv(grad, rank + 1)
        output.backward(gradient=grad)
    else:
        loss.backward()
    for work in works:
        work.wait()


@answers("check_backward_stage")
def torch_autograd_grad(stage_input, output, loss, rank, n_ranks):
    root, grad = loss, None
    if rank < n_ranks - 1:
        root, grad = output, torch.empty_like(output)
        dist.recv(grad, rank + 1)
    leaves, nodes = [], [output.grad_fn]
    while nodes:  # the parameters, found by the graph
        node = nodes.pop()
        if node is not None:
            nodes += [parent for parent, _ in node.next_functions]
            if hasattr(node, "variable") and not any(node.variable is leaf for leaf in leaves):
                leaves.append(node.variable)
    for leaf, value in zip(leaves, torch.autograd.grad(root, leaves, grad), strict=True):
        leaf.grad = value
    if rank > 0:
        dist.send(stage_input.grad, rank - 1)


@answers("check_train_step")
def all_by_hand(stage, optimizer, batch, targets, shape, rank, n_ranks):
    first, last = rank == 0, rank == n_ranks - 1
    x = batch if first else torch.empty(shape, dtype=torch.float64)
    if not first:
        dist.recv(x, rank - 1)
        x.requires_grad_(True)
    y = stage(x)
    optimizer.zero_grad(set_to_none=False)
    if last:
        loss = F.nll_loss(F.log_softmax(y, dim=1), targets)
        loss.backward()
    else:
        dist.send(y.detach(), rank + 1)
        grad = torch.empty_like(y)
        dist.recv(grad, rank + 1)
        y.backward(grad)
    if not first:
        dist.send(x.grad, rank - 1)
    optimizer.step()
    return loss.item() if last else "nothing"


@answers("check_train_step")
def clears_at_the_end_and_tells_everybody_the_loss(stage, optimizer, batch, targets, shape, rank, n_ranks):
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.CrossEntropyLoss()(output, targets) if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.step()
    optimizer.zero_grad()
    told = torch.zeros(1, dtype=torch.float64) if loss is None else loss.detach().reshape(1)
    dist.broadcast(told, n_ranks - 1)
    return told


def forward_stage(*args):
    raise NotImplementedError("the check of task 6 brings its own")


backward_stage = forward_stage


@answers("check_first_rank_step")
def gradient_by_grad(stage, optimizer, batch):
    output = stage(batch)
    dist.isend(output.detach(), 1).wait()
    grad = torch.empty_like(output)
    dist.recv(grad, 1)
    for parameter, value in zip(
        stage.parameters(), torch.autograd.grad(output, list(stage.parameters()), grad), strict=True
    ):
        parameter.grad = value
    optimizer.step()


@answers("check_first_rank_step")
def backward_from_zeros_first(stage, optimizer, batch):
    optimizer.zero_grad()
    output = stage(batch)
    dist.send(output.detach(), 1)
    grad = torch.zeros_like(output)
    output.backward(grad, retain_graph=True)  # for nothing, and to no harm
    dist.recv(grad, 1)
    output.backward(grad)
    optimizer.step()
