"""Vocabularies: text to tokens and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppkit.errors import PpkitError


class DataError(PpkitError, ValueError):
    """Data was asked for that does not exist, or that does not fit together."""


class Vocabulary:
    """A list of symbols; a symbol's token is its position in it.

    Args:
        symbols: every symbol once; ``<pad>``, ``<bos>`` and ``<eos>`` are marks, which ``decode`` leaves out.
        separator: what stands between two symbols in a text; ``""`` makes every character a symbol.
    """

    def __init__(self, symbols: Sequence[str], separator: str = "") -> None:
        self.symbols = tuple(symbols)
        self.separator = separator
        self._token_of = {symbol: token for token, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} symbols: {' '.join(map(repr, self.symbols[:5]))} …)"

    def encode(self, text: str) -> Tensor:
        """Tokens of a text.

        Args:
            text: symbols with the separator between them.

        Returns:
            ``[L]``, int64.

        Raises:
            DataError: a symbol is not in the vocabulary.
        """
        return torch.tensor(self._tokens(text), dtype=torch.int64)

    def _tokens(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise DataError(f"encode: takes a text; got {text!r}")
        symbols = text.split(self.separator) if self.separator else text
        try:
            return [self._token_of[symbol] for symbol in symbols]
        except KeyError as error:
            unknown = error.args[0]
            raise DataError(
                f"encode: {unknown!r}, at position {list(symbols).index(unknown)}, is not in this vocabulary "
                f"of {len(self)} symbols; see its .symbols"
            ) from None

    def decode(self, tokens: Tensor) -> str:
        """Text of some tokens, up to the first ``<eos>``; other marks are left out.

        Args:
            tokens: ``[L]``, integers.

        Returns:
            the symbols, with the separator between them.

        Raises:
            DataError: a token is no integer or not in the vocabulary, or there is more than one row.
        """
        if not isinstance(tokens, Tensor):
            raise DataError(f"decode: takes a tensor of tokens, shape [L]; got {tokens!r}")
        if tokens.dim() != 1:
            shape = list(tokens.shape)
            raise DataError(f"decode: takes one row of tokens, shape [L], got shape {shape}; decode row by row")
        if len(tokens) and (tokens.is_floating_point() or tokens.is_complex()):  # an empty tensor is one of floats
            raise DataError(f"decode: tokens are integers; got a tensor of {tokens.dtype}: use .long(), or .argmax()")
        symbols: list[str] = []
        for token in tokens.tolist():
            if not 0 <= token < len(self):
                raise DataError(f"decode: token {token} is outside this vocabulary, 0..{len(self) - 1}")
            if self.symbols[token] == "<eos>":
                break
            symbols.append(self.symbols[token])
        return self.separator.join(symbol for symbol in symbols if symbol not in ("<pad>", "<bos>"))
