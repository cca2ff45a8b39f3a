"""Wrong answers to lab 06, each with the mistake by which its check must recognise it.

The test runs this file as a notebook would its cells; `fails` marks a submission with its check, the mistake's code,
and words that the report must hold. A code of None stands for a mistake that is not in the catalogue.
"""

# ruff: noqa: F821  # the test gives `fails`, and the driver forward_stage and backward_stage

import torch
import torch.distributed as dist
import torch.nn.functional as F

# --- mesh_groups and my_rows ---


def right_groups(d, p):
    mesh = torch.arange(d * p).view(d, p)
    return mesh.tolist(), mesh.T.tolist()


def right_rows(batch, rank, d, p):
    return batch.tensor_split(d)[rank // p]


def on_paper(name, code, *words, groups=right_groups, rows=right_rows):
    fails("check_mesh", code, *words, name=name)((groups, rows))


on_paper("columns_for_rows", "H60", "for the rows", groups=lambda d, p: right_groups(d, p)[::-1])
on_paper(
    "filled_column_by_column",
    "H60",
    groups=lambda d, p: tuple(
        one.tolist() for one in (torch.arange(d * p).view(p, d).T, torch.arange(d * p).view(p, d))
    ),
)
on_paper(
    "everybody_in_one_column",
    "H60",
    "for the columns",
    groups=lambda d, p: (right_groups(d, p)[0], [list(range(d * p))]),
)
on_paper("only_the_rows", None, "returned", groups=lambda d, p: right_groups(d, p)[0])
on_paper("divided_over_all_ranks", "H65", "rank 1 takes rows", rows=lambda b, r, d, p: b.tensor_split(d * p)[r])
on_paper("divided_over_stages", "H65", rows=lambda b, r, d, p: b.tensor_split(p)[r % p])
on_paper(
    "remainder_dropped",
    None,
    "of a batch of 11 rows",
    rows=lambda b, r, d, p: b[r // p * (len(b) // d) :][: len(b) // d],
)
on_paper("remainder_to_the_last", None, rows=lambda b, r, d, p: uneven(b, r // p, d))
on_paper("the_whole_batch", None, "0, 1, 2", rows=lambda b, r, d, p: b)
on_paper("number_of_rows", None, "rows of the batch are asked", rows=lambda b, r, d, p: len(b) // d)


def uneven(batch, replica, d):
    size = len(batch) // d
    return batch[replica * size :] if replica == d - 1 else batch[replica * size :][:size]


on_paper(
    "rounded_up",
    None,
    "of a batch of 13 rows",
    rows=lambda batch, rank, d, p: batch.split(-(-len(batch) // d))[rank // p],
)
on_paper("divided_over_the_stages", "H65", rows=lambda batch, rank, d, p: batch.tensor_split(p)[rank % p])

# --- predictions ---

fails("check_predictions", "H61", "too small", name="own_groups_ring_of_all_one_long_pipeline")(
    (2, 2 * 11 / 12 * 4, 11 / (24 + 11))
)
fails("check_predictions", "H61", "too large", name="a_group_a_rank")((12, 18, 2 / 26))

# --- make_groups and same_start ---


def right_make(d, p):
    mesh = torch.arange(d * p).view(d, p)
    replica, number = divmod(dist.get_rank(), p)
    rows, columns = ([dist.new_group(ranks.tolist()) for ranks in one] for one in (mesh, mesh.T))
    return rows[replica], columns[number]


def right_start(stage, column):
    for weight in stage.parameters():
        dist.broadcast(weight.data, group=column, group_src=0)


def made(name, code, *words):
    return lambda function: fails("check_groups", code, *words, name=name)((function, right_start))


@made(
    "members_alone", "H61", "rank 0 asked for a group of ranks [0, 1, 2]", "rank 5 asked for a group of ranks [3, 4, 5]"
)
def members_alone(d, p):
    replica, number = divmod(dist.get_rank(), p)
    row = dist.new_group([replica * p + s for s in range(p)])
    return row, dist.new_group([r * p + number for r in range(d)])


@made("own_row_first", "H61", "group number 1")
def own_row_first(d, p):
    replica, number = divmod(dist.get_rank(), p)
    mesh = torch.arange(d * p).view(d, p)
    rows = {r: dist.new_group(mesh[r].tolist()) for r in sorted(range(d), key=lambda r: r != replica)}
    columns = [dist.new_group(ranks.tolist()) for ranks in mesh.T]
    return rows[replica], columns[number]


@made("stops_at_its_own_column", "H61", "rank 0 asked for no more groups")
def stops_at_its_own_column(d, p):
    replica, number = divmod(dist.get_rank(), p)
    mesh = torch.arange(d * p).view(d, p)
    rows = [dist.new_group(ranks.tolist()) for ranks in mesh]
    columns = [dist.new_group(mesh[:, s].tolist()) for s in range(number + 1 if d == 3 else p)]
    return rows[replica], columns[number]


@made("column_for_row", "H60", "its row holds ranks [0, 3]")
def column_for_row(d, p):
    return right_make(d, p)[::-1]


@made("counted_down_the_columns", "H60")
def counted_down_the_columns(d, p):
    mesh = torch.arange(d * p).view(p, d).T
    replica, number = dist.get_rank() % d, dist.get_rank() // d
    rows, columns = ([dist.new_group(ranks.tolist()) for ranks in one] for one in (mesh, mesh.T))
    return rows[replica], columns[number]


@made("the_world_for_a_column", "H60", "all ranks")
def the_world_for_a_column(d, p):
    return right_make(d, p)[0], None


@made("somebody_elses_group", "H60", "not in")
def somebody_elses_group(d, p):
    mesh = torch.arange(d * p).view(d, p)
    rows, columns = ([dist.new_group(ranks.tolist()) for ranks in one] for one in (mesh, mesh.T))
    return rows[dist.get_rank() % p % d], columns[dist.get_rank() // p % p]


@made("lists_for_groups", None, "its row is a list of 3")
def lists_for_groups(d, p):
    replica, number = divmod(dist.get_rank(), p)
    return [replica * p + s for s in range(p)], [r * p + number for r in range(d)]


def started(name, code, *words):
    return lambda function: fails("check_groups", code, *words, name=name)((right_make, function))


@started("from_rank_0_of_the_world", "H62", "not part of group")
def from_rank_0_of_the_world(stage, column):
    for weight in stage.parameters():
        dist.broadcast(weight.data, src=0, group=column)


@started("over_the_world", "H60", "all ranks")
def over_the_world(stage, column):
    for weight in stage.parameters():
        dist.broadcast(weight.data, src=0)


@started("from_the_last_replica", None, "those of rank 2; they should all be those of rank 0")
def from_the_last_replica(stage, column):
    for weight in stage.parameters():
        dist.broadcast(weight.data, group=column, group_src=dist.get_world_size(column) - 1)


@started("from_the_number_in_the_column", "H62")
def from_the_number_in_the_column(stage, column):
    for weight in stage.parameters():
        dist.broadcast(weight.data, src=dist.get_rank(column), group=column)


@started("first_weight_alone", None, "rank 2: its weights are not those of one rank alone")
def first_weight_alone(stage, column):
    dist.broadcast(next(stage.parameters()).data, group=column, group_src=0)


@started("never_waits", None, "nobody waits for its asynchronous broadcast")
def never_waits(stage, column):
    for weight in stage.parameters():
        dist.broadcast(weight.data, group=column, group_src=0, async_op=True)


@started("new_parameters", None, "new ones")
def new_parameters(stage, column):
    right_start(stage, column)
    for layer in stage:
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())


@started("mean_of_the_copies", None, "not those of one rank alone")
def mean_of_the_copies(stage, column):
    for weight in stage.parameters():
        dist.all_reduce(weight.data, group=column)
        weight.data /= dist.get_world_size(column)


# --- finish_step ---


def finish_with(*, moment=lambda i, m: i == 0, divide=lambda column: column.size(), step=True, group=lambda c: c):
    def finish_step(stage, optimizer, kept, before, after, column):
        for i in reversed(range(len(kept))):
            backward_stage(*kept[i], before, after)
            if moment(i, len(kept)):
                for weight in stage.parameters():
                    dist.all_reduce(weight.grad, group=group(column))
                    weight.grad /= divide(column)
        if step:
            optimizer.step()

    return finish_step


def finish(name, code, *words, **changes):
    fails("check_finish_step", code, *words, name=name)(finish_with(**changes))


finish("bugs_mended_and_division_lost", "D44", "exactly 2 times", divide=lambda column: 1)
finish("averages_at_every_backward", "H63", "at 3 moments", moment=lambda i, m: True)
finish("in_the_middle", "H63", "after 2 of 3 backwards", moment=lambda i, m: i == 1)
finish("divided_by_the_microbatches", None, "exactly 0.6667 times", divide=lambda column: 3)
finish("over_all_ranks", None, "shape", group=lambda column: None)
finish("bugs_mended_and_step_lost", "N14", "took 0 steps", step=False)

# --- sum_and_clip ---


def clip_with(
    *, tie="sum", over="row", counted=lambda weights, tied, first: weights if first else drop(weights, tied), scale=None
):
    def sum_and_clip(weights, tied, row, ends, c):
        if tied is not None and tie:
            dist.all_reduce(tied.grad, group=ends)
            tied.grad /= 2 if tie == "mean" else 1
        squares = sum((w.grad.square().sum() for w in counted(weights, tied, dist.get_rank(row) == 0)), torch.zeros(()))
        squares = squares.double()
        if over == "norms":
            squares = squares.sqrt()
        if over != "own":
            dist.all_reduce(squares, group=None if over == "world" else row)
        norm = squares if over == "norms" else squares.sqrt()
        for w in weights:
            w.grad *= scale(c, norm, weights) if scale else min(1.0, c / norm)
        return norm

    return sum_and_clip


def drop(weights, tied):
    return [w for w in weights if w is not tied]


def own_norm(c, norm, weights):
    return min(1.0, c / torch.stack([w.grad.norm() for w in weights]).norm())


def clip(name, code, *words, **changes):
    fails("check_sum_and_clip", code, *words, name=name)(clip_with(**changes))


clip("tied_parts_stay_apart", "H66", "the one that its stage had", tie="")
clip("mean_of_the_tied_parts", "H66", "half of the sum", tie="mean")
clip("own_norm", "H67", "a norm of", over="own")
clip("norm_over_the_world", "H60", "a norm of", over="world")
clip("tied_weight_counts_twice", None, "a norm of", counted=lambda weights, tied, first: weights)
clip("norms_added", None, "a norm of", over="norms")
clip("scaled_up", None, "multiplied by 10", scale=lambda c, norm, weights: c / norm)


clip("tied_weight_never_counts", None, "a norm of", counted=lambda weights, tied, first: drop(weights, tied))


def clip_each(weights, tied, row, ends, c):
    norm = clip_with(scale=lambda *_: 1.0)(weights, tied, row, ends, c)
    for w in weights:
        w.grad *= min(1.0, c / w.grad.norm())
    return norm


fails("check_sum_and_clip", None, "the gradient of weight 0", name="each_by_its_own_norm")(clip_each)


@fails("check_sum_and_clip", None, "a norm of")
def norm_after_clipping(weights, tied, row, ends, c):
    return min(clip_with()(weights, tied, row, ends, c), torch.tensor(c))


@fails("check_sum_and_clip", None, "rank 2", "exactly 4 times")
def one_copy_not_scaled(weights, tied, row, ends, c):
    last = tied is not None and dist.get_rank(ends) == 1
    norm = clip_with(scale=lambda *_: 1.0)(weights, tied, row, ends, c)
    for w in drop(weights, tied) if last else weights:
        w.grad *= min(1.0, c / norm)
    return norm


@fails("check_sum_and_clip", None, "a norm of")
def norms_of_the_parameters_added(weights, tied, row, ends, c):
    clip_with(scale=lambda *_: 1.0)(weights, tied, row, ends, c)
    norm = sum(w.grad.norm() for w in weights)
    dist.all_reduce(norm, group=row)
    return norm


@fails("check_sum_and_clip", None, "must match the size")
def tied_sought_by_its_values(weights, tied, row, ends, c):
    return clip_with(counted=lambda weights, tied, first: [w for w in weights if w not in [tied]])(
        weights, tied, row, ends, c
    )


@fails("check_sum_and_clip", None, "nobody waits")
def squares_not_waited_for(weights, tied, row, ends, c):
    squares = torch.stack([w.grad.square().sum() for w in weights]).sum()
    dist.all_reduce(squares, group=row, async_op=True)
    return squares.sqrt()


@fails("check_sum_and_clip", "H67", "were multiplied by")
def right_norm_and_own_scale(weights, tied, row, ends, c):
    norm = clip_with(scale=lambda *_: 1.0)(weights, tied, row, ends, c)
    factor = own_norm(c, norm, weights)
    for w in weights:
        w.grad *= factor if c < norm else 1.0
    return norm


@fails("check_sum_and_clip", "H66", "a norm of")
def tied_parts_added_after_the_norm(weights, tied, row, ends, c):
    norm = clip_with(tie="", counted=lambda weights, tied, first: weights)(weights, tied, row, ends, c)
    if tied is not None:
        dist.all_reduce(tied.grad, group=ends)
    return norm


@fails("check_sum_and_clip", None, "waits in all_reduce")
def only_the_ends_tell_their_squares(weights, tied, row, ends, c):
    return clip_with()(weights, tied, row, ends, c) if tied is not None else 0.0


@fails("check_sum_and_clip", None, "returned nothing")
def norm_not_returned(weights, tied, row, ends, c):
    clip_with()(weights, tied, row, ends, c)


# --- hybrid_step ---


def neighbours(row):
    rank, s, p = dist.get_rank(), dist.get_rank(row), dist.get_world_size(row)
    return rank - 1 if s else None, rank + 1 if s < p - 1 else None


def last_only(i, m):
    return i == m - 1


def step_with(
    *,
    peers=neighbours,
    share=lambda column: (dist.get_rank(column), dist.get_world_size(column)),
    cut=lambda m: m,
    weigh=lambda n, n_replica, n_batch, m: 1 / n_batch,
    moment=last_only,
    group=lambda row, column: column,
    divide=lambda row, column: 1,
    clear=True,
    told=lambda total: total,
):
    """A hybrid step, right as it stands; `weigh` says how much a row counts."""

    def hybrid_step(stage, optimizer, images, labels, n_microbatches, row, column):
        before, after = peers(row)
        part, n_parts = share(column)
        x, t = (one.tensor_split(n_parts)[part] for one in (images, labels))
        n_replica, m = len(t), cut(n_microbatches)
        if clear:
            optimizer.zero_grad()
        kept = [forward_stage(stage, rows, before, after) for rows in x.tensor_split(m)]
        total = 0.0
        for i, ((given, output), classes) in enumerate(zip(kept, t.tensor_split(m), strict=True)):
            loss = None
            if after is None:
                weight = weigh(len(classes), n_replica, len(labels), n_microbatches)
                loss = F.cross_entropy(output, classes, reduction="sum") * weight
                total += loss.item()
            backward_stage(given, output, loss, before, after)
            if moment(i, m):
                for w in stage.parameters():
                    dist.all_reduce(w.grad, group=group(row, column))
                    w.grad /= divide(row, column)
        optimizer.step()
        return told(total)

    return hybrid_step


def step(name, code, *words, **changes):
    fails("check_hybrid_step", code, *words, name=name)(step_with(**changes))


def mean_of_replica(n, n_replica, n_batch, m):
    return 1 / n_replica


def mean_of_microbatch(n, n_replica, n_batch, m):
    return 1 / n


def replicas(row, column):
    return dist.get_world_size(column)


def world(row, column):
    return dist.get_world_size()


step("summed_over_the_row", "H60", "ran over its row", group=lambda row, column: row)
step("summed_over_the_world", "H60", "ran over all ranks", group=lambda row, column: None)
step("stage_for_rank", "H62", "deadlock", peers=lambda row: group_numbers(row))
step("one_long_pipeline", "N05", "from one replica's pipeline", peers=lambda row: in_a_line())
step("first_backward", "H63", "after 1 of 4 backwards", moment=lambda i, m: i == 0)
step("sums_at_every_backward", "H63", "after 1, 2, 3, 4 of 4 backwards", moment=lambda i, m: True)
step(
    *("averages_at_every_backward_of_a_step", "H63", "after 1, 2, 3, 4 of 4 backwards"),
    **{"moment": lambda i, m: True, "weigh": mean_of_replica, "divide": lambda row, column: 2 * replicas(row, column)},
)
step("divided_by_the_world", "H64", "exactly 0.3333 times", weigh=mean_of_replica, divide=world)
step("share_divided_by_the_world", "H64", "exactly 0.1667 times", divide=world)
step("share_divided_by_the_replicas", None, "exactly 0.5 times", divide=replicas)
step("means_of_replicas_added", "D44", "exactly 2 times", weigh=mean_of_replica)
step("mean_of_unequal_shares", "D45", "a batch of 17 rows", weigh=mean_of_replica, divide=replicas)
step(
    *("mean_of_unequal_microbatches", "D45", "a batch of 17 rows"),
    **{"weigh": lambda n, n_replica, n_batch, m: 1 / n / m, "divide": replicas},
)
step("microbatches_not_weighed", "G18", "exactly 4 times", weigh=mean_of_microbatch, divide=replicas)
step("sum_for_a_mean", None, "exactly 24 times", weigh=lambda n, n_replica, n_batch, m: 1.0)
step(
    "rows_divided_over_all_ranks",
    "H65",
    "worked on 4 and 4 rows",
    share=lambda c: (dist.get_rank(), dist.get_world_size()),
)
step("every_replica_takes_all", None, "worked on 24 and 24 rows", share=lambda c: (0, 1))
step("no_microbatches", None, "called 1 times", cut=lambda m: 1)
step("nothing_summed", None, "summed no gradients", moment=lambda i, m: False)
step("gradients_never_cleared", "G22", "after step 1", clear=False)
step("mean_loss_of_the_replica", "G32", "add up to", told=lambda total: total * 2)
step("loss_not_returned", None, "nothing", told=lambda total: None)


def in_a_line():
    rank = dist.get_rank()
    return rank - 1 if rank else None, rank + 1 if rank < dist.get_world_size() - 1 else None


def group_numbers(row):
    s, p = dist.get_rank(row), dist.get_world_size(row)
    return s - 1 if s else None, s + 1 if s < p - 1 else None


@fails("check_hybrid_step", "H62", "not part of group")
def group_given_and_group_rank_too(stage, optimizer, images, labels, m, row, column):
    s = dist.get_rank(row)
    if s == 0:
        dist.send(stage(images[:3]).detach(), dst=s + 1, group=row)
    elif s == 1 and dist.get_rank(column):
        dist.recv(torch.empty(3, 64, dtype=torch.float64), src=s - 1, group=row)


@fails("check_hybrid_step", None, "before the next micro-batch's forward")
def one_after_the_other(stage, optimizer, images, labels, m, row, column):
    before, after = neighbours(row)
    replica, d, total = dist.get_rank(column), dist.get_world_size(column), 0.0
    optimizer.zero_grad()
    x, t = (one.tensor_split(d)[replica].tensor_split(m) for one in (images, labels))
    for rows, classes in zip(x, t, strict=True):
        given, output = forward_stage(stage, rows, before, after)
        loss = F.cross_entropy(output, classes, reduction="sum") / len(labels) if after is None else None
        total += 0.0 if loss is None else loss.item()
        backward_stage(given, output, loss, before, after)
    for w in stage.parameters():
        dist.all_reduce(w.grad, group=column)
    optimizer.step()
    return total


@fails("check_hybrid_step", None, "nobody waits")
def gradients_not_waited_for(stage, optimizer, images, labels, m, row, column):
    def hurry():
        for w in stage.parameters():
            dist.all_reduce(w.grad, group=column, async_op=True)

    optimizer.register_step_pre_hook(lambda *_: hurry())
    return step_with(moment=lambda i, m: False)(stage, optimizer, images, labels, m, row, column)


@fails("check_hybrid_step", None, "KeyError")
def raises(stage, optimizer, images, labels, m, row, column):
    return {}["rank"]


@fails("check_hybrid_step", None, "not come to its end", name="endless")
def endless(stage, optimizer, images, labels, m, row, column):
    while True:
        pass
