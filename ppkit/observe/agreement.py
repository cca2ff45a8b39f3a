"""Compares what belongs together before gloo does: both ends of a message, all ranks of a collective.

gloo carries bytes. Where sizes or types differ it ends the process, waits for ever or fills in wrong numbers; so every
rank stamps its call on the run's board first, and whoever comes second compares.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from ppkit.errors import MismatchError
from ppkit.launch.board import DETAILS, Board, Details, Stamp
from ppkit.launch.disagree import (
    ANY_SHAPE,
    DTYPES,
    MAX_DIMS,
    NAMES,
    REDUCTIONS,
    blamed,
    collective_calls,
    describe,
    mismatch_text,
    shape_of,
)
from ppkit.launch.frames import Frame
from ppkit.observe.fields import Exchange, Message

_NAME = {name: i for i, name in enumerate(NAMES)}
_DTYPE = {getattr(torch, name): i for i, name in enumerate(DTYPES) if name}
_REDUCTION = {getattr(dist.ReduceOp, name): i for i, name in enumerate(REDUCTIONS) if name}
_PADDING = tuple((0,) * (MAX_DIMS - n) for n in range(MAX_DIMS + 1))
_UNEVEN = {"all_to_all_single"}  # whose tensors may have other sizes on other ranks


@lru_cache(maxsize=1024)
def _packed(name: str, dtype: Any, shape: Sequence[int] | None, root: int, reduction: Any) -> Details:
    n_dims, sizes = ANY_SHAPE, _PADDING[0]
    if shape is not None and len(shape) <= MAX_DIMS and name not in _UNEVEN and all(size < 2**32 for size in shape):
        n_dims = len(shape)
        sizes = (*shape, *_PADDING[n_dims])
    return DETAILS.pack(_NAME[name], _DTYPE.get(dtype, 0), n_dims, _REDUCTION.get(reduction, 0), root, *sizes)


def details_of(name: str, tensor: Any, root: int = -1, reduction: Any = None) -> Details:
    """Return what must agree, packed; what cannot be compared is left open."""
    if isinstance(tensor, torch.Tensor):
        return _packed(name, tensor.dtype, tensor.shape, root, reduction)
    return _packed(name, None, None, root, reduction)


def fits(one: Details, other: Details) -> bool:
    """Tell whether a tensor may be received as another: equal, or the same rows with some dimensions merged.

    The call, the reduction and the root are left to others.
    """
    if one[1:3] == other[1:3] and one[8:] == other[8:]:
        return True
    _, dtype, n_dims, *_ = one
    _, other_dtype, other_n_dims, *_ = other
    if dtype != other_dtype:
        return not (dtype and other_dtype)
    if ANY_SHAPE in (n_dims, other_n_dims):
        return True
    a, b = _ends(shape_of(one)), _ends(shape_of(other))
    return max(a) == max(b) and (a <= b or b <= a)


def _ends(shape: Sequence[int]) -> set[int]:
    """Return after how many elements the rows of each dimension end: those of [4, 2, 3] after 3, 6 and 24."""
    ends, size = {1}, 1
    for n in reversed(shape):
        size *= n
        ends.add(size)
    return ends if size else {0}


class Agreement:
    """One rank's part in it.

    Args:
        rank: this rank.
        board: of the run.
    """

    def __init__(self, rank: int, board: Board) -> None:
        self._rank = rank
        self._board = board
        self._numbers: dict[tuple[int, int, int, int], int] = defaultdict(int)  # by link, tag and group
        self._collectives: dict[int, int] = defaultdict(int)  # by group
        self._unsure = False  # since an irecv from anyone, which takes nobody knows which message

    def _site(self, line: Frame | None) -> int:
        """Return the number of a line of the learner's; 0: it is none of his."""
        return 0 if line is None else self._board.site(self._rank, line)

    def sends(
        self, peer: int, tag: int, group: Any, name: str, tensor: torch.Tensor, now: float, line: Frame | None
    ) -> Message:
        """Stamp a send at `now`, from a line of the learner's; return what identifies the message at both ends.

        Raises:
            MismatchError: if the receiver waits already, with another kind of buffer.
        """
        message = self._number(self._rank, peer, tag, group)
        mine = (now, self._site(line), details_of(name, tensor))
        wanted = self._board.post_send(*message, mine)
        if wanted is not None and not fits(mine[2], wanted):
            self._refuse(message, mine, self._board.receive(*message))
        return message

    def expects(self, peer: int, tag: int, group: Any, name: str, tensor: torch.Tensor, line: Frame | None) -> Message:
        """Stamp a receive; return what identifies the message at both ends.

        Raises:
            MismatchError: if it has been sent already, and is something else.
        """
        message = self._number(peer, self._rank, tag, group)
        if not self._unsure:
            mine = (0.0, self._site(line), details_of(name, tensor))
            sent = self._board.post_receive(*message, mine)
            if sent is not None and not fits(mine[2], sent):
                self._refuse(message, self._board.send(*message), mine)
        return message

    def received(self, peer: int, tag: int, group: Any, name: str, tensor: torch.Tensor, line: Frame | None) -> Message:
        """Return what identifies a message that was received from anyone, and came from `peer`.

        Raises:
            MismatchError: if it is something else than the buffer.
        """
        message = self._number(peer, self._rank, tag, group)
        sent, mine = self._board.send(*message), (0.0, self._site(line), details_of(name, tensor))
        if sent is not None and not self._unsure and not fits(mine[2], sent[2]):
            self._refuse(message, sent, mine)
        return message

    def expects_from_anyone(self) -> None:
        """Note an irecv without a sender: from now on nobody knows which receive takes which message."""
        self._unsure = True

    def _number(self, source: int, target: int, tag: int, group: Any) -> Message:
        """Identify the next message on a link, alike at both ends."""
        key = (source, target, tag, 0 if group is None else group_number(group))
        number = self._numbers[key]
        self._numbers[key] = number + 1
        return (*key, number)

    def _refuse(self, message: Message, sent: Stamp | None, wanted: Stamp | None) -> None:
        if sent is None or wanted is None:  # written over since
            return
        source, target, tag, _group, number = message
        calls = [
            {**describe(self._board, source, number, sent), "peer": target, "tag": tag},
            {**describe(self._board, target, number, wanted), "peer": source, "tag": tag},
        ]
        raise mismatch(calls)

    def joins(
        self, name: str, tensor: Any, group: Any, root: int, reduction: Any, now: float, line: Frame | None
    ) -> Exchange:
        """Stamp a collective at `now`, and compare it with those of the ranks that are there already.

        Returns:
            what identifies it.

        Raises:
            MismatchError: if they are in another collective, or have another root, operation, shape or dtype.
        """
        key = group_number(group)
        number = self._collectives[key]
        self._collectives[key] = number + 1
        mine = details_of(name, tensor, root, reduction)
        self._board.post_collective(self._rank, key, number, (now, self._site(line), mine))
        exchange = tuple(dist.get_process_group_ranks(group)), key, number
        for member in exchange[0]:
            theirs = None if member == self._rank else self._board.joined(member, key, number)
            if theirs is not None and not _is_one(mine, theirs):
                raise mismatch(collective_calls(self._board, *exchange), exchange)
        return exchange

    def last_joined(self, exchange: Exchange) -> float | None:
        """Return when the last rank came to a collective; None: not all stamps are there, or still there."""
        members, key, number = exchange
        stamps = [self._board.collective(member, key, number) for member in members]
        return max(stamp[0] for stamp in stamps if stamp) if all(stamps) else None


def _is_one(mine: Details, theirs: Details) -> bool:
    """Tell whether two ranks mean the same collective."""
    if mine == theirs:
        return True
    if mine[0] != theirs[0] or mine[4:8] != theirs[4:8] or (mine[3] != theirs[3] and mine[3] and theirs[3]):
        return False
    return fits(mine, theirs)


def group_number(group: Any) -> int:
    """Return a number of a process group that is the same on all of its ranks; 0: all ranks."""
    if group is None or group is dist.group.WORLD:
        return 0
    return zlib.crc32(group.group_name.encode())


def mismatch(calls: list[dict[str, Any]], collective: tuple[Any, ...] | None = None) -> MismatchError:
    """Return the error of calls that don't agree."""
    return MismatchError(mismatch_text(calls), rank=blamed(calls), pending=calls, collective=collective)
