"""Small real models that can be cut in stages: an MLP, a language model and an encoder–decoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppkit.data import BOS, CHARACTERS, DIGITS, EOS, PAD, WORDS
from ppkit.errors import PpkitError

__all__ = [
    "mlp",
    "TransformerLM",
    "EncoderDecoder",
    "greedy_decode",
    "Blocks",
    "split",
    "n_parameters",
    "parameter_bytes",
    "ModelError",
]

State = tuple[Tensor, Tensor, Tensor]  # what the encoder–decoder's blocks pass on: memory, hidden, mask


class ModelError(PpkitError, ValueError):
    """A model was asked for, split or fed in a way that cannot work."""


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
        ModelError: a size below 1.
    """
    _check_sizes(n_inputs=n_inputs, width=width, n_outputs=n_outputs, n_layers=n_layers)
    with _seeded(seed):
        widths = [n_inputs, *[width] * (n_layers - 1)]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], n_outputs)).to(dtype)


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
        ModelError: a size below 1, or heads that don't divide the width; on a call, T above the length.
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
        _check_sizes(vocabulary_size=vocabulary_size, length=length, n_layers=n_layers)
        with _seeded(seed):
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
        ModelError: a size below 1, or heads that don't divide the width; on a call, S or T above the length.
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
        _check_sizes(source_vocabulary=source_vocabulary, target_vocabulary=target_vocabulary)
        _check_sizes(source_length=source_length, target_length=target_length)
        _check_sizes(n_encoder_layers=n_encoder_layers, n_decoder_layers=n_decoder_layers)
        with _seeded(seed):
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
        raise ModelError(f"split: takes an nn.Sequential of blocks, got a {type(model).__name__}")
    n_blocks = len(model)
    if not 1 <= n_stages <= n_blocks:
        raise ModelError(
            f"split: n_stages is {n_stages}, but this model has {n_blocks} blocks and each stage needs one; "
            f"use 1..{n_blocks} stages or a deeper model",
            values={"n_stages": n_stages, "n_blocks": n_blocks},
        )
    if by == "parameters":
        sizes = _balance([n_parameters(block) for block in model], n_stages)
    elif by == "layers":
        sizes = [n_blocks // n_stages + (stage < n_blocks % n_stages) for stage in range(n_stages)]
    elif isinstance(by, str):
        raise ModelError(f'split: by is {by!r}; use "parameters", "layers" or a list of sizes')
    else:
        sizes = list(by)
        if len(sizes) != n_stages or sum(sizes) != n_blocks or min(sizes) < 1:
            raise ModelError(
                f"split: sizes {sizes} are {len(sizes)} stages of {sum(sizes)} blocks in all; they must be "
                f"{n_stages} numbers, each at least 1, that sum up to the model's {n_blocks} blocks",
                values={"sizes": sizes, "n_stages": n_stages, "n_blocks": n_blocks},
            )
    kind = Blocks if isinstance(model, Blocks) else nn.Sequential
    blocks = list(model._modules.items())  # named_children() would leave out a block that is used twice
    ends = [sum(sizes[: stage + 1]) for stage in range(n_stages)]
    return [kind(OrderedDict(blocks[end - size : end])) for size, end in zip(sizes, ends, strict=True)]


def _balance(costs: Sequence[int], n_stages: int) -> list[int]:
    """Sizes of contiguous stages whose largest total cost is as small as possible."""
    # best[n] cuts the first n blocks: (largest total, sum of squared totals to break ties, sizes).
    best = {n: (sum(costs[:n]), sum(costs[:n]) ** 2, [n]) for n in range(1, len(costs) + 1)}
    for stage in range(1, n_stages):
        best = {
            n: min(
                (max(largest, last := sum(costs[cut:n])), squares + last**2, [*sizes, n - cut])
                for cut, (largest, squares, sizes) in best.items()
                if cut < n
            )
            for n in range(stage + 1, len(costs) + 1)
        }
    return best[len(costs)][2]


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


# --- Blocks of the transformers --------------------------------------------------------------------


class Attention(nn.Module):
    """Each token of x ``[N, T, width]`` reads from x itself, or from a context ``[N, S, width]``."""

    def __init__(self, width: int, n_heads: int, causal: bool = False) -> None:
        super().__init__()
        _check_sizes(width=width, n_heads=n_heads)
        if width % n_heads:
            raise ModelError(f"n_heads is {n_heads}, but it must divide the width, which is {width}")
        self.n_heads = n_heads
        self.causal = causal  # no token reads a later one
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Give ``[N, T, width]``; the mask ``[N, S]`` is True where the context may be read."""
        x = self.norm(x)
        context = x if context is None else context
        query, key, value = self.query(x), self.key(context), self.value(context)
        query, key, value = (self._by_head(each) for each in (query, key, value))
        mask = None if mask is None else mask[:, None, None, :]  # the same for each head and token
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)
        output: Tensor = self.output(read.transpose(1, 2).flatten(2))
        return output

    def _by_head(self, x: Tensor) -> Tensor:
        """``[N, T, width]`` to ``[N, n_heads, T, width / n_heads]``."""
        n_rows, length, width = x.shape
        return x.view(n_rows, length, self.n_heads, width // self.n_heads).transpose(1, 2)


class FeedForward(nn.Module):
    """A two-layer net on each token by itself: ``[N, T, width]`` to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then apply the net."""
        output: Tensor = self.net(self.norm(x))
        return output


class Embedding(nn.Module):
    """Tokens ``[N, T]`` to vectors ``[N, T, width]``: one for the token plus one for its position."""

    def __init__(self, vocabulary_size: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(length, width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Raise ModelError if T is more than the model's length."""
        length, longest = tokens.shape[1], self.positions.num_embeddings
        if length > longest:
            raise ModelError(f"got sequences of {length} tokens, but this model takes {longest} at most")
        vectors: Tensor = self.tokens(tokens) + self.positions.weight[:length]
        return vectors


class Head(nn.Module):
    """Hidden ``[N, T, width]`` to logits ``[N, T, vocabulary_size]``."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """One row of logits a token."""
        logits: Tensor = self.output(self.norm(hidden))
        return logits


class Embeddings(nn.Module):
    """First block of the encoder–decoder: source ``[N, S]`` and target ``[N, T]`` to its `State`."""

    def __init__(self, source: Embedding, target: Embedding) -> None:
        super().__init__()
        self.source = source
        self.target = target

    def forward(self, source: Tensor, target: Tensor) -> State:
        """Memory, hidden, mask."""
        return self.source(source), self.target(target), source != PAD


class CausalLayer(nn.Module):
    """Layer of the language model: x ``[N, T, width]`` to the same shape."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, n_heads, causal=True)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """Each token reads those before it."""
        x = x + self.attention(x)
        output: Tensor = x + self.feed_forward(x)
        return output


class EncoderLayer(nn.Module):
    """Layer that reads the source: updates the memory, hands on the rest."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, n_heads)
        self.feed_forward = FeedForward(width)

    def forward(self, memory: Tensor, hidden: Tensor, mask: Tensor) -> State:
        """Each source token reads all that are not padding."""
        memory = memory + self.attention(memory, mask=mask)
        memory = memory + self.feed_forward(memory)
        return memory, hidden, mask


class DecoderLayer(nn.Module):
    """Layer that writes the target: updates the hidden state, hands on the rest."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.self_attention = Attention(width, n_heads, causal=True)
        self.norm_memory = nn.LayerNorm(width)
        self.cross_attention = Attention(width, n_heads)
        self.feed_forward = FeedForward(width)

    def forward(self, memory: Tensor, hidden: Tensor, mask: Tensor) -> State:
        """Each target token reads those before it, then the memory.

        Padding needs no mask here: it comes last, and no token reads a later one.
        """
        hidden = hidden + self.self_attention(hidden)
        hidden = hidden + self.cross_attention(hidden, self.norm_memory(memory), mask)
        hidden = hidden + self.feed_forward(hidden)
        return memory, hidden, mask


class LastDecoderLayer(DecoderLayer):
    """Last block of the encoder–decoder: its `State` to logits ``[N, T, vocabulary_size]``.

    The head is no block of its own: alone in a stage it would have no gradient to send back for the memory.
    """

    def __init__(self, width: int, n_heads: int, vocabulary_size: int) -> None:
        super().__init__(width, n_heads)
        self.head = Head(width, vocabulary_size)

    def forward(self, memory: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """A decoder layer, then logits of the next token."""
        _, hidden, _ = super().forward(memory, hidden, mask)
        logits: Tensor = self.head(hidden)
        return logits


# --- Construction ----------------------------------------------------------------------------------


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initial weights from the seed, made on the CPU: alike everywhere, and no one else's numbers change."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        yield


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ModelError(f"{name} is {size}; it must be at least 1", values=sizes)
