"""The data is what its documentation says: values, shapes, splits, order, errors."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ppkit import data
from ppkit.errors import PpkitError

DATA_FOLDER = Path(data.__file__).parent / "_data"


# --- digits


def test_the_digits_file_is_the_published_one_and_small():
    packed = (DATA_FOLDER / "digits.bin.gz").read_bytes()
    fingerprint = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    readme = (DATA_FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(packed) < 60_000
    assert fingerprint in readme
    for words in ("E. Alpaydin and C. Kaynak (1998)", "10.24432/C50P49", "CC BY 4.0", "What was changed"):
        assert words in readme


def test_digits_have_the_documented_shapes_and_range():
    for split, n_images in (("train", 1437), ("test", 360)):
        images, labels = data.digits(split)
        assert images.shape == (n_images, 64)
        assert labels.shape == (n_images,)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert (images.min().item(), images.max().item()) == (0.0, 1.0)
        assert set(labels.tolist()) == set(range(10))


def test_the_two_splits_are_all_1797_images_once():
    train, test = data.digits("train"), data.digits("test")
    packed = gzip.decompress((DATA_FOLDER / "digits.bin.gz").read_bytes())
    published = Counter(packed[start : start + 65] for start in range(0, len(packed), 65))
    ours = Counter(
        bytes([*(image * 16).to(torch.int64).tolist(), int(label)])
        for images, labels in (train, test)
        for image, label in zip(images, labels, strict=True)
    )
    assert ours == published
    assert ours.total() == 1797
    assert Counter(torch.cat([train[1], test[1]]).tolist()) == Counter(
        {0: 178, 1: 182, 2: 177, 3: 183, 4: 181, 5: 182, 6: 181, 7: 179, 8: 174, 9: 180}
    )


def test_the_split_of_the_digits_is_pinned():
    # A change of torch's randperm would silently change every stored result: it must show here.
    images, labels = data.digits("train", n_images=8)
    assert labels.tolist() == [6, 5, 5, 7, 9, 9, 8, 4]
    assert [round(total) for total in (images * 16).sum(dim=1).tolist()] == [
        294,
        337,
        280,
        258,
        314,
        340,
        343,
        336,
    ]


def test_float64_digits_are_the_same_numbers():
    images32, _ = data.digits(n_images=50)
    images64, _ = data.digits("train", torch.float64, n_images=50)
    assert images64.dtype == torch.float64
    assert torch.equal(images32.double(), images64)


def test_changing_the_digits_in_place_does_not_change_the_next_call():
    first, _ = data.digits("test")
    first.zero_()
    assert data.digits("test")[0].max() == 1


def test_digits_need_neither_numpy_nor_scikit_learn():
    code = """
import sys
sys.modules["numpy"] = sys.modules["sklearn"] = None
import warnings; warnings.simplefilter("ignore")
from ppkit import data
assert data.digits("test")[0].shape == (360, 64)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- batches


def test_batches_in_order_with_a_ragged_last_one():
    inputs, targets = torch.arange(10).view(10, 1), torch.arange(10)
    seen = list(data.batches(inputs, targets, 4))
    assert [tuple(x.shape) for x, _ in seen] == [(4, 1), (4, 1), (2, 1)]
    assert torch.cat([y for _, y in seen]).tolist() == list(range(10))


@pytest.mark.parametrize(("n_rows", "sizes"), [(10, [4, 4]), (8, [4, 4]), (3, []), (0, [])])
def test_drop_last_leaves_only_full_batches(n_rows, sizes):
    rows = torch.arange(n_rows)
    assert [len(x) for x, _ in data.batches(rows, rows, 4, drop_last=True)] == sizes


def test_shuffled_batches_keep_pairs_and_rows():
    inputs = torch.arange(100.0).view(50, 2)
    seen = list(data.batches(inputs, inputs.sum(dim=1), 8, seed=3))
    rows = torch.cat([x for x, _ in seen])
    assert torch.equal(rows.sum(dim=1), torch.cat([y for _, y in seen]))
    assert not torch.equal(rows, inputs)
    assert torch.equal(rows[rows[:, 0].argsort()], inputs)


def test_the_seed_alone_decides_the_order():
    rows = torch.arange(50)

    def order(seed):
        return torch.cat([x for x, _ in data.batches(rows, rows, 8, seed=seed)]).tolist()

    torch.manual_seed(1)
    first = order(7)
    torch.manual_seed(2)
    assert order(7) == first
    assert order(8) != first


def test_nothing_in_data_draws_from_the_callers_random_numbers():
    before = torch.get_rng_state()
    images, labels = data.digits()
    next(data.batches(images, labels, 8, seed=1))
    data.numbers_as_words(n_pairs=3)
    data.text_windows(8, n_windows=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_batches_are_refused_at_the_call():
    rows = torch.arange(10)
    with pytest.raises(data.DataError, match="batch_size is 0; it must be at least 1"):
        data.batches(rows, rows, 0)
    with pytest.raises(data.DataError, match="10 inputs but 9 targets"):
        data.batches(rows, rows[:9], 2)


# --- vocabularies


def test_a_vocabulary_goes_there_and_back():
    letters = data.Vocabulary("abc")
    assert letters.encode("cab").tolist() == [2, 0, 1]
    assert letters.decode(torch.tensor([2, 0, 1])) == "cab"
    assert letters.encode("").shape == (0,)
    words = data.Vocabulary(["<pad>", "<bos>", "<eos>", "big", "tree"], separator=" ")
    assert words.encode("big tree").tolist() == [3, 4]
    assert words.decode(torch.tensor([1, 3, 4, 2, 3, 0])) == "big tree"
    assert len(words) == 5


def test_a_vocabulary_says_what_it_does_not_know():
    letters = data.Vocabulary("abc")
    with pytest.raises(data.DataError, match=r"'x', at position 2, .* 3 symbols"):
        letters.encode("abx")
    with pytest.raises(data.DataError, match=r"token 3 is outside this vocabulary, 0\.\.2"):
        letters.decode(torch.tensor([0, 3]))
    with pytest.raises(data.DataError, match=r"got shape \[1, 2\]"):
        letters.decode(torch.tensor([[0, 1]]))


# --- text


def test_the_text_is_python_help_in_a_fixed_alphabet():
    train, test = data.text("train"), data.text("test")
    assert len(data.CHARACTERS) == 96
    assert set(train + test) <= set(data.CHARACTERS.symbols)
    assert "for_stmt" in train + test  # the help on `for`, in every Python so far
    assert len(train) > 200_000
    assert len(train) // 9 - 1 <= len(test) <= len(train) // 9 + 1
    assert data.CHARACTERS.decode(data.CHARACTERS.encode(test)) == test


def test_the_text_survives_other_help_topics(monkeypatch):
    other = ModuleType("pydoc_data.topics")
    other.topics = {"b": "“naïve” – it’s…\t日本", "a": "first"}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", other)
    assert data.text("train") + data.text("test") == 'first\n\n"na?ve" - it\'s...???'


def test_a_python_without_help_topics_gets_an_explanation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(data.DataError, match=r"lacks pydoc_data\.topics"):
        data.text()


def test_windows_predict_the_next_character():
    inputs, targets = data.text_windows(16, n_windows=5)
    text = data.text()
    assert inputs.shape == targets.shape == (5, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    for row in range(5):
        assert data.CHARACTERS.decode(inputs[row]) == text[16 * row : 16 * row + 16]
        assert data.CHARACTERS.decode(targets[row]) == text[16 * row + 1 : 16 * row + 17]


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (7, 7), (7, 3), (16, 40)])
def test_all_windows_that_fit_are_there(length, stride):
    n_characters = len(data.text("test"))
    inputs, targets = data.text_windows(length, split="test", stride=stride)
    last_start = (len(inputs) - 1) * stride
    assert last_start + length + 1 <= n_characters < last_start + stride + length + 1
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_bad_windows_are_refused():
    with pytest.raises(data.DataError, match="length=0, stride=0; both must be at least 1"):
        data.text_windows(0)
    with pytest.raises(data.DataError, match=r"asked for 10000000 windows of length 8.*use 1\.\."):
        data.text_windows(8, n_windows=10_000_000)
    with pytest.raises(data.DataError, match="holds no window of length 10000000"):
        data.text_windows(10_000_000)


# --- numbers as words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (7, "seven"),
        (10, "ten"),
        (13, "thirteen"),
        (19, "nineteen"),
        (20, "twenty"),
        (21, "twenty one"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (101, "one hundred one"),
        (407, "four hundred seven"),
        (815, "eight hundred fifteen"),
        (1000, "one thousand"),
        (1001, "one thousand one"),
        (9999, "nine thousand nine hundred ninety nine"),
        (12_000, "twelve thousand"),
        (70_030, "seventy thousand thirty"),
        (100_000, "one hundred thousand"),
        (512_068, "five hundred twelve thousand sixty eight"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_spelling(number, words):
    assert data.spell(number) == words


def test_every_number_has_its_own_spelling_in_the_vocabulary():
    spelled = [data.spell(number) for number in range(10_000)]
    assert len(set(spelled)) == 10_000
    assert {word for words in spelled for word in words.split()} == set(data.WORDS.symbols[3:])
    assert len(data.WORDS) == 33
    assert len(data.DIGITS) == 13


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_numbers_beyond_the_range_are_refused(number):
    with pytest.raises(data.DataError, match=f"{number} is outside 0..999999"):
        data.spell(number)


def test_pairs_say_the_same_number_twice():
    sources, targets = data.numbers_as_words("test", maximum=9_999)
    assert sources.shape == (1000, 4)
    assert targets.shape == (1000, 8)
    for source, target in zip(sources, targets, strict=True):
        number = int(data.DIGITS.decode(source))
        n_words = len(data.spell(number).split())
        assert data.WORDS.decode(target) == data.spell(number)
        assert target[0] == data.BOS
        assert target[n_words + 1] == data.EOS
        assert (target[n_words + 2 :] == data.PAD).all()


def test_the_encoding_of_one_pair():
    sources, targets = data.numbers_as_words(maximum=999)
    row = [data.DIGITS.decode(source) for source in sources].index("47")
    assert sources[row].tolist() == [3 + 4, 3 + 7, data.PAD]
    words = [data.WORDS.symbols.index(word) for word in ("forty", "seven")]
    assert targets[row].tolist() == [data.BOS, *words, data.EOS, data.PAD, data.PAD]


def test_train_and_test_numbers_are_all_numbers_once():
    numbers = [
        int(data.DIGITS.decode(source))
        for split in ("train", "test")
        for source in data.numbers_as_words(split, maximum=999)[0]
    ]
    assert sorted(numbers) == list(range(1000))
    assert numbers[:8] == [44, 37, 675, 775, 947, 209, 719, 500]  # pinned, as the digits' split is
    _, few = data.numbers_as_words("train", maximum=999, n_pairs=8)
    assert [data.WORDS.decode(row) for row in few] == [data.spell(number) for number in numbers[:8]]


def test_the_widest_pairs():
    sources, targets = data.numbers_as_words(maximum=999_999, n_pairs=100)
    assert sources.shape == (100, 6)
    assert targets.shape == (100, 11)


# --- bad arguments that all of them share


@pytest.mark.parametrize(
    "call",
    [
        lambda: data.digits("validation"),
        lambda: data.text("validation"),
        lambda: data.text_windows(8, split="validation"),
        lambda: data.numbers_as_words("validation"),
    ],
)
def test_an_unknown_split_is_named(call):
    with pytest.raises(data.DataError, match='split is \'validation\'; use "train" or "test"') as caught:
        call()
    assert isinstance(caught.value, PpkitError)
    assert isinstance(caught.value, ValueError)


def test_more_than_there_is():
    with pytest.raises(data.DataError, match=r"asked for 361 images, but the test split has 360"):
        data.digits("test", n_images=361)
    with pytest.raises(data.DataError, match=r"asked for 0 images"):
        data.digits(n_images=0)
    with pytest.raises(data.DataError, match=r"asked for 901 pairs, but the train split has 900"):
        data.numbers_as_words(maximum=999, n_pairs=901)
    with pytest.raises(data.DataError, match=r"maximum is 1000000; it must be in 9\.\.999999"):
        data.numbers_as_words(maximum=1_000_000)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: data.digits(n_images=2.5), "digits: n_images is 2.5; it must be a whole number"),
        (lambda: data.numbers_as_words(n_pairs="2"), "numbers_as_words: n_pairs is '2'; it must be a whole number"),
        (lambda: data.digits(dtype="float64"), "digits: dtype is 'float64'; it must be one of torch's"),
        (lambda: data.batches(None, torch.ones(4), 1), "batches: inputs must be a tensor with rows, shape [N, ...]"),
        (lambda: data.batches(torch.ones(4), torch.tensor(4.0), 1), "batches: targets must be a tensor with rows"),
        (
            lambda: data.batches(torch.ones(4), torch.ones(4), 2, seed=2**70),
            f"batches: seed is {2**70}; it must be a whole number of at most 64 bits",
        ),
        (lambda: data.DIGITS.decode(torch.tensor([3.0])), "decode: tokens are integers; got a tensor of torch.float32"),
        (
            lambda: data.batches(torch.ones(4), torch.ones(4), 2.5),
            "batches: batch_size is 2.5; it must be a whole number",
        ),
        (lambda: data.batches(torch.ones(4), torch.ones(4), 2, seed="x"), "batches: seed is 'x'"),
        (lambda: data.text_windows("a"), "text_windows: length is 'a'"),
        (lambda: data.text_windows(10**9), "holds no window of length 1000000000; use a smaller length"),
        (lambda: data.spell("7"), "spell: number is '7'"),
        (lambda: data.spell(1.5), "spell: number is 1.5"),
        (lambda: data.numbers_as_words(maximum="x"), "numbers_as_words: maximum is 'x'"),
        (lambda: data.CHARACTERS.encode(5), "encode: takes a text; got 5"),
        (lambda: data.CHARACTERS.decode([1, 2]), "decode: takes a tensor of tokens"),
    ],
)
def test_what_is_no_whole_number_or_text_is_refused(make, says):
    with pytest.raises(data.DataError, match=re.escape(says)):
        make()
