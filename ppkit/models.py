"""Small real models that can be cut in stages: an MLP, a language model, an encoder–decoder and a U-Net."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ppkit.data import BOS, CHARACTERS, DIGITS, EOS, PAD, WORDS
from ppkit.layers import (
    CausalLayer,
    DecoderLayer,
    Embedding,
    Embeddings,
    EncoderLayer,
    Head,
    LastDecoderLayer,
    ModelError,
    check_sizes,
    convolutions,
    join_channels,
)
from ppkit.partition import equal_sizes, partition
from ppkit.skips import Pop, Stash
from ppkit.units import kind_of
from ppkit.values import listed, seed_of, whole

__all__ = [
    "mlp",
    "TransformerLM",
    "EncoderDecoder",
    "greedy_decode",
    "unet",
    "Blocks",
    "split",
    "n_parameters",
    "parameter_bytes",
    "ModelError",
]


# --- Models ----------------------------------------------------------------------------------------


class Blocks(nn.Sequential):
    """An ``nn.Sequential`` whose blocks may pass on tuples: one block's tuple is the next one's arguments.

    A slice, ``model[2:4]``, is again a `Blocks` with the same modules and the same parameter names.
    """

    def forward(self, *inputs: Any) -> Any:
        """Run the blocks one after another.

        Args:
            inputs: what the first block takes; several tensors may come singly or as one tuple.

        Returns:
            what the last block returns: a tensor or a tuple of tensors.
        """
        values: Any = inputs[0] if len(inputs) == 1 else inputs
        for block in self:
            values = block(*values) if isinstance(values, tuple) else block(values)
        return values

    def __getitem__(self, index: Any) -> Any:
        # nn.Sequential would call the subclass's constructor, which takes sizes, not blocks.
        if isinstance(index, slice):
            return Blocks(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def mlp(
    n_inputs: int = 64,
    width: int = 64,
    n_outputs: int = 10,
    *,
    n_layers: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """A multilayer perceptron, by default for the 8×8 digits: images ``[N, 64]`` to logits ``[N, 10]``.

    Args:
        n_inputs: numbers in an input.
        width: numbers in a hidden layer's output.
        n_outputs: classes.
        n_layers: linear layers, hence blocks; each but the last is followed by a ReLU.
        seed: of the initial weights; the caller's random numbers are left as they are.
        dtype: of the parameters; in float64 they are the float32 ones, exactly.

    Returns:
        ``n_layers`` blocks; a split may cut between any two.

    Raises:
        ModelError: a size below 1, or a seed or dtype that cannot be.
    """
    check_sizes(n_inputs=n_inputs, width=width, n_outputs=n_outputs, n_layers=n_layers)
    with _seeded(seed, dtype):
        widths = [n_inputs, *[width] * (n_layers - 1)]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], n_outputs)).to(dtype)


def unet(width: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small U-Net for 8×8 images: ``[N, 1, 8, 8]`` to ``[N, 1, 8, 8]``, such as noisy digits to clean ones.

    Down twice, up twice; on the way up each size meets its own image from the way down, over a skip connection
    (Ronneberger et al., arXiv 1505.04597)::

        block 0   8×8  width      ── skip "large" ──►  block 4   8×8  width, then one channel
        block 1   4×4  2 × width  ── skip "small" ──►  block 3   4×4  2 × width
        block 2                   2×2  4 × width

    Args:
        width: channels at full size.
        seed: of the initial weights; the caller's random numbers are left as they are.
        dtype: of the parameters; in float64 they are the float32 ones, exactly.

    Returns:
        five blocks; a split may cut between any two, and `ppkit.skips` carries the skips over.

    Raises:
        ModelError: a width below 1, or a seed or dtype that cannot be.
    """
    check_sizes(width=width)
    with _seeded(seed, dtype):
        return nn.Sequential(
            nn.Sequential(convolutions(1, width), Stash("large")),
            nn.Sequential(nn.MaxPool2d(2), convolutions(width, 2 * width), Stash("small")),
            nn.Sequential(nn.MaxPool2d(2), convolutions(2 * width, 4 * width), nn.Upsample(scale_factor=2)),
            nn.Sequential(Pop("small", join_channels), convolutions(6 * width, 2 * width), nn.Upsample(scale_factor=2)),
            nn.Sequential(Pop("large", join_channels), convolutions(3 * width, width), nn.Conv2d(width, 1, 1)),
        ).to(dtype)


class TransformerLM(Blocks):
    """A small language model: tokens ``[N, T]`` to logits of each next token ``[N, T, vocabulary_size]``.

    Decoder-only, causal and pre-norm, with learned positions, as GPT-2. Its blocks:
    ``Embedding``, ``n_layers`` × ``CausalLayer``, ``Head``; a split may cut between any two.

    Args:
        vocabulary_size: number of different tokens.
        length: the longest T it takes.
        width: numbers per token between the blocks.
        n_heads: attention heads; divides the width.
        n_layers: transformer layers.
        tie_embeddings: the head uses the embedding's weight; cut in stages, the two need one summed gradient.
        seed: of the initial weights; the caller's random numbers are left as they are.
        dtype: of the parameters; in float64 they are the float32 ones, exactly.

    Raises:
        ModelError: a size below 1, heads that don't divide the width, a seed or dtype that cannot be; on a call,
            T above the length.
    """

    def __init__(
        self,
        vocabulary_size: int = len(CHARACTERS),
        length: int = 64,
        width: int = 64,
        *,
        n_heads: int = 4,
        n_layers: int = 4,
        tie_embeddings: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_sizes(vocabulary_size=vocabulary_size, length=length, n_layers=n_layers)
        with _seeded(seed, dtype):
            embedding = Embedding(vocabulary_size, length, width)
            layers = [CausalLayer(width, n_heads) for _ in range(n_layers)]
            head = Head(width, vocabulary_size)
        if tie_embeddings:
            head.output.weight = embedding.tokens.weight
        super().__init__(embedding, *layers, head)
        self.to(dtype)


class EncoderDecoder(Blocks):
    """A small translator: source ``[N, S]``, target so far ``[N, T]`` to logits ``[N, T, vocabulary]``.

    The transformer of Vaswani et al. (arXiv 1706.03762), pre-norm, with learned positions. Its blocks:
    ``Embeddings``, encoder layers, decoder layers, the last with the head; a split may cut between any two,
    since each hands on all that the later ones need, a tuple of

        memory [N, S, width]  the source, as encoded so far
        hidden [N, T, width]  the target, as decoded so far
        mask   [N, S]         True where the source is not padding; bool, so it has no gradient

    With as many layers in both, ``split(model, 4, by="layers")`` makes the classic cut: embeddings, half of
    the encoder; rest of the encoder; half of the decoder; rest of the decoder, head.

    Args:
        source_vocabulary: number of different source tokens.
        target_vocabulary: number of different target tokens.
        source_length: the longest S it takes.
        target_length: the longest T it takes.
        width: numbers per token between the blocks.
        n_heads: attention heads; divides the width.
        n_encoder_layers: layers that read the source.
        n_decoder_layers: layers that write the target.
        seed: of the initial weights; the caller's random numbers are left as they are.
        dtype: of the parameters; in float64 they are the float32 ones, exactly.

    Raises:
        ModelError: a size below 1, heads that don't divide the width, a seed or dtype that cannot be; on a call,
            S or T above the length.
    """

    def __init__(
        self,
        source_vocabulary: int = len(DIGITS),
        target_vocabulary: int = len(WORDS),
        source_length: int = 6,
        target_length: int = 11,
        width: int = 64,
        *,
        n_heads: int = 4,
        n_encoder_layers: int = 2,
        n_decoder_layers: int = 2,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_sizes(source_vocabulary=source_vocabulary, target_vocabulary=target_vocabulary)
        check_sizes(source_length=source_length, target_length=target_length)
        check_sizes(n_encoder_layers=n_encoder_layers, n_decoder_layers=n_decoder_layers)
        with _seeded(seed, dtype):
            source = Embedding(source_vocabulary, source_length, width)
            target = Embedding(target_vocabulary, target_length, width)
            encoder = [EncoderLayer(width, n_heads) for _ in range(n_encoder_layers)]
            decoder = [DecoderLayer(width, n_heads) for _ in range(n_decoder_layers - 1)]
            last = LastDecoderLayer(width, n_heads, target_vocabulary)
        super().__init__(Embeddings(source, target), *encoder, *decoder, last)
        self.to(dtype)


@torch.no_grad()
def greedy_decode(model: nn.Module, source: Tensor, length: int) -> Tensor:
    """Translate by taking the likeliest token, one after another, until every row has ended.

    Args:
        model: an `EncoderDecoder`, or anything called as it is.
        source: ``[N, S]``.
        length: tokens to write at most, the end token included; at most the model's target length.

    Returns:
        ``[N, up to length]``, without the begin token; padding after the end token.
    """
    target = torch.full((len(source), 1), BOS, device=source.device)
    ended = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    for _ in range(length):
        token = model(source, target)[:, -1].argmax(dim=-1).masked_fill(ended, PAD)
        target = torch.cat([target, token[:, None]], dim=1)
        ended |= token == EOS
        if ended.all():
            break
    return target[:, 1:]


# --- Cutting a model in stages ---------------------------------------------------------------------


def split(model: nn.Sequential, n_stages: int, by: str | Sequence[int] = "parameters") -> list[nn.Sequential]:
    """Cut a model in stages: contiguous slices that hold the model's own modules, not copies.

    Parameter names stay those of the whole model, so the stages' ``state_dict`` together are the model's.

    Args:
        model: a sequence of blocks.
        n_stages: how many slices.
        by: ``"parameters"``: the stage with the most parameters has as few as it can; ``"layers"``: as many
            blocks in each, the first ones may have one more; a list: so many blocks in each.

    Returns:
        the stages in order; one after the other they compute what the model computes.

    Raises:
        ModelError: not a sequence of blocks, fewer blocks than stages, or sizes that don't fit.
    """
    if not isinstance(model, nn.Sequential):
        raise ModelError(f"split: takes an nn.Sequential of blocks, got {kind_of(model)}")
    n_blocks = len(model)
    count = whole(n_stages)
    if count is None or not 1 <= count <= n_blocks:
        blocks, stages = ("block", "1 stage") if n_blocks == 1 else ("blocks", f"1..{n_blocks} stages")
        use = f"use {stages} or a deeper model" if n_blocks else "give it at least one"
        raise ModelError(
            f"split: n_stages is {n_stages!r}, but this model has {n_blocks} {blocks} and each stage needs one; {use}",
            values={"n_stages": n_stages, "n_blocks": n_blocks},
        )
    sizes = _sizes(model, count, by)
    kind = Blocks if isinstance(model, Blocks) else nn.Sequential
    named = list(model._modules.items())  # named_children() would leave out a block that is used twice
    return [kind(OrderedDict(named[end - size : end])) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _sizes(model: nn.Sequential, n_stages: int, by: Any) -> list[int]:
    """How many blocks each stage has; ModelError where ``by`` says something else."""
    if isinstance(by, str):
        if by == "parameters":
            return partition([n_parameters(block) for block in model], n_stages)
        if by == "layers":
            return equal_sizes(len(model), n_stages)
    given = listed(by)
    if given is None:
        raise ModelError(f'split: by is {by!r}; use "parameters", "layers" or a list of sizes')
    sizes = [size for size in map(whole, given) if size is not None]
    if len(sizes) != len(given):
        raise ModelError(f"split: sizes {given} must be {n_stages} whole numbers, each at least 1")
    if len(sizes) != n_stages or sum(sizes) != len(model) or min(sizes) < 1:
        raise ModelError(
            f"split: sizes {sizes} are {len(sizes)} stages of {sum(sizes)} blocks in all; they must be "
            f"{n_stages} numbers, each at least 1, that sum up to the model's {len(model)} blocks",
            values={"sizes": sizes, "n_stages": n_stages, "n_blocks": len(model)},
        )
    return sizes


def n_parameters(module: nn.Module) -> int:
    """Count a module's parameters; one that is used twice counts once.

    Args:
        module: a model, a stage or a layer.

    Returns:
        numbers in all its parameters.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def parameter_bytes(module: nn.Module) -> int:
    """Memory of a module's parameters, in bytes; gradients take as much again.

    Args:
        module: a model, a stage or a layer.

    Returns:
        bytes: 4 a parameter in float32, 8 in float64.
    """
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


# --- Construction ----------------------------------------------------------------------------------


@contextmanager
def _seeded(seed: int, dtype: torch.dtype) -> Iterator[None]:
    """Initial weights from the seed, made on the CPU: alike everywhere, and no one else's numbers change.

    Before a model is made, what it is made with is checked: ModelError if the seed or the dtype cannot be.
    """
    number = seed_of(seed)
    if number is None:
        raise ModelError(f"seed is {seed!r}; it must be a whole number of at most 64 bits", values={"seed": seed})
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ModelError(f"dtype is {dtype!r}; it must be one of torch's for parameters, such as torch.float64")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(number)  # torch.manual_seed would reseed the GPUs too
        yield
