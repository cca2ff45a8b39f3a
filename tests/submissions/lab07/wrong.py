"""Wrong answers to lab 07, each with the mistake by which its check must recognise it.

The test runs this file as a notebook would its cells; `fails` marks a submission with its check, the mistake's code,
and words that the report must hold. A code of None stands for a mistake that is not in the catalogue.
"""

# ruff: noqa: F821  # the test gives `fails`

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# --- predictions ---


def predicted(name, code, *words, by_count=None, balanced=None, idle=None):
    fails("check_predictions", code, *words, name=name)((by_count, balanced, idle))


predicted("as_if_stages_were_alike", "H69", "too small", by_count=11 * 35 / 4)
predicted("the_beat_alone", "S92", "too small", by_count=8 * 13, balanced=8 * 10)
predicted("no_idle_time_in_the_end", "S93", "too small", idle=0)
predicted("all_as_slow_as_the_slowest", None, "too large", by_count=11 * 13, balanced=11 * 10)
predicted("the_part_at_work", None, "too large", idle=35 / 52)
predicted("idle_beside_work", "G29", "too large", idle=17 / 35)
predicted("one_after_the_other", None, "too large", by_count=8 * 35)

# --- cut_layers ---


def cut_with(rule, *, refuse=True):
    def cut_layers(costs, n_stages):
        if refuse and n_stages > len(costs):
            raise ValueError(f"{n_stages} stages, {len(costs)} layers")
        return rule(costs, n_stages)

    return cut_layers


def cut(name, code, *words, refuse=True):
    def keep(rule):
        fails("check_cut_layers", code, *words, name=name)(cut_with(rule, refuse=refuse))
        return rule

    return keep


@cut("equally_many_layers", "H69", "A cut with no stage above")
def by_count(costs, p):
    return [len(costs) // p + (stage < len(costs) % p) for stage in range(p)]


def greedy(costs, p, full):
    sizes = [0]
    for i, cost in enumerate(costs):
        left = len(costs) - i
        total = sum(costs[i - sizes[-1] : i])
        if sizes[-1] and len(sizes) < p and (left <= p - len(sizes) or full(total, cost, sum(costs) / p)):
            sizes.append(0)
        sizes[-1] += 1
    return sizes


@cut("fills_up_to_the_average", "S94", "A cut with no stage above")
def up_to_the_average(costs, p):
    return greedy(costs, p, lambda total, cost, share: total + cost > share)


@cut("fills_beyond_the_average", "S94", "A cut with no stage above")
def beyond_the_average(costs, p):
    return greedy(costs, p, lambda total, cost, share: total >= share)


def tried(costs, p, worth):
    cuts = itertools.combinations(range(1, len(costs)), p - 1)
    sizes = ([b - a for a, b in itertools.pairwise((0, *ends, len(costs)))] for ends in cuts)
    return min(sizes, key=lambda one: worth(parts(costs, one)))


def parts(costs, sizes):
    ends = itertools.accumulate(sizes)
    return [sum(costs[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


@cut("the_most_even_first_stage", None, "A cut with no stage above")
def first_stage_next_to_the_average(costs, p):
    return tried(costs, p, lambda stages: abs(stages[0] - sum(stages) / p))


@cut("smallest_sum_of_all_stages", None, "A cut with no stage above")
def sum_in_place_of_max(costs, p):
    return tried(costs, p, sum)


@cut("moves_one_boundary_at_a_time", None, "A cut with no stage above")
def hill(costs, p):
    sizes = by_count(costs, p)
    while True:
        moved = [
            [size + step * ((i == at) - (i == at + 1)) for i, size in enumerate(sizes)]
            for at in range(p - 1)
            for step in (1, -1)
        ]
        worth = {tuple(one): sorted(parts(costs, one), reverse=True) for one in [*moved, sizes] if min(one) > 0}
        best = list(min(worth, key=worth.__getitem__))
        if worth[tuple(best)] == worth[tuple(sizes)]:
            return sizes
        sizes = best


@cut("forgets_a_layer_of_each_stage", None, "A cut with no stage above")
def table_off_by_one(costs, p):
    best = {n: (sum(costs[:n]), [n]) for n in range(1, len(costs) + 1)}
    for _ in range(p - 1):
        best = {
            n: min((max(most, sum(costs[k + 1 : n])), [*sizes, n - k]) for k, (most, sizes) in best.items() if k < n)
            for n in range(min(best) + 1, len(costs) + 1)
        }
    return best[len(costs)][1]


@cut("tries_every_cut", "S95", "48 layers and 8 stages")
def every_cut(costs, p):
    return tried(costs, p, max)


@cut("recursion_that_forgets", "S95", "The small models are cut well")
def without_a_memory(costs, p):
    if p == 1:
        return [len(costs)]
    options = [[*without_a_memory(costs[:end], p - 1), len(costs) - end] for end in range(p - 1, len(costs))]
    return min(options, key=lambda sizes: max(parts(costs, sizes)))


@cut("positions_in_place_of_sizes", "S96", "which is 2 numbers")
def positions(costs, p):
    return list(itertools.accumulate(by_count(costs, p)))[:-1]


@cut("loses_the_last_layer", "S96", "which makes 4 layers of 5")
def one_layer_lost(costs, p):
    first, *others = by_count(costs, p)
    return [first - 1, *others]


@cut("an_empty_stage", "S96", "a stage has no layer")
def all_in_one(costs, p):
    return [len(costs)] + [0] * (p - 1)


def table(costs, p):
    best = {n: (sum(costs[:n]), [n]) for n in range(1, len(costs) + 1)}
    for _ in range(p - 1):
        best = {
            n: min((max(most, sum(costs[k:n])), [*sizes, n - k]) for k, (most, sizes) in best.items() if k < n)
            for n in range(min(best) + 1, len(costs) + 1)
        }
    return best[len(costs)][1]


fails("check_cut_layers", "S97", "it raised no error", name="fewer_stages_than_asked")(
    lambda costs, p: table(costs, min(p, len(costs)))
)
fails("check_cut_layers", "S97", "must name both numbers", name="an_error_that_says_nothing")(table)


@fails("check_cut_layers", "S97", "it raised KeyError")
def fails_somewhere_inside(costs, p):
    return table(costs, p) if p <= len(costs) else {}[p]


@fails("check_cut_layers", None, ", 3)` returned an int")
def returns_the_slowest_stage(costs, p):
    return max(costs)


# --- find_skips ---


def skips_with(*, order=True, twice=True, lost=True, unused=True, within=True, error=ValueError, name=True):
    def find_skips(stages):
        stashed, popped = {}, {}

        def refuse(skip):
            raise error(f"the skip {skip} is wrong" if name else "a skip is wrong")

        every = {skip: number for number, uses in enumerate(stages) for what, skip in uses if what == "stash"}
        for number, uses in enumerate(stages):
            for what, skip in uses:
                mine, early = (stashed, popped) if what == "stash" else (popped, stashed)
                if twice and skip in mine:
                    refuse(skip)
                if what == "pop" and skip not in early and (order if skip in every else lost):
                    refuse(skip)
                if not within and what == "pop" and stashed[skip] == number:
                    refuse(skip)
                mine[skip] = number
        for skip in stashed.keys() ^ popped.keys():
            if unused and skip in stashed:
                refuse(skip)
        return {skip: (stashed[skip], popped[skip]) for skip in stashed if skip in popped}

    return find_skips


def skips(title, code, *words, **changes):
    fails("check_find_skips", code, *words, name=title)(skips_with(**changes))


skips("skips_may_travel_back", "S98", "stage 1: nothing", "It has a pop two stages before its stash", order=False)
skips("names_may_be_used_twice", "S99", "a name stashed twice", twice=False)
skips("pops_what_nobody_stashes", "S100", "a pop without a stash", lost=False)
skips("stashes_for_nobody", "S100", "a stash without a pop", unused=False)
skips("refuses_a_skip_within_a_stage", "S101", "was refused: the skip near is wrong", within=False)
skips("another_kind_of_error", None, "The error is of type KeyError", error=KeyError)
skips("an_error_without_the_name", None, "says 'a skip is wrong'", name=False)


@fails("check_find_skips", "S98", "before its stash, in one stage")
def looks_at_stages_alone(stages):
    where = {}
    for number, uses in enumerate(stages):
        for use in uses:
            if use in where:
                raise ValueError(f"{use[1]} twice")
            where[use] = number
    found = {}
    for name in {name for _, name in where}:
        if not where.get(("stash", name), 99) <= where.get(("pop", name), -1):
            raise ValueError(name)
        found[name] = where["stash", name], where["pop", name]
    return found


@fails("check_find_skips", "S101", "instead of {'large': (0, 2)}")
def the_other_way_round(stages):
    return {name: (b, a) for name, (a, b) in skips_with()(stages).items()}


@fails("check_find_skips", None, "it must return a dict")
def returns_a_list(stages):
    return list(skips_with()(stages).items())


# --- first_rank_step ---


def first_rank_with(combine, *, twice=False, step=True, order=(2, 1)):
    def first_rank_step(stage, optimizer, microbatches):
        optimizer.zero_grad()
        outputs = [stage(images) for images in microbatches]
        sends = [dist.isend(output.detach(), peer) for output in outputs for peer in (1, 2)]
        for output in outputs:
            grads = {}
            for source in order:
                grads[source] = torch.empty_like(output)
                dist.recv(grads[source], source)
            if twice:
                output.backward(grads[1], retain_graph=True)
                output.backward(grads[2])
            else:
                output.backward(combine(grads[1], grads[2]))
        for work in sends:
            work.wait()
        if step:
            optimizer.step()

    return first_rank_step


def first_rank(title, code, *words, combine=torch.add, **changes):
    fails("check_first_rank_step", code, *words, name=title)(first_rank_with(combine, **changes))


first_rank("the_mean_of_both", "S102", "half of what", combine=lambda chain, skip: (chain + skip) / 2)
first_rank("the_skips_part_twice", "S102", "over the skip counts twice", combine=lambda c, s: c + 2 * s)
first_rank("the_skips_part_alone", "H68", "what came along the stages is lost", combine=lambda chain, skip: skip)
first_rank("two_backwards", "S103", "12 backwards ran for 6", twice=True)
first_rank("mended_and_step_lost", "N14", "before the step", step=False)
first_rank("product_of_both", None, "after step 0", combine=torch.mul)


@fails("check_first_rank_step", "S103", "backward through the graph a second time")
def two_backwards_of_one_graph(stage, optimizer, microbatches):
    optimizer.zero_grad()
    outputs = [stage(images) for images in microbatches]
    sends = [dist.isend(output.detach(), peer) for output in outputs for peer in (1, 2)]
    for output in outputs:
        for source in (2, 1):
            grad = torch.empty_like(output)
            dist.recv(grad, source)
            output.backward(grad)
    for work in sends:
        work.wait()
    optimizer.step()


def first_rank_that_begins_with(total, *, again):
    def first_rank_step(stage, optimizer, microbatches):
        optimizer.zero_grad()
        outputs = [stage(images) for images in microbatches]
        sends = [dist.isend(output.detach(), peer) for output in outputs for peer in (1, 2)]
        grad = total(outputs[0])
        for output in outputs:
            if again:
                grad = total(output)
            for source in (2, 1):
                part = torch.empty_like(output)
                dist.recv(part, source)
                grad = grad + part
            output.backward(grad)
        for work in sends:
            work.wait()
        optimizer.step()

    fails("check_first_rank_step", None, "rank 0", name=f"begins_with_{total.__name__}")(first_rank_step)


first_rank_that_begins_with(torch.zeros_like, again=False)


def whatever_was_there(output):
    return torch.full_like(output, torch.nan)  # torch.empty may leave such numbers


first_rank_that_begins_with(whatever_was_there, again=True)


def first_rank_with_irecv(waits):
    """Its receives don't block, and `waits` says which of them are waited for."""

    def first_rank_step(stage, optimizer, microbatches):
        optimizer.zero_grad()
        outputs = [stage(images) for images in microbatches]
        sends = [dist.isend(output.detach(), peer) for output in outputs for peer in (1, 2)]
        for output in outputs:
            grads = [torch.zeros_like(output) for _ in range(2)]
            works = [dist.irecv(grad, source) for grad, source in zip(grads, (2, 1), strict=True)]
            for work in works[:waits]:
                work.wait()
            output.backward(sum(grads))
        for work in sends:
            work.wait()
        optimizer.step()

    fails("check_first_rank_step", "F41", "recv←", "never waited for", name=f"waits_for_{waits}")(first_rank_step)


first_rank_with_irecv(0)
first_rank_with_irecv(1)

# --- skip_step ---


def step_with(
    *,
    through=False,
    skip_grad="sent",
    combine=torch.add,
    asks=True,
    blocking=False,
    short_way_first=False,
    one_by_one=False,
    one_buffer=False,
    twice=False,
    told="batch",
    share=lambda n, n_rows, m: n / n_rows,
    clear=True,
    room_for_skip=lambda mine, skip: skip,
    wait=True,
    skip_to=lambda last: last,
    late_skip_grads=False,
    skip_grad_in_two=False,
    wait_for_receives=True,
    call=lambda stage, x, skip: stage(x, skip),
):
    def skip_step(stage, optimizer, microbatches, targets, shapes, skip_shapes, rank, n_ranks):
        last, n_rows, kept, sends, losses = n_ranks - 1, sum(map(len, targets)), [], [], []
        room, late = {}, []

        def send(tensor, peer):
            if blocking:
                dist.send(tensor, peer)
            else:
                sends.append((dist.isend(tensor, peer), tensor))

        def receive(shape, source, key=None):
            x = room.setdefault(key, torch.empty(shape, dtype=torch.float64)) if one_buffer and key else None
            x = torch.empty(shape, dtype=torch.float64) if x is None else x.detach()
            (dist.recv if wait_for_receives else dist.irecv)(x, source)
            return x

        def forward(i):
            skip = None
            x = microbatches[i] if rank == 0 else receive(shapes[i], rank - 1, "x").requires_grad_()
            if rank and through:
                skip = receive(skip_shapes[i], rank - 1)
            elif rank == last:
                skip = receive(room_for_skip(shapes[i], skip_shapes[i]), 0).requires_grad_(asks)
            if rank == last:
                skip.requires_grad_(asks)
            y = call(stage, x, skip) if rank == last else stage(x)
            users = [] if rank == last else [rank + 1]
            if rank == 0 and not through:
                users = [skip_to(last), 1] if short_way_first else [1, skip_to(last)]
            for user in users:
                send(y.detach(), user)
            if through and rank < last:
                send(y.detach() if rank == 0 else skip, rank + 1)
            kept.append((i, x, skip, y))

        def backward():
            i, x, skip, y = kept.pop(0)
            grad = skip_grad_ = None
            if rank == last:
                y = F.cross_entropy(y, targets[i]) * share(len(targets[i]), n_rows, len(targets))
                losses.append(y.item())
            else:
                grad = receive(y.shape, rank + 1)
                if through:
                    skip_grad_ = receive(skip_shapes[i], rank + 1)
                elif rank == 0 and skip_grad == "sent":
                    skip_grad_ = receive(y.shape, last)
                    if skip_grad_in_two:
                        skip_grad_ += receive(y.shape, last)
            if rank == 0 and skip_grad_ is not None and not twice:
                grad = combine(grad, skip_grad_)
            if twice and rank == 0:
                y.backward(grad, retain_graph=True)
                y.backward(skip_grad_)
            else:
                y.backward(grad)
            if rank:
                send(x.grad, rank - 1)
            if through and rank:
                send(skip.grad if rank == last else skip_grad_, rank - 1)
            elif rank == last and skip_grad == "sent" and late_skip_grads:
                late.append(skip)
            elif rank == last and skip_grad == "sent":
                for part in [skip.grad / 4, 3 * skip.grad / 4] if skip_grad_in_two else [skip.grad]:
                    send(part, 0)

        if clear:
            optimizer.zero_grad()
        for i in range(len(targets)):
            forward(i)
            if one_by_one:
                backward()
        while kept:
            backward()
        for skip in reversed(late):
            send(skip.grad, 0)
        for work, _ in sends if wait else ():
            work.wait()
        optimizer.step()
        return sum(losses) if told == "batch" else losses[-1] if losses else None

    return skip_step


def step(title, code, *words, **changes):
    fails("check_skip_step", code, *words, name=title)(step_with(**changes))


step("through_the_ranks_between", "S104", "no message did", through=True)
step("gradient_of_the_skip_not_sent", "H68", "what came over the skip is lost", skip_grad="lost")
step("gradient_of_the_skip_ignored", "H68", "what came over the skip is lost", combine=lambda chain, skip: chain)
step("gradient_of_the_skip_instead", "H68", "what came along the stages is lost", combine=lambda chain, skip: skip)
step("mean_of_both_gradients", "S102", "half of what", combine=lambda chain, skip: (chain + skip) / 2)
step("skip_asks_for_no_gradient", "N02", "rank 2", asks=False)
step("short_way_first_and_blocking", "S105", "a deadlock", blocking=True, short_way_first=True)
step("one_micro_batch_at_a_time", None, "its first backward came before its second forward", one_by_one=True)
step("one_buffer_for_all", "G23", "one", one_buffer=True)
step("first_stage_backward_twice", "S103", "6 backwards ran for 3", twice=True)
step("loss_not_scaled", "G18", "unscaled", share=lambda n, n_rows, m: 1.0)
step("mean_of_means", "G20", "small micro-batches", share=lambda n, n_rows, m: 1 / m)
step("gradients_never_cleared", "G22", "after step 1", clear=False)
step("gradients_of_the_skip_swapped", "G25", "are swapped", late_skip_grads=True)
step("skip_to_the_neighbour", "N16", "Rank 0 has sent 6 messages to rank 1", skip_to=lambda last: 1)
step("skip_to_the_third_rank", None, "from rank 0 to rank 2", skip_to=lambda last: 2)
step("gradient_of_the_skip_in_two_parts", None, "where 3 are enough", skip_grad_in_two=True)
step("receives_never_waited_for", "F41", "recv←", "never waited for", wait_for_receives=False)
step("sends_never_waited_for", "F41", "never waited for", wait=False)
step("room_for_another_shape", "N06", "rank 2", room_for_skip=lambda mine, skip: mine)
step("arguments_swapped", None, "takes the skip for its input", call=lambda stage, x, skip: stage(skip, x))
step("loss_of_the_last_micro_batch", "G32", "returned a loss of", told="last")


@fails("check_skip_step", None, "deadlock")
def waits_for_ever(stage, optimizer, microbatches, targets, shapes, skip_shapes, rank, n_ranks):
    if rank == 2:
        dist.recv(torch.empty(skip_shapes[0], dtype=torch.float64), 0)


@fails("check_skip_step", None, "had not come to its end")
def never_ends(stage, optimizer, microbatches, targets, shapes, skip_shapes, rank, n_ranks):
    while True:
        pass


@fails("check_skip_step", None, "ZeroDivisionError")
def raises(stage, optimizer, microbatches, targets, shapes, skip_shapes, rank, n_ranks):
    return 1 / 0


# --- light_forward, recomputing_backward ---


def recomputation_with(*, forward="no_grad", restore=True, put_back=True, add=True, seed=False, keep=False):
    def light_forward(stage, stage_input):
        if seed:
            torch.manual_seed(3)
        state = torch.get_rng_state()
        if forward == "no_grad":
            with torch.no_grad():
                return stage(stage_input), (stage_input, state, None)
        stage_input.requires_grad_()
        output = stage(stage_input)
        return output, (stage_input, state, output if keep else None)

    def recomputing_backward(stage, kept, output_grad):
        stage_input, state, output = kept
        now = torch.get_rng_state()
        if restore:
            torch.set_rng_state(state)
        stage_input = stage_input.detach().requires_grad_() if output is None else stage_input
        output = stage(stage_input) if output is None else output
        if put_back:
            torch.set_rng_state(now)
        if not add:
            stage.zero_grad()
        output.backward(output_grad)
        return stage_input.grad

    return light_forward, recomputing_backward


def recomputed(title, code, *words, **changes):
    fails("check_recomputation", code, *words, name=title)(recomputation_with(**changes))


recomputed("other_numbers_are_dropped", "G31", "with dropout, rank 2: after the backward", restore=False)
recomputed("random_numbers_stay_in_the_past", "S106", "with dropout", put_back=False)
recomputed("keeps_the_whole_graph", "S107", "bytes; its input takes", forward="graph", keep=True)
recomputed("gradients_take_each_others_place", "S108", "after the backward of micro-batch 1", add=False)
recomputed("seeds_every_forward", None, "in the forward of micro-batch 0", seed=True)


class Notes:
    """What is kept, in attributes."""


def keeps_copies():
    forward, backward = recomputation_with()

    def light_forward(stage, stage_input):
        notes = Notes()
        output, notes.kept = forward(stage, stage_input)
        copy = output.clone()
        notes.copies = lambda: copy, [output]
        return output, notes

    return light_forward, lambda stage, notes, output_grad: backward(stage, notes.kept, output_grad)


fails("check_recomputation", None, "holds 576 bytes; its input takes", name="keeps_copies")(keeps_copies())


def no_dropout_the_second_time():
    forward, _ = recomputation_with()

    def backward(stage, kept, output_grad):
        x = kept[0].detach().requires_grad_()
        stage.eval()
        y = stage(x)
        stage.train()
        y.backward(output_grad)
        return x.grad

    return forward, backward


fails("check_recomputation", "G31", "with dropout", name="evaluates_the_second_time")(no_dropout_the_second_time())


def no_dropout_the_first_time():
    _, backward = recomputation_with()

    def forward(stage, stage_input):
        stage.eval()
        with torch.no_grad():
            output = stage(stage_input)
        stage.train()
        return output, (stage_input, torch.get_rng_state(), None)

    return forward, backward


fails("check_recomputation", None, "in the forward", name="evaluates_the_first_time")(no_dropout_the_first_time())


def asks_for_the_inputs_gradient_alone(stage, kept, output_grad):
    x = kept[0].requires_grad_()
    return torch.autograd.grad(stage(x), x, output_grad)[0]


fails("check_recomputation", None, "the gradient of 0.weight is missing", name="parameters_get_no_gradient")(
    (recomputation_with()[0], asks_for_the_inputs_gradient_alone)
)


def checkpoint_without_a_state(stage, stage_input):
    x = stage_input.detach().requires_grad_()
    output = checkpoint(stage, x, use_reentrant=False, preserve_rng_state=False)
    return output, (x, output)


def from_the_checkpoint(stage, kept, output_grad):
    kept[1].backward(output_grad)
    return kept[0].grad


fails("check_recomputation", "G31", "with dropout", name="checkpoint_that_forgets_the_state")(
    (checkpoint_without_a_state, from_the_checkpoint)
)


def returns_the_output_alone(stage, stage_input):
    with torch.no_grad():
        return stage(stage_input)


fails("check_recomputation", None, "it must return a pair", name="nothing_kept")(
    (returns_the_output_alone, from_the_checkpoint)
)


def no_return(stage, kept, output_grad):
    stage(kept[0].requires_grad_()).backward(output_grad)


fails("check_recomputation", None, "`recomputing_backward` returned None", name="no_gradient_of_the_input")(
    (recomputation_with()[0], no_return)
)
