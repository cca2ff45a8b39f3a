"""Wrong answers to lab 04, each with the mistake by which its check must recognise it.

The test runs this file as a notebook would its cells; `fails` marks a submission with its check, the mistake's code,
and words that the report must hold. A code of None stands for a mistake that is not in the catalogue.
"""

# ruff: noqa: F821  # the test gives `fails`

import torch

# --- stage_to_rank ---


@fails("check_stage_to_rank", "Z70", "cards")
def thick_slices(stage, n_ranks, n_chunks, placement):
    return stage // n_chunks


@fails("check_stage_to_rank", "Z71", "'V'")
def cards_for_both(stage, n_ranks, n_chunks, placement):
    return stage % n_ranks


@fails("check_stage_to_rank", "Z71", "'cards'")
def a_v_for_both(stage, n_ranks, n_chunks, placement):
    return min(stage % (2 * n_ranks), 2 * n_ranks - 1 - stage % (2 * n_ranks))


@fails("check_stage_to_rank", "Z71", "'cards'")
def a_v_in_place_of_cards_and_back(stage, n_ranks, n_chunks, placement):
    cards = placement == "V" or n_chunks != 2
    return stage % n_ranks if cards else min(stage, 2 * n_ranks - 1 - stage)


@fails("check_stage_to_rank", "Z72", "'V'")
def turns_one_too_late(stage, n_ranks, n_chunks, placement):
    return stage % n_ranks if placement == "cards" or stage < n_ranks else 2 * n_ranks - stage


@fails("check_stage_to_rank", None, "a float")
def rank_is_a_float(stage, n_ranks, n_chunks, placement):
    return float(stage % n_ranks)


@fails("check_stage_to_rank", None, "[3, 2, 1, 0")
def dealt_from_the_end(stage, n_ranks, n_chunks, placement):
    return n_ranks - 1 - stage % n_ranks


# --- interleaved_schedule ---


def schedule_with(
    warm_up=lambda p, r, m, v: min((v - 1) * p + 2 * (p - 1 - r), m * v),
    length=lambda p, m: p,
    back=True,
    place=lambda p, r, v, c: c * p + r,
    letter="B",
):
    """An interleaved schedule with parts of its own."""

    def build(p, m, v):
        n = length(p, m)
        turns = [(c, i) for g in range(0, m, n) for c in range(v) for i in range(g, min(m, g + n))]
        rows = []
        for r in range(p):
            forwards = [f"{place(p, r, v, c)}F{i}" for c, i in turns]
            backwards = [f"{place(p, r, v, v - 1 - c if back else c)}{letter}{i}" for c, i in turns]
            w = warm_up(p, r, m, v)
            row = forwards[:w]
            for pair in zip(forwards[w:], backwards, strict=False):
                row += pair
            rows.append(row + backwards[m * v - w :])
        return rows

    return build


def schedule(name, code, *words, **changes):
    fails("check_interleaved", code, *words, name=name)(schedule_with(**changes))


schedule("all_forwards_first", "Z73", "activations at once", warm_up=lambda p, r, m, v: m * v)
schedule("whole_batch_through_each_chunk", "Z74", length=lambda p, m: m)
schedule("one_microbatch_through_all_chunks", "Z74", length=lambda p, m: 1)
schedule("backwards_from_the_first_chunk", "Z75", back=False)
schedule("warm_up_of_1f1b", "Z76", warm_up=lambda p, r, m, v: p - 1 - r)
schedule("warm_up_same_on_all_ranks", "Z76", "at once", warm_up=lambda p, r, m, v: min((v + 1) * p - 2, m * v))
schedule("warm_up_much_too_short", "Z76", warm_up=lambda p, r, m, v: min((v - 1) * p, m * v))
schedule("warm_up_too_long", "Z76", "at once", warm_up=lambda p, r, m, v: min((v - 1) * p + 2 * (p - 1 - r) + 1, m * v))
schedule("chunks_next_to_each_other", "Z70", place=lambda p, r, v, c: r * v + c)
schedule("chunks_in_a_v", None, place=lambda p, r, v, c: c * p + (p - 1 - r if c % 2 else r))
schedule("backwards_without_weights", None, letter="I")


@fails("check_interleaved", None, "4 ranks, 4 micro-batches, 2 chunks: 0B0 is missing")
def warm_up_longer_than_the_row(p, m, v):
    rows = []
    for r in range(p):
        rounds = range(0, m, p)
        forwards = [f"{r + c * p}F{i}" for k in rounds for c in range(v) for i in range(k, k + p)]
        backwards = [f"{r + c * p}B{i}" for k in rounds for c in reversed(range(v)) for i in range(k, k + p)]
        ahead = (v - 1) * p + 2 * (p - 1 - r)
        row = forwards[:ahead]
        for pair in zip(forwards[ahead:], backwards, strict=False):
            row += pair
        rows.append(row + backwards[m * v - ahead :])
    return rows


# --- predictions ---

fails("check_predictions", "Z79", "too large", name="idle_as_with_thick_stages")((9, 4, 72))
fails("check_predictions", None, "84 messages is too small", name="messages_of_one_way", points=10.0)((4.5, 11, 84))
fails("check_predictions", "Z77", "72 messages is too small", name="messages_of_thick_stages", points=10.0)(
    (4.5, 11, 72)
)

# --- input_grad and weight_grads ---


def input_half(stage_input, output, output_grad):
    return torch.autograd.grad(output, stage_input, output_grad, retain_graph=True)[0]


def weight_half(stage, stage_input, output, output_grad):
    return torch.autograd.grad(output, tuple(stage.parameters()), output_grad)


def halves(name, code, *words, first=input_half, second=weight_half):
    fails("check_split", code, *words, name=name)((first, second))


def frees_the_graph(stage_input, output, output_grad):
    return torch.autograd.grad(output, stage_input, output_grad)[0]


def full_backward_first(stage_input, output, output_grad):
    output.backward(output_grad, retain_graph=True)
    return stage_input.grad


def what_the_first_half_left(stage, stage_input, output, output_grad):
    return [parameter.grad for parameter in stage.parameters()]


def full_backward_again(stage, stage_input, output, output_grad):
    stage.zero_grad()
    output.backward(output_grad)
    return [parameter.grad for parameter in stage.parameters()]


def never_cleared(stage, stage_input, output, output_grad):
    torch.autograd.backward(output, output_grad, inputs=list(stage.parameters()))
    return [parameter.grad for parameter in stage.parameters()]


def bias_first(stage, stage_input, output, output_grad):
    return weight_half(stage, stage_input, output, output_grad)[::-1]


def of_the_input(stage, stage_input, output, output_grad):
    return torch.autograd.grad(output, stage_input, output_grad)


def of_the_weights(stage_input, output, output_grad):
    linear = output.grad_fn.next_functions[0][0]
    weight = linear.next_functions[-1][0].next_functions[0][0].variable
    return torch.autograd.grad(output, weight, output_grad, retain_graph=True)[0]


def ones_instead(stage_input, output, output_grad):
    return torch.autograd.grad(output.sum(), stage_input, retain_graph=True)[0]


def transposed(stage, x, y, g):
    weight, bias = weight_half(stage, x, y, g)
    return weight.T, bias


halves("graph_freed_by_the_first_half", "Z80", "second time", first=frees_the_graph)
halves("full_backward_in_the_first_half", "Z81", "2 products", first=full_backward_first)
halves("all_in_the_first_half", "Z81", first=full_backward_first, second=what_the_first_half_left)
halves("full_backward_in_the_second_half", "Z82", "2 products", second=full_backward_again)
halves("weights_and_bias_swapped", "Z83", second=bias_first)
halves("second_half_returns_the_input_s", "Z83", second=of_the_input)
halves("first_half_returns_the_weights", "Z83", first=of_the_weights)
halves("gradients_pile_up", "Z84", "micro-batch 1", second=never_cleared)
halves("received_gradient_ignored", "N12", first=ones_instead)
halves("a_tuple_instead_of_a_tensor", None, "a tuple", first=lambda x, y, g: (input_half(x, y, g),))
halves("weights_the_other_way_round", None, "has shape [5, 3] instead of [3, 5]", second=transposed)
halves("second_half_returns_nothing", None, "nothing", second=lambda stage, x, y, g: None)

# --- zb_h1_schedule ---


def zb_with(warm_up=lambda p, r, m: min(p - 1 - r, m), lag=lambda p, r, m: r, owed=True, order="IW"):
    """A split schedule with parts of its own."""

    def build(p, m):
        rows = []
        for r in range(p):
            w, late = warm_up(p, r, m), lag(p, r, m)
            row = [f"{r}F{i}" for i in range(w)]
            for i in range(m):
                row += [f"{r}F{w + i}"] if w + i < m else []
                half = {"I": [f"{r}I{i}"], "W": [f"{r}W{i - late}"] if i >= late else []}
                row += half[order[0]] + half[order[1]]
            rows.append(row + [f"{r}W{i}" for i in range(max(0, m - late), m) if owed])
        return rows

    return build


def zb(name, code, *words, **changes):
    fails("check_zb_h1", code, *words, name=name)(zb_with(**changes))


zb("weights_first", "Z86", order="WI", lag=lambda p, r, m: 0)
zb("all_weights_at_the_end", "Z87", "leftovers", lag=lambda p, r, m: m)
zb("weights_at_once", "Z88", "units", lag=lambda p, r, m: 0)
zb("put_off_on_the_wrong_ranks", "Z89", lag=lambda p, r, m: p - 1 - r)
zb("warm_up_too_long", "Z90", warm_up=lambda p, r, m: min(p - r, m))
zb("same_warm_up_on_all_ranks", "Z90", warm_up=lambda p, r, m: min(p - 1, m))
zb("weights_forgotten_at_the_end", "Z91", owed=False)
zb("put_off_as_much_everywhere", None, "leftovers", lag=lambda p, r, m: min(p - 1, m - 1))


@fails("check_zb_h1", "Z85", "units")
def one_f_one_b_as_it_was(p, m):
    rows = []
    for r in range(p):
        w = min(p - 1 - r, m)
        row = [f"{r}F{i}" for i in range(w)]
        for i in range(m):
            row += [f"{r}F{w + i}"] if w + i < m else []
            row.append(f"{r}B{i}")
        rows.append(row)
    return rows


@fails("check_zb_h1", "Z85")
def backwards_and_weights(p, m):
    return [[text.replace("I", "B") for text in row] for row in zb_with()(p, m)]


@fails("check_zb_h1", None, "rank 0 holds 4 activations and leftovers")
def forwards_before_the_weights_that_are_due(p, m):
    rows = []
    for r in range(p):
        row, forwards, inputs, weights = [], 0, 0, 0
        while weights < m:
            if forwards < m and forwards - inputs < p - r:
                row.append(f"{r}F{forwards}")
                forwards += 1
            elif inputs < m and inputs - weights < r + 1:
                row.append(f"{r}I{inputs}")
                inputs += 1
            else:
                row.append(f"{r}W{weights}")
                weights += 1
        rows.append(row)
    return rows
