"""Shared memory of one run: what every rank waits for, and what it sends, expects and takes part in."""

from __future__ import annotations

import json
import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ppkit.launch.frames import Frame

_STATE = struct.Struct("<Qd")  # progress count, start of the pending call (0.0: none pending)
_STEPS = struct.Struct("<Q")  # optimizer steps taken; behind the state
_STATE_SIZE = 64  # one cache line a rank
# A stamp tells of one call: tag, group, time, site; name, dtype, number of dimensions, reduction, root, six sizes.
# Its number among the calls of that tag and group, from 1, is written last: only then it counts.
DETAILS = struct.Struct("<BBBBi6I")
_STAMP = struct.Struct(f"<qIdI{DETAILS.size}sQ")
_NUMBER = struct.Struct("<Q")
_STAMP_SIZE = _STAMP.size  # 64, a cache line
_NUMBER_AT = _STAMP_SIZE - _NUMBER.size
_SENT, _EXPECTED, _JOINED = 2048, 1024, 1024  # stamps kept per link and per rank; gloo holds far fewer in flight
_LINK_SIZE = (_SENT + _EXPECTED) * _STAMP_SIZE
_RANK_SIZE = _JOINED * _STAMP_SIZE
_STRIDE = 67  # slots between two tags, so that neither tags nor numbers in flight at once share one

Details = bytes
"""What both ends of a message, and all ranks of a collective, must agree on, packed by `DETAILS`."""


class RankState(NamedTuple):
    """What one rank is doing, as the watcher sees it.

    Attributes:
        progress: communication calls begun and ended so far.
        waiting_since: `time.perf_counter()` at the start of the call that blocks the rank, or None.
    """

    progress: int
    waiting_since: float | None


Stamp = tuple[float, int, Details]
"""One call of one rank: the time (0.0: a receive's), the number of the learner's line, what it is."""


class Board:
    """A memory-mapped file that the ranks of a run write and its watcher reads.

    A rank's state takes one write of 16 bytes, so that the watcher learns without asking (and even when
    a rank holds Python's lock) who computes and who waits. Calls are stamped: gloo keeps the messages of a
    (sender, receiver, tag) in order, so that the k-th receive belongs to the k-th send; and the k-th collective of a
    group is one on all of its ranks. A stamp has its place by tag, group and number, so that it is found at once;
    one that has been written over, or is not there yet, is not found.
    """

    def __init__(self, path: Path, n_ranks: int) -> None:
        self._path = path
        self._n_ranks = n_ranks
        size = n_ranks * (_STATE_SIZE + _RANK_SIZE + n_ranks * _LINK_SIZE)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)  # sparse: pages that nobody touches take no memory
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        if hasattr(mmap, "MADV_RANDOM"):  # not on Windows
            # Page by page: Linux would read megabytes ahead, and fill them with zeros, at the first touch of a file.
            self._map.madvise(mmap.MADV_RANDOM)
        self._links = n_ranks * (_STATE_SIZE + _RANK_SIZE)
        self._progress = 0
        self._sites: dict[Frame, int] = {}

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    # Who waits

    def wait_begins(self, rank: int, now: float) -> None:
        """Note that `rank` is inside a call that ends only when another rank does its part."""
        self._progress += 1
        _STATE.pack_into(self._map, rank * _STATE_SIZE, self._progress, now)

    def wait_ends(self, rank: int) -> None:
        """Note that `rank` goes on."""
        self._progress += 1
        _STATE.pack_into(self._map, rank * _STATE_SIZE, self._progress, 0.0)

    def step_taken(self, rank: int) -> None:
        """Count an optimizer step of `rank`."""
        at = rank * _STATE_SIZE + _STATE.size
        _STEPS.pack_into(self._map, at, _STEPS.unpack_from(self._map, at)[0] + 1)

    def steps(self) -> list[int]:
        """Return how many optimizer steps each rank has taken."""
        return [_STEPS.unpack_from(self._map, rank * _STATE_SIZE + _STATE.size)[0] for rank in range(self._n_ranks)]

    def tell(self, rank: int, state: RankState, steps: int) -> None:
        """Note of `rank` what another machine's board says."""
        _STATE.pack_into(self._map, rank * _STATE_SIZE, state.progress, state.waiting_since or 0.0)
        _STEPS.pack_into(self._map, rank * _STATE_SIZE + _STATE.size, steps)

    def state(self, rank: int) -> RankState:
        """Return what `rank` is doing now."""
        progress, since = _STATE.unpack_from(self._map, rank * _STATE_SIZE)
        return RankState(progress, since or None)

    # Who calls what

    def post_send(self, source: int, target: int, tag: int, group: int, number: int, call: Stamp) -> Details | None:
        """Stamp a message that its sender is about to send; return what its receiver expects, if that is there."""
        at = self._links + (source * self._n_ranks + target) * _LINK_SIZE
        slot = number + _STRIDE * tag + group
        _STAMP.pack_into(self._map, at + slot % _SENT * _STAMP_SIZE, tag, group, *call, number + 1)
        return self._find(at + (_SENT + slot % _EXPECTED) * _STAMP_SIZE, tag, group, number)

    def post_receive(self, source: int, target: int, tag: int, group: int, number: int, call: Stamp) -> Details | None:
        """Stamp a message that its receiver is about to wait for; return what was sent, if it has been."""
        at = self._links + (source * self._n_ranks + target) * _LINK_SIZE
        slot = number + _STRIDE * tag + group
        _STAMP.pack_into(self._map, at + (_SENT + slot % _EXPECTED) * _STAMP_SIZE, tag, group, *call, number + 1)
        return self._find(at + slot % _SENT * _STAMP_SIZE, tag, group, number)

    def post_collective(self, rank: int, group: int, number: int, call: Stamp) -> None:
        """Stamp the collective `number` of a group that `rank` is about to take part in."""
        _STAMP.pack_into(self._map, self._joined(rank, group, number), 0, group, *call, number + 1)

    def joined(self, rank: int, group: int, number: int) -> Details | None:
        """Return how a rank takes part in a group's collective `number`, if it does already."""
        return self._find(self._joined(rank, group, number), 0, group, number)

    def send(self, source: int, target: int, tag: int, group: int, number: int) -> Stamp | None:
        """Return the stamp of a message's send, if it is there."""
        return self._read(self._sent(source, target, tag, group, number), tag, group, number)

    def receive(self, source: int, target: int, tag: int, group: int, number: int) -> Stamp | None:
        """Return the stamp of a message's receive, if it is there."""
        return self._read(self._expected(source, target, tag, group, number), tag, group, number)

    def collective(self, rank: int, group: int, number: int) -> Stamp | None:
        """Return a rank's stamp of a group's collective `number`, if it is there."""
        return self._read(self._joined(rank, group, number), 0, group, number)

    def _link(self, source: int, target: int) -> int:
        return self._links + (source * self._n_ranks + target) * _LINK_SIZE

    def _sent(self, source: int, target: int, tag: int, group: int, number: int) -> int:
        return self._link(source, target) + (number + _STRIDE * tag + group) % _SENT * _STAMP_SIZE

    def _expected(self, source: int, target: int, tag: int, group: int, number: int) -> int:
        slot = _SENT + (number + _STRIDE * tag + group) % _EXPECTED
        return self._link(source, target) + slot * _STAMP_SIZE

    def _joined(self, rank: int, group: int, number: int) -> int:
        return self._n_ranks * _STATE_SIZE + rank * _RANK_SIZE + (number + group) % _JOINED * _STAMP_SIZE

    def _find(self, at: int, tag: int, group: int, number: int) -> Details | None:
        # The number first, and mostly alone: what belongs to it has been written before it.
        if _NUMBER.unpack_from(self._map, at + _NUMBER_AT)[0] != number + 1:
            return None
        stamp = self._read(at, tag, group, number)
        return None if stamp is None else stamp[2]

    def _read(self, at: int, tag: int, group: int, number: int) -> Stamp | None:
        if _NUMBER.unpack_from(self._map, at + _NUMBER_AT)[0] != number + 1:
            return None
        its_tag, its_group, time, site, details, _ = _STAMP.unpack_from(self._map, at)
        return (time, site, details) if its_tag == tag and its_group == group else None

    def beside(self, name: str) -> Path:
        """Return where a file of this run lies."""
        return self._path.with_name(name)

    # Lines of the learner's code

    def site(self, rank: int, frame: Frame) -> int:
        """Return the number under which others find this line of `rank`'s."""
        number = self._sites.get(frame)
        if number is None:
            number = self._sites[frame] = len(self._sites) + 1
            with suppress(OSError), self._sites_of(rank).open("a") as file:
                file.write(json.dumps(frame) + "\n")
        return number

    def frame(self, rank: int, site: int) -> Frame | None:
        """Return a line of `rank`'s by its number; None if it is not known."""
        with suppress(OSError, ValueError):
            lines = self._sites_of(rank).read_text().splitlines()
            if 0 < site <= len(lines):
                file, line, function = json.loads(lines[site - 1])
                return file, line, function
        return None

    def _sites_of(self, rank: int) -> Path:
        return self.beside(f"lines.{rank}")
