"""Real data, small enough for a laptop: handwritten digits, text, and numbers written as words."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ppkit.units import kind_of
from ppkit.values import seed_of, whole
from ppkit.vocabulary import DataError, Vocabulary

__all__ = [
    "digits",
    "batches",
    "text",
    "text_windows",
    "CHARACTERS",
    "spell",
    "numbers_as_words",
    "DIGITS",
    "WORDS",
    "PAD",
    "BOS",
    "EOS",
    "Vocabulary",
    "DataError",
]


# --- Images: 8×8 handwritten digits ----------------------------------------------------------------


def digits(
    split: str = "train", dtype: torch.dtype = torch.float32, *, n_images: int | None = None
) -> tuple[Tensor, Tensor]:
    """Handwritten digits, 8×8 pixels: 1,437 images to train on, 360 to test on.

    A fixed permutation of the 1,797 images decides which is which: the same split and order for everyone.

    Args:
        split: ``"train"`` or ``"test"``.
        dtype: of the images, e.g. ``torch.float64`` to compare gradients exactly.
        n_images: take only the first so many.

    Returns:
        images ``[N, 64]``, row by row, from 0 (paper) to 1 (ink), and labels ``[N]``, int64, 0..9.

    Raises:
        DataError: unknown split or dtype, or more images than it has.

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, licensed CC BY 4.0; the 1,797 images that scikit-learn ships.
    """
    if not isinstance(dtype, torch.dtype):
        raise DataError(f"digits: dtype is {dtype!r}; it must be one of torch's, such as torch.float64")
    packed = gzip.decompress((Path(__file__).parent / "_data" / "digits.bin.gz").read_bytes())
    table = torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(-1, 65)  # 64 pixels and a label each
    table = table[_part(_permutation(len(table)), split, n_test=360, take=n_images, where="digits: n_images")]
    return table[:, :64].to(dtype) / 16, table[:, 64].to(torch.int64)


def batches(
    inputs: Tensor, targets: Tensor, batch_size: int, seed: int | None = None, drop_last: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once over the data in batches; the last one is ragged if the sizes don't divide.

    Args:
        inputs: ``[N, ...]``.
        targets: ``[N, ...]``.
        batch_size: rows in a batch.
        seed: None keeps the order; a number shuffles, the same way each time. Change it with the epoch.
        drop_last: leave a ragged last batch out.

    Returns:
        an iterator of ``(inputs [B, ...], targets [B, ...])``.

    Raises:
        DataError: no rows in a batch, inputs and targets that don't pair or have no rows, or a seed that cannot be.
    """
    _check_whole("batches", batch_size=batch_size)
    if seed is not None and seed_of(seed) is None:
        raise DataError(f"batches: seed is {seed!r}; it must be a whole number of at most 64 bits, or None")
    for name, rows in (("inputs", inputs), ("targets", targets)):
        if not getattr(rows, "shape", ()):
            raise DataError(f"batches: {name} must be a tensor with rows, shape [N, ...]; got {kind_of(rows)}")
    if batch_size < 1:
        raise DataError(f"batches: batch_size is {batch_size}; it must be at least 1")
    if len(inputs) != len(targets):
        raise DataError(f"batches: {len(inputs)} inputs but {len(targets)} targets; each input needs one target")
    n_rows = len(inputs) - len(inputs) % batch_size if drop_last else len(inputs)
    order = torch.arange(len(inputs)) if seed is None else _permutation(len(inputs), seed)
    chunks = (order[start : start + batch_size] for start in range(0, n_rows, batch_size))
    return ((inputs[rows], targets[rows]) for rows in chunks)


# --- Text: for the language model ------------------------------------------------------------------

CHARACTERS = Vocabulary("\n" + "".join(map(chr, range(32, 127))))  # 96: new line and printable ASCII

# Typographic signs in Python's documentation and what a keyboard has for them.
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})


def text(split: str = "train") -> str:
    """Text of Python's own ``help()`` topics, from ``pydoc_data.topics``: about 450,000 characters.

    It comes with Python, so there is nothing to download, but its wording, and so every loss measured on it,
    differs a little between Python versions (459,000 characters in 3.10.13, 511,000 in 3.13.0). Its alphabet
    doesn't: whatever is not in `CHARACTERS` is replaced, so a model has the same size everywhere.

    Args:
        split: ``"train"``, the first nine tenths, or ``"test"``, the rest.

    Returns:
        the text; every character is in `CHARACTERS`.

    Raises:
        DataError: unknown split, or this Python comes without its help topics.
    """
    _check_split(split)
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            f"text: this Python lacks pydoc_data.topics, the help topics of the standard library ({error}); "
            "use a Python with the full standard library"
        ) from error
    every = "\n\n".join(topics[name] for name in sorted(topics)).translate(_PLAIN)
    plain = re.sub(r"[^\n -~]", "?", every)
    cut = len(plain) * 9 // 10
    return plain[:cut] if split == "train" else plain[cut:]


def text_windows(
    length: int, *, n_windows: int | None = None, split: str = "train", stride: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cut the text in windows: the target of each character is the character after it.

        text     T h e   " a s s e r t "
        inputs   T h e   " a s s
        targets  h e   " a s s e

    Args:
        length: characters in a window.
        n_windows: take only the first so many.
        split: ``"train"`` or ``"test"``.
        stride: characters from one window's start to the next; ``length``, the default, means no overlap.

    Returns:
        inputs ``[N, length]`` and targets ``[N, length]``, int64 tokens of `CHARACTERS`.

    Raises:
        DataError: unknown split, or the text is too short for this.
    """
    stride = length if stride is None else stride
    _check_whole("text_windows", length=length, stride=stride)
    if length < 1 or stride < 1:
        raise DataError(f"text_windows: length={length}, stride={stride}; both must be at least 1")
    tokens = CHARACTERS.encode(text(split))
    available = max(0, (len(tokens) - length - 1) // stride + 1)
    if not available:
        raise DataError(
            f"text_windows: the {split} text, {len(tokens)} characters, holds no window of length {length}; use a "
            "smaller length"
        )
    n_windows = available if n_windows is None else n_windows
    _check_whole("text_windows", n_windows=n_windows)
    if not 1 <= n_windows <= available:
        raise DataError(
            f"text_windows: asked for {n_windows} windows of length {length}, but the {split} text, "
            f"{len(tokens)} characters, holds {available} at a stride of {stride}; use 1..{available}, or a "
            "smaller length or stride"
        )
    windows = tokens.unfold(0, length + 1, stride)[:n_windows]
    # Contiguous, as a tensor must be to be sent to another rank.
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


# --- Numbers as words: for the encoder–decoder -----------------------------------------------------

PAD, BOS, EOS = 0, 1, 2  # padding, begin, end: the same tokens in both vocabularies
_MARKS = ("<pad>", "<bos>", "<eos>")
# fmt: off
_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_MOST_WORDS = (1, 2, 4, 6, 7, 9)  # that a number of 1, 2, … 6 digits takes

DIGITS = Vocabulary([*_MARKS, *"0123456789"])
WORDS = Vocabulary([*_MARKS, *_SMALL, *_TENS, "hundred", "thousand"], separator=" ")


def spell(number: int) -> str:
    """Write a number in words, without "and" and hyphens: 407 is ``"four hundred seven"``.

    Args:
        number: 0..999,999.

    Returns:
        words of `WORDS` with spaces between them.

    Raises:
        DataError: the number is outside the range.
    """
    _check_whole("spell", number=number)
    if not 0 <= number <= 999_999:
        raise DataError(f"spell: {number} is outside 0..999999")
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _with_rest(_TENS[number // 10 - 2], number % 10)
    if number < 1000:
        return _with_rest(f"{_SMALL[number // 100]} hundred", number % 100)
    return _with_rest(f"{spell(number // 1000)} thousand", number % 1000)


def _with_rest(words: str, rest: int) -> str:
    return f"{words} {spell(rest)}" if rest else words


def numbers_as_words(
    split: str = "train", *, maximum: int = 9_999, n_pairs: int | None = None
) -> tuple[Tensor, Tensor]:
    """Numbers in digits, and the same numbers in words: a translation task that needs no download.

        source  4 0 7 <pad>                           [S]
        target  <bos> four hundred seven <eos> <pad>  [T]: the decoder reads [:-1] and predicts [1:]

    The numbers come in a fixed shuffled order; a tenth of them are for the test and never trained on.

    Args:
        split: ``"train"`` or ``"test"``.
        maximum: the numbers are 0..maximum, at most 999,999.
        n_pairs: take only the first so many.

    Returns:
        sources ``[N, S]``, tokens of `DIGITS`, and targets ``[N, T]``, tokens of `WORDS`; int64.
        S and T depend on ``maximum`` alone: 4 and 8 up to 9,999; 6 and 11 up to 999,999.

    Raises:
        DataError: unknown split, or more numbers than there are.
    """
    _check_whole("numbers_as_words", maximum=maximum)
    if not 9 <= maximum <= 999_999:
        raise DataError(f"numbers_as_words: maximum is {maximum}; it must be in 9..999999")
    order = _permutation(maximum + 1)
    numbers = _part(order, split, n_test=len(order) // 10, take=n_pairs, where="numbers_as_words: n_pairs").tolist()
    n_digits = len(str(maximum))
    n_words = _MOST_WORDS[n_digits - 1]
    sources = [_padded(DIGITS._tokens(str(number)), n_digits) for number in numbers]
    targets = [_padded([BOS, *WORDS._tokens(spell(number)), EOS], n_words + 2) for number in numbers]
    return torch.tensor(sources), torch.tensor(targets)


def _padded(tokens: list[int], length: int) -> list[int]:
    return tokens + [PAD] * (length - len(tokens))


# --- Splits ----------------------------------------------------------------------------------------


def _permutation(n: int, seed: int = 0) -> Tensor:
    """A shuffled 0..n-1 that depends on the seed alone and leaves the caller's random numbers as they are."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(seed)))


def _check_whole(where: str, **numbers: object) -> None:
    for name, number in numbers.items():
        if whole(number) is None:
            raise DataError(f"{where}: {name} is {number!r}; it must be a whole number", values={name: number})


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise DataError(f'split is {split!r}; use "train" or "test"')


def _part(order: Tensor, split: str, *, n_test: int, take: int | None, where: str) -> Tensor:
    """The test rows are the last ``n_test`` of the order, the training rows all before them.

    ``where`` is the function and its parameter that ``take`` comes from, such as ``"digits: n_images"``.
    """
    _check_split(split)
    rows = order[:-n_test] if split == "train" else order[-n_test:]
    take = len(rows) if take is None else take
    function, name = where.split(": ")
    _check_whole(function, **{name: take})
    if not 1 <= take <= len(rows):
        raise DataError(
            f"{function}: asked for {take} {name[2:]}, but the {split} split has {len(rows)}; use 1..{len(rows)}",
            values={"asked": take, "available": len(rows)},
        )
    return rows[:take]
