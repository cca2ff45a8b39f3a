"""Wrong answers to lab 01, each with the mistake by which its check must recognise it.

The test runs this file as a notebook would its cells; `fails` marks a submission with its check, the mistake's code,
and words that the report must hold. A code of None stands for a mistake that is not in the catalogue.
"""

# ruff: noqa: F821  # the test gives `fails`

import os
import sys

import torch
import torch.distributed as dist
from torch import nn


def receive(shape, source, dtype=torch.float64):
    x = torch.empty(shape, dtype=dtype)
    dist.recv(x, source)
    return x


# --- the schedule ---

fails("check_schedule", None, "Rank 0 lacks 0RECV_B0, 0SEND_F0", name="leaves_all_messages_out")(
    [["0F0", "0B0"], ["1F0", "1B0"], ["2F0", "2B0"]]
)

# --- forward_stage ---


@fails("check_forward_stage", "N01", "rank 1", "no gradient")
def does_not_ask_for_the_gradient(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N02", "rank 1", "no gradient")
def asks_on_a_copy_and_returns_the_buffer(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.clone().requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N02", "rank 1")
def asks_on_the_buffer_and_returns_a_node(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1).requires_grad_().clone() if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N02", "rank 1")
def asks_after_the_stage_ran(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x)
    x.requires_grad_()
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N05", "from rank 1 to rank 0", "send(to rank 0")
def wraps_around_at_the_last(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1).requires_grad_() if rank else batch
    y = stage(x)
    dist.send(y.detach(), (rank + 1) % n_ranks)
    return x, y


@fails("check_forward_stage", "N05", "from rank 1 to rank 0")
def everybody_receives_in_a_ring(stage, batch, shape, rank, n_ranks):
    x = receive(shape, (rank - 1) % n_ranks)
    y = stage(batch if rank == 0 else x.requires_grad_())
    dist.send(y.detach(), (rank + 1) % n_ranks)
    return x, y


@fails("check_forward_stage", "N05", "3 ranks", "rank 0 to rank 2")
def always_from_rank_0(stage, batch, shape, rank, n_ranks):
    x = receive(shape, 0).requires_grad_() if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N05", "rank 1")
def to_a_rank_that_is_not_there(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1).requires_grad_() if rank else batch
    y = stage(x)
    dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N05", "rank 0")
def to_itself(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1).requires_grad_() if rank else batch
    y = stage(x)
    dist.send(y.detach(), min(rank + 1, n_ranks - 1) if rank else 0)
    return x, y


@fails("check_forward_stage", "N05", "No message of this task goes from rank 1 to rank 0")
def sends_the_activation_backward(stage, batch, shape, rank, n_ranks):
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True) if rank else batch
    y = stage(x)
    if rank > 0:
        dist.send(y.detach(), rank - 1)
    return x, y


@fails("check_forward_stage", "N06", "280 bytes", "240 bytes")
def a_buffer_that_is_too_small(stage, batch, shape, rank, n_ranks):
    x = receive((shape[0] - 1, shape[1]), rank - 1).requires_grad_() if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N06", "rank 0 to rank 1 should carry a message of 280 bytes; it carried 120")
def sends_and_receives_three_rows(stage, batch, shape, rank, n_ranks):
    x = receive((3, shape[1]), rank - 1) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y[:3].detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N06", "rank 0 to rank 1 should carry a message of 280 bytes; it carried 120")
def sends_three_rows_to_a_buffer_for_all(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y[:3].detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N06", "2 ranks, 7 rows: rank", "[5, 7]")
def a_buffer_that_lies_on_its_side(stage, batch, shape, rank, n_ranks):
    x = receive(shape[::-1], rank - 1).T.requires_grad_() if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N07", "280 bytes", "140 bytes")
def receives_in_float32(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1, torch.float32) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N07", "it carried 140")
def sends_in_float32(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y.detach().float(), rank + 1)
    return x, y


@fails("check_forward_stage", "N08", "rank 0", "contiguous")
def sends_a_view(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y.detach().t(), rank + 1)
    return x, y


@fails("check_forward_stage", "N09", "rank 1: its output")
def runs_before_the_message_is_there(stage, batch, shape, rank, n_ranks):
    x, work = batch, None
    if rank > 0:
        x = torch.full(shape, 9.0, dtype=torch.float64)
        work = dist.irecv(x, rank - 1)
        y = stage(x.clone().requires_grad_())
        if rank == 1:
            dist.send(torch.zeros(1), 0, tag=1)  # only now may rank 0 send
        work.wait()
    else:
        y = stage(x)
        dist.recv(torch.zeros(1), 1, tag=1)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x.requires_grad_(), y


@fails("check_forward_stage", "N16", "already got")
def sends_twice(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "N16", "never received")
def sends_twice_without_blocking(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
        dist.isend(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", "F41", "send→1 was never waited for")
def forgets_to_wait_for_its_send(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1).requires_grad_() if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.isend(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", None, "The tags differ: 1 and 0")
def tags_differ(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1, tag=1)
    return x, y


@fails("check_forward_stage", None, "there was none")
def sends_nothing(stage, batch, shape, rank, n_ranks):
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True) if rank else batch
    return x, stage(x)


@fails("check_forward_stage", None, "Rank 1 has returned without receiving the message from rank 0")
def makes_a_buffer_and_forgets_the_receive(stage, batch, shape, rank, n_ranks):
    x = torch.empty(shape, dtype=torch.float64, requires_grad=True) if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", None, "your function returned nothing")
def forgets_the_return(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)


@fails("check_forward_stage", None, "rank 1 raised TypeError", "must be Tensor, not int")
def takes_what_the_receive_returns(stage, batch, shape, rank, n_ranks):
    x = dist.recv(torch.empty(shape, dtype=torch.float64), rank - 1) if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", None, "rank 1 raised", "NoneType")
def receives_into_the_batch(stage, batch, shape, rank, n_ranks):
    if rank:
        dist.recv(batch, rank - 1)
    y = stage(batch)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return batch, y


@fails("check_forward_stage", None, "cannot start from the output")
def returns_a_detached_output(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_()).detach()
    if rank < n_ranks - 1:
        dist.send(y, rank + 1)
    return x, y


@fails("check_forward_stage", None, "rank 1: its output is exactly 2 times")
def doubles_what_it_computed(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_()) * (2 if rank else 1)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return x, y


@fails("check_forward_stage", None, "2 ranks", "rank 0: your function returned its output first, and its input second")
def returns_them_in_the_other_order(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x.requires_grad_())
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return y, x


@fails("check_forward_stage", None, "returned a Tensor")
def returns_the_output_alone(stage, batch, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
    return y


@fails("check_forward_stage", None, "ZeroDivisionError", "in divides_by_its_rank")
def divides_by_its_rank(stage, batch, shape, rank, n_ranks):
    print("my rank is", rank)
    return 1 / rank


@fails("check_forward_stage", None, "sys.exit")
def leaves(stage, batch, shape, rank, n_ranks):
    sys.exit(rank)


@fails("check_forward_stage", None, "ended with exit code 3")
def leaves_at_once(stage, batch, shape, rank, n_ranks):
    os._exit(3)


@fails("check_forward_stage", None, "had not come to its end")
def never_ends(stage, batch, shape, rank, n_ranks):
    while rank == 0:
        pass
    return receive(shape, rank - 1)


@fails("check_forward_stage", None, "takes `(stage, batch)`")
def takes_too_little(stage, batch):
    return batch, stage(batch)


lock = __import__("threading").Lock()


@fails("check_forward_stage", None, "'lock'")
def uses_what_cannot_travel(stage, batch, shape, rank, n_ranks):
    with lock:
        return batch, stage(batch)


# --- backward_stage ---


@fails("check_backward_stage", "N12", "rank 0", "sum of its outputs")
def ignores_what_it_received(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
    else:
        dist.recv(torch.empty_like(output), rank + 1)
        output.sum().backward()
    if rank > 0:
        dist.send(stage_input.grad, rank - 1)


@fails("check_backward_stage", None, "2 ranks, 7 rows, rank 1", "the gradient of 0.weight differs")
def begins_from_ones_on_the_last_rank(stage_input, output, loss, rank, n_ranks):
    output.backward(receive(output.shape, rank + 1) if rank < n_ranks - 1 else torch.ones_like(output))
    if rank:
        dist.send(stage_input.grad, rank - 1)


@fails("check_backward_stage", None, "rank 0: the gradient of 0.weight is exactly 0.02857 times (1/35)")
def mean_of_a_product(stage_input, output, loss, rank, n_ranks):
    if rank == n_ranks - 1:
        loss.backward()
    else:
        (output * receive(output.shape, rank + 1)).mean().backward()
    if rank:
        dist.send(stage_input.grad, rank - 1)


@fails("check_backward_stage", "N12", "scalar outputs")
def gives_the_backward_no_gradient(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
    else:
        dist.recv(torch.empty_like(output), rank + 1)
        output.backward()
    if rank > 0:
        dist.send(stage_input.grad, rank - 1)


@fails("check_backward_stage", "N11", "should carry a message of 280 bytes; it carried 160")
def sends_the_gradient_of_a_weight(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
        weight = output.grad_fn.next_functions[2][0].next_functions[0][0].variable
        dist.send(weight.grad.contiguous(), rank - 1)
    else:
        grad = torch.empty_like(output)
        dist.recv(grad, rank + 1)
        output.backward(grad)


@fails("check_backward_stage", "N02", "NoneType")
def reads_the_gradient_of_the_output(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
    else:
        grad = torch.empty_like(output)
        dist.recv(grad, rank + 1)
        output.backward(grad)
    if rank > 0:
        dist.send(output.grad, rank - 1)


@fails("check_backward_stage", "N02", "NoneType")
def sends_before_its_backward(stage_input, output, loss, rank, n_ranks):
    if rank > 0:
        dist.send(stage_input.grad, rank - 1)
    if loss is not None:
        loss.backward()
    else:
        grad = torch.empty_like(output)
        dist.recv(grad, rank + 1)
        output.backward(grad)


@fails("check_backward_stage", None, "the message from rank 1 to rank 0 is the activation itself, not its gradient")
def sends_the_activation_back(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
    else:
        grad = torch.empty_like(output)
        dist.recv(grad, rank + 1)
        output.backward(grad)
    if rank > 0:
        dist.send(stage_input.detach(), rank - 1)


@fails("check_backward_stage", None, "3 ranks", "rank 1 to rank 0 should carry a message of 360 bytes; it carried 288")
def passes_the_received_gradient_on(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
        message = stage_input.grad
    else:
        message = torch.empty_like(output)
        dist.recv(message, rank + 1)
        output.backward(message)
    if rank > 0:
        dist.send(message, rank - 1)


@fails("check_backward_stage", None, "Rank 0 has returned without receiving the message from rank 1")
def only_the_last_takes_part(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
        dist.send(stage_input.grad, rank - 1)


@fails("check_backward_stage", "N05", "from rank 0 to rank 1")
def sends_gradients_forward(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
    else:
        output.sum().backward()
        dist.send(torch.ones_like(output), rank + 1)
    if rank > 0:
        dist.send(stage_input.grad, rank - 1)


@fails("check_backward_stage", None, "there was none")
def hands_nothing_back(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()


@fails("check_backward_stage", None, "3 ranks", "should carry", "there was none")
def works_for_two_ranks_only(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
        dist.send(stage_input.grad, n_ranks - 2)
    elif rank == n_ranks - 2:
        grad = torch.empty_like(output)
        dist.recv(grad, n_ranks - 1)
        output.backward(grad)


@fails("check_backward_stage", None, "rank 0: the gradient of 0.weight is exactly 0.5 times")
def halves_the_gradient(stage_input, output, loss, rank, n_ranks):
    if loss is not None:
        loss.backward()
    else:
        grad = torch.empty_like(output)
        dist.recv(grad, rank + 1)
        output.backward(grad)
    if rank > 0:
        dist.send(stage_input.grad / 2, rank - 1)


# --- train_step ---


def forward_stage(*args):
    raise AssertionError("the check of task 6 brings its own")


backward_stage = forward_stage


def halves(stage, batch, shape, rank):
    """The forward of two ranks, without messages."""
    x = batch if rank == 0 else torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    return x, stage(x)


@fails("check_train_step", "N03", "a deadlock", "send(to rank 0", "send(to rank 1")
def both_send_first(stage, optimizer, batch, targets, shape, rank, n_ranks):
    x, y = halves(stage, batch, shape, rank)
    if rank == 0:
        dist.send(y.detach(), 1)
        dist.recv(torch.empty_like(y), 1)
    else:
        nn.functional.cross_entropy(y, targets).backward()
        dist.send(x.grad, 0)
        dist.recv(torch.empty_like(x), 0)
    optimizer.step()


@fails("check_train_step", "N04", "a deadlock", "recv(from rank 0", "recv(from rank 1")
def both_receive_first(stage, optimizer, batch, targets, shape, rank, n_ranks):
    x, y = halves(stage, batch, shape, rank)
    if rank == 0:
        dist.recv(torch.empty_like(y), 1)
        dist.send(y.detach(), 1)
    else:
        dist.recv(torch.empty_like(x), 0)
        dist.send(torch.empty_like(x), 0)
    optimizer.step()


@fails("check_train_step", "N13", "rank 0", "loss of its own")
def every_stage_has_its_own_loss(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    _, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets)
    loss.backward()
    optimizer.step()
    return loss.item()


@fails("check_train_step", None, "rank 0: no gradient reached it: no message went from rank 1 to rank 0.")
def only_the_last_runs_a_backward(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    _, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = None
    if rank == n_ranks - 1:
        loss = nn.functional.cross_entropy(output, targets)
        loss.backward()
    optimizer.step()
    return loss


@fails("check_train_step", None, "Rank 0 has returned without receiving", "ppkit's own functions")
def only_the_last_calls_the_backward(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = None
    if rank == n_ranks - 1:
        loss = nn.functional.cross_entropy(output, targets)
        backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.step()
    return loss


@fails("check_train_step", None, "the last rank, 1, returns nothing; it returns the loss")
def forgets_to_return_the_loss(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets) if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.step()


@fails("check_train_step", "N02", "NoneType")
def sends_a_gradient_that_nobody_asked_for(stage, optimizer, batch, targets, shape, rank, n_ranks):
    x = receive(shape, rank - 1) if rank else batch
    y = stage(x)
    if rank < n_ranks - 1:
        dist.send(y.detach(), rank + 1)
        y.backward(receive(y.shape, rank + 1))
    else:
        nn.functional.cross_entropy(y, targets).backward()
    if rank:
        dist.send(x.grad, rank - 1)
    optimizer.step()


@fails("check_train_step", "N14", "rank 1", "what they were before")
def clears_the_gradients_before_the_step(stage, optimizer, batch, targets, shape, rank, n_ranks):
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets) if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.zero_grad()
    optimizer.step()
    return loss


@fails("check_train_step", None, "rank 1 raised ValueError: the stage input has no gradient after the backward")
def calls_the_backward_with_swapped_arguments(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets) if rank == n_ranks - 1 else None
    backward_stage(output, stage_input, loss, rank, n_ranks)
    optimizer.step()
    return loss


@fails("check_train_step", "N14", "rank 0", "what they were before")
def only_the_last_takes_a_step(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets) if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    if loss is not None:
        optimizer.step()
    return loss


@fails("check_train_step", "N12", "rank 0", "sum of its outputs")
def trains_on_the_sum(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    if rank < n_ranks - 1:
        dist.recv(torch.empty_like(output), rank + 1)
        loss = output.sum()
    else:
        loss = nn.functional.cross_entropy(output, targets)
    loss.backward()
    if rank > 0:
        dist.send(stage_input.grad, rank - 1)
    optimizer.step()
    return loss.item()


@fails("check_train_step", "G22", "3 ranks", "after step 1")
def never_clears_the_gradients(stage, optimizer, batch, targets, shape, rank, n_ranks):
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets) if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.step()
    return loss


@fails("check_train_step", None, "a loss of", "instead of")
def returns_the_sum_of_losses(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets) if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.step()
    return None if loss is None else loss * len(targets)


@fails("check_train_step", None, "rank 1: it learned from a loss summed over the rows")
def trains_on_the_summed_loss(stage, optimizer, batch, targets, shape, rank, n_ranks):
    optimizer.zero_grad()
    stage_input, output = forward_stage(stage, batch, shape, rank, n_ranks)
    loss = nn.functional.cross_entropy(output, targets, reduction="sum") if rank == n_ranks - 1 else None
    backward_stage(stage_input, output, loss, rank, n_ranks)
    optimizer.step()
    return loss


# --- first_rank_step ---


@fails("check_first_rank_step", None, "rank 0", "after step 0", "differs")
def takes_the_gradient_for_the_output(stage, optimizer, batch):
    optimizer.zero_grad()
    output = stage(batch)
    dist.send(output.detach(), dst=1)
    output_grad = torch.empty_like(output)
    dist.recv(output_grad, src=1)
    output.backward(-output_grad + 1)
    optimizer.step()


@fails("check_first_rank_step", "N12", "rank 0", "sum of its outputs")
def starts_the_backward_from_a_sum(stage, optimizer, batch):
    optimizer.zero_grad()
    output = stage(batch)
    dist.send(output.detach(), dst=1)
    dist.recv(torch.zeros_like(output), src=1)
    output.sum().backward()
    optimizer.step()


@fails("check_first_rank_step", "N09", "rank 0", "something else")
def reads_ones_before_the_receive(stage, optimizer, batch):
    optimizer.zero_grad()
    output = stage(batch)
    dist.send(output.detach(), dst=1)
    output_grad = torch.full_like(output, 2.0)
    output.backward(output_grad)
    dist.recv(output_grad, src=1)
    optimizer.step()


@fails("check_first_rank_step", "N14", "rank 0", "what they were before")
def takes_the_backward_away(stage, optimizer, batch):
    optimizer.zero_grad()
    output = stage(batch)
    dist.send(output.detach(), 1)
    dist.recv(torch.zeros_like(output), 1)
    optimizer.step()


@fails("check_first_rank_step", None, "Rank 0 has returned without receiving the message from rank 1")
def takes_the_receive_away(stage, optimizer, batch):
    optimizer.zero_grad()
    output = stage(batch)
    dist.send(output.detach(), 1)
    output.backward(torch.ones_like(output))
    optimizer.step()


@fails("check_first_rank_step", "N14", "rank 0", "what they were before")
def takes_the_step_away(stage, optimizer, batch):
    optimizer.zero_grad()
    output = stage(batch)
    dist.send(output.detach(), dst=1)
    output_grad = torch.zeros_like(output)
    dist.recv(output_grad, src=1)
    output.backward(output_grad)


@fails("check_first_rank_step", "G22", "rank 0", "after step 1")
def loses_the_clearing_of_gradients(stage, optimizer, batch):
    output = stage(batch)
    dist.send(output.detach(), dst=1)
    output_grad = torch.empty_like(output)
    dist.recv(output_grad, src=1)
    output.backward(output_grad)
    optimizer.step()
