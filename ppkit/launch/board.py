"""Shared memory of one run: what every rank waits for, and when each message was sent."""

from __future__ import annotations

import mmap
import os
import struct
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

_STATE = struct.Struct("<Qd")  # progress count, start of the pending call (0.0: none pending)
_COUNT = struct.Struct("<Q")  # messages posted on a link so far
_STAMP = struct.Struct("<qd")  # tag, time of the send
_STATE_SIZE = 64  # one cache line a rank
_SLOTS = 4096  # stamps kept per link; a ring, since gloo holds far fewer messages in flight
_LINK_SIZE = 8 + _SLOTS * _STAMP.size


class RankState(NamedTuple):
    """What one rank is doing, as the watcher sees it.

    Attributes:
        progress: communication calls begun and ended so far.
        waiting_since: `time.perf_counter()` at the start of the call that blocks the rank, or None.
    """

    progress: int
    waiting_since: float | None


class Board:
    """A memory-mapped file that the ranks of a run write and its watcher reads.

    A rank's state takes one write of 16 bytes, so that the watcher learns without asking (and even when
    a rank holds Python's lock) who computes and who waits. Links carry the time of each send: gloo keeps the
    messages of a (sender, receiver, tag) in order, so that the k-th receive belongs to the k-th send.
    """

    def __init__(self, path: Path, n_ranks: int) -> None:
        self._n_ranks = n_ranks
        size = n_ranks * _STATE_SIZE + n_ranks * n_ranks * _LINK_SIZE
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)  # sparse: pages that nobody touches take no memory
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._progress = 0
        self._read: dict[int, int] = defaultdict(int)
        self._numbered: dict[tuple[int, int], int] = defaultdict(int)
        self._unclaimed: dict[tuple[int, int, int], float] = {}

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    def wait_begins(self, rank: int, now: float) -> None:
        """Note that `rank` is inside a call that ends only when another rank does its part."""
        self._progress += 1
        _STATE.pack_into(self._map, rank * _STATE_SIZE, self._progress, now)

    def wait_ends(self, rank: int) -> None:
        """Note that `rank` goes on."""
        self._progress += 1
        _STATE.pack_into(self._map, rank * _STATE_SIZE, self._progress, 0.0)

    def state(self, rank: int) -> RankState:
        """Return what `rank` is doing now."""
        progress, since = _STATE.unpack_from(self._map, rank * _STATE_SIZE)
        return RankState(progress, since or None)

    def _link(self, source: int, target: int) -> int:
        return self._n_ranks * _STATE_SIZE + (source * self._n_ranks + target) * _LINK_SIZE

    def post(self, source: int, target: int, tag: int, now: float) -> None:
        """Stamp a message that `source` is about to send to `target`."""
        link = self._link(source, target)
        (count,) = _COUNT.unpack_from(self._map, link)
        _STAMP.pack_into(self._map, link + 8 + (count % _SLOTS) * _STAMP.size, tag, now)
        _COUNT.pack_into(self._map, link, count + 1)

    def sent_at(self, source: int, target: int, tag: int, number: int) -> float | None:
        """Return when `source` sent `target` its message `number` (from 0) with `tag`; each is asked for once.

        Called after the message has arrived, so its stamp is there; None where the sender is not observed.
        """
        link = self._link(source, target)
        (count,) = _COUNT.unpack_from(self._map, link)
        for i in range(self._read[source], count):
            stamped_tag, time = _STAMP.unpack_from(self._map, link + 8 + (i % _SLOTS) * _STAMP.size)
            self._unclaimed[source, stamped_tag, self._numbered[source, stamped_tag]] = time
            self._numbered[source, stamped_tag] += 1
        self._read[source] = count
        return self._unclaimed.pop((source, tag, number), None)
