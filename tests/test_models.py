"""The models compute, split and learn as they say."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ppkit import data, models
from ppkit.errors import PpkitError
from ppkit.skips import match_skips

F64 = torch.float64


@pytest.fixture(autouse=True)
def _one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def small_lm(**options):
    return models.TransformerLM(length=12, width=16, **{"n_heads": 2, "n_layers": 3, **options})


def small_translator(**options):
    sizes = {"source_length": 4, "target_length": 8, "width": 16, "n_heads": 2}
    return models.EncoderDecoder(**{**sizes, "n_encoder_layers": 3, "n_decoder_layers": 3, **options})


def translation_batch(n_pairs=6):
    sources, targets = data.numbers_as_words(n_pairs=n_pairs)
    return (sources, targets[:, :-1]), targets[:, 1:]


def token_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=data.PAD)


def case(name, **options):
    """A model, a batch for it (a tuple of inputs) and its targets."""
    if name == "mlp":
        images, labels = data.digits("train", options.get("dtype", torch.float32), n_images=6)
        return models.mlp(n_layers=5, width=16, **options), (images,), labels
    if name == "lm":
        inputs, targets = data.text_windows(12, n_windows=4)
        return small_lm(**options), (inputs,), targets
    inputs, targets = translation_batch()
    return small_translator(**options), inputs, targets


every_model = pytest.mark.parametrize("name", ["mlp", "lm", "translator"])


# --- construction


@every_model
def test_logits_have_the_documented_shape(name):
    model, inputs, targets = case(name)
    n_classes = {"mlp": 10, "lm": 96, "translator": 33}[name]
    logits = model(*inputs)
    assert logits.shape == (*targets.shape, n_classes)
    assert logits.dtype == torch.float32


@every_model
def test_the_seed_decides_the_weights_and_leaves_the_callers_numbers(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _, _ = case(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, _, _ = case(name, seed=1)
    other, _, _ = case(name, seed=2)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not any(
        torch.equal(a, b)
        for a, b in zip(first.parameters(), other.parameters(), strict=True)
        if a.std() > 0 and not (a == 1).all()  # LayerNorm starts at ones and zeros
    )


@every_model
def test_float64_weights_are_the_float32_ones(name):
    narrow, _, _ = case(name)
    wide, _, _ = case(name, dtype=F64)
    assert all(parameter.dtype == F64 for parameter in wide.parameters())
    for a, b in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert torch.equal(a.double(), b)


@every_model
def test_a_new_model_is_about_as_good_as_guessing(name):
    model, inputs, targets = case(name)
    logits = model(*inputs)
    uniform = torch.tensor(float(logits.shape[-1])).log()
    assert abs(token_loss(logits, targets) - uniform) < 0.6


@every_model
def test_models_survive_pickle_and_deepcopy(name):
    model, inputs, _ = case(name)
    expected = model(*inputs)
    assert torch.equal(copy.deepcopy(model)(*inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(*inputs), expected)


def test_the_mlp_is_the_sequence_it_says():
    model = models.mlp(8, 5, 3, n_layers=3)
    assert [type(block) for block in model] == [nn.Sequential, nn.Sequential, nn.Linear]
    assert models.n_parameters(model) == (8 + 1) * 5 + (5 + 1) * 5 + (5 + 1) * 3
    assert models.mlp(8, 5, 3, n_layers=1)(torch.zeros(2, 8)).shape == (2, 3)


def test_the_blocks_of_the_transformers():
    assert [type(block).__name__ for block in small_lm(n_layers=2)] == [
        "Embedding",
        "CausalLayer",
        "CausalLayer",
        "Head",
    ]
    assert [type(block).__name__ for block in small_translator(n_encoder_layers=1, n_decoder_layers=2)] == [
        "Embeddings",
        "EncoderLayer",
        "DecoderLayer",
        "LastDecoderLayer",
    ]


# --- what attention may see


def test_the_language_model_is_causal():
    model = small_lm(dtype=F64)
    tokens, _ = data.text_windows(12, n_windows=1)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 96
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert all((before[0, t] - after[0, t]).abs().max() > 1e-6 for t in range(7, 12))


def test_the_decoder_is_causal_and_sees_the_whole_source():
    model = small_translator(dtype=F64)
    source, target = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[1, 9, 8, 7, 6]])
    logits = model(source, target)
    later = model(source, torch.tensor([[1, 9, 8, 17, 6]]))
    assert torch.equal(later[:, :3], logits[:, :3])
    assert not torch.allclose(later[:, 3:], logits[:, 3:])
    other = model(torch.tensor([[4, 5, 6, 8]]), target)
    assert (other - logits).abs().amax(dim=-1).min() > 1e-6


def test_padding_of_the_source_changes_nothing():
    model = small_translator(dtype=F64)
    target = torch.tensor([[1, 9, 8]])
    bare = model(torch.tensor([[4, 5]]), target)
    padded = model(torch.tensor([[4, 5, data.PAD, data.PAD]]), target)
    torch.testing.assert_close(padded, bare, rtol=0, atol=1e-12)


# --- splitting


def run_in_stages(stages, inputs, loss_of):
    """Forward and backward as on separate ranks: detached tensors between the stages, gradients sent back."""
    values, tape = inputs, []
    for stage in stages:
        received = tuple(value.detach().requires_grad_(value.is_floating_point()) for value in values)
        output = stage(*received)
        values = output if isinstance(output, tuple) else (output,)
        tape.append((received, values))
    loss = loss_of(values[0])
    grads = [torch.ones_like(loss)]
    for stage_number, (received, values) in reversed(list(enumerate(tape))):
        last = stage_number == len(tape) - 1
        outputs = [loss] if last else [value for value in values if value.requires_grad]
        torch.autograd.backward(outputs, grads)
        grads = [value.grad for value in received if value.requires_grad]
    return loss


@every_model
@pytest.mark.parametrize("n_stages", [1, 2, 3, 4, 5])  # five: the last stage is the last block alone
@pytest.mark.parametrize("by", ["parameters", "layers"])
def test_stages_equal_the_whole_model_exactly(name, n_stages, by):
    whole, inputs, targets = case(name, dtype=F64)
    loss = token_loss(whole(*inputs), targets)
    loss.backward()
    cut, _, _ = case(name, dtype=F64)
    stages = models.split(cut, n_stages, by=by)
    in_stages = run_in_stages(stages, inputs, lambda logits: token_loss(logits, targets))
    assert torch.equal(in_stages, loss)
    gradients = {name: p.grad for stage in stages for name, p in stage.named_parameters()}
    assert gradients.keys() == {name for name, _ in whole.named_parameters()}
    for parameter_name, parameter in whole.named_parameters():
        assert torch.equal(gradients[parameter_name], parameter.grad), parameter_name


@pytest.mark.parametrize(
    ("n_encoder", "n_decoder", "sizes"),
    [(6, 6, [4, 3, 3, 3]), (3, 3, [2, 2, 2, 1]), (2, 2, [2, 1, 1, 1])],
)
def test_the_classic_four_stages_of_the_translator(n_encoder, n_decoder, sizes):
    options = {"n_encoder_layers": n_encoder, "n_decoder_layers": n_decoder, "dtype": F64}
    inputs, targets = translation_batch()
    whole, cut = small_translator(**options), small_translator(**options)
    stages = models.split(cut, 4, by="layers")
    assert [len(stage) for stage in stages] == sizes
    kinds = [{type(block).__name__ for block in stage} for stage in stages]
    assert kinds[:3] == [{"Embeddings", "EncoderLayer"}, {"EncoderLayer"}, {"DecoderLayer"}]
    assert kinds[3] <= {"DecoderLayer", "LastDecoderLayer"}
    token_loss(whole(*inputs), targets).backward()
    run_in_stages(stages, inputs, lambda logits: token_loss(logits, targets))
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_what_goes_between_the_stages_of_the_translator():
    model = small_translator()
    (source, target), _ = translation_batch(5)
    state = (source, target)
    for stage in models.split(model, 4, by="layers")[:-1]:
        state = stage(state)  # one tuple serves as well as three arguments
        memory, hidden, mask = state
        assert (memory.shape, hidden.shape, mask.shape) == ((5, 4, 16), (5, 7, 16), (5, 4))
        assert memory.is_contiguous()
        assert hidden.is_contiguous()
        assert mask.is_contiguous()
        assert (mask.dtype, mask.requires_grad) == (torch.bool, False)
        assert torch.equal(mask, source != data.PAD)


@every_model
def test_a_split_covers_the_model_with_its_own_modules_and_names(name):
    model, _, _ = case(name)
    stages = models.split(model, 3)
    assert [block for stage in stages for block in stage] == list(model)
    merged = {key: value for stage in stages for key, value in stage.state_dict().items()}
    assert merged.keys() == model.state_dict().keys()
    assert all(merged[key].data_ptr() == value.data_ptr() for key, value in model.state_dict().items())
    assert sum(map(models.n_parameters, stages)) == models.n_parameters(model)


def sizes_of(*args, **options):
    return [len(stage) for stage in models.split(*args, **options)]


def test_sizes_by_layers_and_by_list():
    model = models.mlp(n_layers=7)
    assert sizes_of(model, 3, by="layers") == [3, 2, 2]
    assert sizes_of(model, 7, by="layers") == [1] * 7
    assert sizes_of(model, 3, by=[1, 5, 1]) == [1, 5, 1]
    assert sizes_of(model, 2, by=(3, 4)) == [3, 4]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_stages", [2, 3, 4])
def test_by_parameters_the_largest_stage_is_the_smallest_possible(seed, n_stages):
    widths = torch.randint(1, 30, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
    model = nn.Sequential(*[nn.Linear(width, 1, bias=False) for width in widths])
    largest = max(map(models.n_parameters, models.split(model, n_stages)))
    every_cut = [(0, *cuts, 9) for cuts in combinations(range(1, 9), n_stages - 1)]
    best = min(max(sum(widths[a:b]) for a, b in pairwise(cut)) for cut in every_cut)
    assert largest == best


def test_by_parameters_an_even_model_is_cut_evenly():
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(8)])
    assert sizes_of(model, 4) == [2, 2, 2, 2]
    assert sizes_of(nn.Sequential(*[nn.ReLU() for _ in range(4)]), 4) == [1, 1, 1, 1]


def test_a_block_used_twice_keeps_both_places():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    assert sizes_of(model, 2, by="layers") == [2, 2]
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    first, second = models.split(model, 2, by="layers")
    assert torch.equal(second(first(x)), model(x))


def test_names_given_by_the_learner_survive():
    model = nn.Sequential(OrderedDict(body=nn.Linear(2, 2), head=nn.Linear(2, 1)))
    assert [list(stage.state_dict()) for stage in models.split(model, 2)] == [
        ["body.weight", "body.bias"],
        ["head.weight", "head.bias"],
    ]


def test_slices_of_our_models_are_models():
    model, inputs, _ = case("translator")
    assert torch.equal(model[3:](model[:3](*inputs)), model(*inputs))
    assert model[1] is list(model)[1]
    assert list(model[-2:].state_dict())[-1] == list(model.state_dict())[-1]


def test_tied_embeddings_are_one_parameter_in_two_stages():
    tied, untied = small_lm(tie_embeddings=True, dtype=F64), small_lm(dtype=F64)
    assert models.n_parameters(untied) - models.n_parameters(tied) == 96 * 16
    first, last = models.split(tied, 2)
    assert first[0].tokens.weight is last[-1].output.weight
    tokens, targets = data.text_windows(12, n_windows=2)
    assert abs(token_loss(tied(tokens), targets).item() - 4.56) < 1.5


@pytest.mark.parametrize(
    ("n_stages", "by", "message"),
    [
        (5, "parameters", r"n_stages is 5, but this model has 4 blocks .* use 1\.\.4 stages"),
        (0, "layers", r"n_stages is 0, but this model has 4 blocks"),
        (2, "time", r"by is 'time'; use \"parameters\", \"layers\" or a list"),
        (
            2,
            [3, 2],
            r"sizes \[3, 2\] are 2 stages of 5 blocks in all; they must be 2 numbers.* model's 4 blocks",
        ),
        (2, [2, 1, 1], r"sizes \[2, 1, 1\] are 3 stages of 4 blocks in all; they must be 2 numbers"),
        (2, [4, 0], r"each at least 1"),
        (2, [], r"sizes \[\] are 0 stages"),
        (2, None, r"by is None; use \"parameters\", \"layers\" or a list of sizes"),
        (2, 2, r"by is 2; use"),
        (2, [2.0, 2.0], r"sizes \[2\.0, 2\.0\] must be 2 whole numbers, each at least 1"),
        (2, ["2", "2"], r"sizes \['2', '2'\] must be 2 whole numbers"),
        (2, np.array([1, 2]), r"sizes \[1, 2\] are 2 stages of 3 blocks"),
    ],
)
def test_a_split_that_cannot_be_says_why(n_stages, by, message):
    with pytest.raises(models.ModelError, match=message) as caught:
        models.split(models.mlp(n_layers=4), n_stages, by=by)
    assert isinstance(caught.value, PpkitError)
    assert isinstance(caught.value, ValueError)


def test_numbers_of_numpy_split_too():
    model = models.mlp(n_layers=4)
    assert [len(stage) for stage in models.split(model, np.int64(2), by=np.array([3, 1]))] == [3, 1]
    for by in ("parameters", "layers"):
        assert len(models.split(model, np.int64(2), by=by)) == 2


@pytest.mark.parametrize(
    ("n_blocks", "message"), [(0, "has 0 blocks .*give it at least one"), (1, "has 1 block and .* use 1 stage or")]
)
def test_a_model_of_few_blocks(n_blocks, message):
    with pytest.raises(models.ModelError, match=message):
        models.split(nn.Sequential(*[nn.ReLU()] * n_blocks), 2)


def test_only_sequences_can_be_split():
    with pytest.raises(models.ModelError, match=r"takes an nn\.Sequential of blocks, got a Linear"):
        models.split(nn.Linear(2, 2), 1)


# --- counting


def test_parameters_and_bytes():
    linear = nn.Linear(10, 5)
    assert models.n_parameters(linear) == 55
    assert models.parameter_bytes(linear) == 220
    assert models.parameter_bytes(linear.double()) == 440
    twice = nn.Sequential(linear, linear)
    assert (models.n_parameters(twice), models.parameter_bytes(twice)) == (55, 440)
    assert models.n_parameters(nn.ReLU()) == 0


# --- bad input


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.mlp(n_layers=0), "n_layers is 0; it must be at least 1"),
        (lambda: models.mlp(width=2.5), r"width is 2\.5; it must be at least 1, and whole"),
        (lambda: models.mlp([64, 10]), r"n_inputs is \[64, 10\]; it must be at least 1, and whole"),
        (lambda: models.split(models.mlp(), 1.5), r"split: n_stages is 1\.5, but"),
        (lambda: models.mlp(width=-3), "width is -3; it must be at least 1"),
        (lambda: models.TransformerLM(width=30), "n_heads is 4, but it must divide the width, which is 30"),
        (lambda: models.TransformerLM(n_heads=0), "n_heads is 0; it must be at least 1"),
        (lambda: models.EncoderDecoder(n_decoder_layers=0), "n_decoder_layers is 0"),
        (lambda: models.mlp(seed=None), "seed is None; it must be a whole number of at most 64 bits"),
        (lambda: models.mlp(seed="a"), "seed is 'a'"),
        (lambda: models.unet(seed=1.5), r"seed is 1\.5"),
        (lambda: models.TransformerLM(seed=2**64), f"seed is {2**64}"),
        (lambda: models.mlp(dtype="f"), r"dtype is 'f'; it must be one of torch's .* torch\.float64"),
        (lambda: models.mlp(dtype=torch.int64), r"dtype is torch\.int64"),
    ],
)
def test_sizes_that_cannot_be(build, message):
    with pytest.raises(models.ModelError, match=message):
        build()


def test_too_long_a_sequence_is_refused_with_both_lengths():
    with pytest.raises(models.ModelError, match=r"must have shape \[N, T\], got \[12\]"):
        small_lm()(torch.zeros(12, dtype=torch.int64))
    with pytest.raises(models.ModelError, match="sequences of 13 tokens, but this model takes 12 at most"):
        small_lm()(torch.zeros(1, 13, dtype=torch.int64))


# --- real learning, with wide margins


def train(model, loss_of, inputs, targets, *, epochs, batch_size, learning_rate=3e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        for x, y in data.batches(inputs, targets, batch_size, seed=epoch):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()


def test_the_mlp_reads_digits():
    model = models.mlp()
    images, labels = data.digits("train")
    train(model, lambda m, x, y: F.cross_entropy(m(x), y), images, labels, epochs=15, batch_size=32)
    images, labels = data.digits("test")
    accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
    assert accuracy > 0.9


def test_the_language_model_learns_more_than_letter_frequencies():
    tokens = data.CHARACTERS.encode(data.text("test"))
    frequency = torch.bincount(tokens).double() / len(tokens)
    frequency = frequency[frequency > 0]
    unigram_entropy = -(frequency * frequency.log()).sum().item()  # the best loss without context: about 3.1 nats

    model = models.TransformerLM(length=32, width=32, n_heads=2, n_layers=2)
    inputs, targets = data.text_windows(32, n_windows=4000)
    train(model, lambda m, x, y: token_loss(m(x), y), inputs, targets, epochs=1, batch_size=16)
    with torch.no_grad():
        inputs, targets = data.text_windows(32, n_windows=500, split="test")
        loss = token_loss(model(inputs), targets).item()
    assert loss < unigram_entropy - 0.4


def read(rows):
    return [data.WORDS.decode(row) for row in rows]


def test_the_translator_learns_numbers_by_heart():
    sources, targets = data.numbers_as_words(maximum=999, n_pairs=128)
    model = models.EncoderDecoder(source_length=3, target_length=6, width=32, n_heads=2)
    train(
        model,
        lambda m, x, y: token_loss(m(x, y[:, :-1]), y[:, 1:]),
        sources,
        targets,
        epochs=60,
        batch_size=32,
    )
    pairs = zip(read(models.greedy_decode(model, sources, 6)), read(targets), strict=True)
    assert sum(ours == theirs for ours, theirs in pairs) > 0.9 * 128


def test_greedy_decoding_pads_after_the_end_and_stops_early():
    class Parrot(nn.Module):
        """Writes the source's tokens, then the end, whatever it has written so far."""

        def forward(self, source, target):
            n_written = target.shape[1]
            tokens = F.pad(source, (0, n_written), value=data.EOS)[:, :n_written]
            return F.one_hot(tokens, 10).float()

    sources = torch.tensor([[5, 6, 2, 7], [8, 2, 2, 2]])
    written = models.greedy_decode(Parrot(), sources, 9)
    assert written.tolist() == [[5, 6, 2], [8, 2, 0]]
    assert models.greedy_decode(Parrot(), sources, 1).tolist() == [[5], [8]]


# --- the U-Net


def test_the_unet_gives_an_image_and_uses_its_skips():
    model = models.unet(width=4, dtype=F64)
    images = data.digits("train", F64, n_images=3)[0].view(3, 1, 8, 8).requires_grad_()
    output = model(images)
    assert output.shape == images.shape
    assert [skip[1:] for skip in match_skips(list(model))] == [(0, 4), (1, 3)]
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    # The centre of a 2×2 image at the bottom knows no single pixel: only the skip can tell one from its neighbour.
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter.zero_()
    assert not torch.allclose(model(images), model(images.roll(1, dims=3)))


def test_the_unet_learns_to_clean_digits():
    torch.manual_seed(0)
    clean = data.digits("train", n_images=64)[0].view(-1, 1, 8, 8)
    noisy = clean + 0.3 * torch.randn_like(clean)
    model = models.unet(width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(model(noisy), clean)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < F.mse_loss(noisy, clean) / 2
