"""The models' layers: the transformers', pre-norm, and the U-Net's, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppkit.data import PAD
from ppkit.errors import PpkitError
from ppkit.values import whole

State = tuple[Tensor, Tensor, Tensor]  # what the encoder–decoder's blocks pass on: memory, hidden, mask


class ModelError(PpkitError, ValueError):
    """A model was asked for, split or fed in a way that cannot work."""


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1."""
    for name, size in sizes.items():
        if (whole(size) or 0) < 1:
            raise ModelError(f"{name} is {size!r}; it must be at least 1, and whole", values=sizes)


class Attention(nn.Module):
    """Each token of x ``[N, T, width]`` reads from x itself, or from a context ``[N, S, width]``."""

    def __init__(self, width: int, n_heads: int, causal: bool = False) -> None:
        super().__init__()
        check_sizes(width=width, n_heads=n_heads)
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
        if tokens.dim() != 2:
            got = list(tokens.shape)
            raise ModelError(f"tokens must have shape [N, T], got {got}; tokens[None] makes one row a batch")
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


def convolutions(n_inputs: int, n_outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with a ReLU: images ``[N, n_inputs, H, W]`` to ``[N, n_outputs, H, W]``."""
    layers = [nn.Conv2d(channels, n_outputs, 3, padding=1) for channels in (n_inputs, n_outputs)]
    for layer in layers:  # so that ten layers in a row neither swell nor fade (He et al., arXiv 1502.01852)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layer.bias.data.zero_()  # type: ignore[union-attr]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())


def join_channels(x: Tensor, skip: Tensor) -> Tensor:
    """The channels of two images of the same size, one behind the other."""
    return torch.cat([x, skip], dim=1)
