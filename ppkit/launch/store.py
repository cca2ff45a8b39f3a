"""A key-value store in one file, by which the ranks of a run find each other."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import Store

_ENTRY = struct.Struct("<II")  # bytes of the key, bytes of the value
_DELETED = 2**32 - 1  # in place of a value's size
_SHORT, _LONG = 0.0002, 0.01  # seconds between two looks: at first, and after a while
_AT_FIRST = 0.1
_DEFAULT_TIMEOUT = timedelta(minutes=30)


class LogStore(Store):
    """Like torch's `FileStore`, a file to which every change is appended; but its waits end some 0.2 ms late, not 10.

    Whoever may read the file's folder may meet; nothing listens anywhere. It follows the contract of
    `torch.distributed.Store`: https://docs.pytorch.org/docs/stable/distributed.html#distributed-key-value-store.

    Args:
        path: of the file, the same for all ranks and new for every process group.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._known: dict[str, bytes] = {}
        self._read = 0  # bytes of the file that are in `_known`
        self._timeout = _DEFAULT_TIMEOUT

    def __del__(self) -> None:
        os.close(self._fd)

    def set(self, key: str, value: str | bytes) -> None:
        """Give a key a value."""
        with self._locked():
            self._append(key, _as_bytes(value))

    def get(self, key: str) -> bytes:
        """Return a key's value, once it has one."""
        self.wait([key])
        return self._known[key]

    def add(self, key: str, value: int) -> int:
        """Add to a key's number, 0 at first; return the sum."""
        with self._locked():
            total = int(self._known.get(key, b"0")) + value
            self._append(key, str(total).encode())
        return total

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """Give a key its value if it has the expected one, or none and none is expected; return what it has then."""
        with self._locked():
            expected, desired = _as_bytes(expected_value), _as_bytes(desired_value)
            current = self._known.get(key)
            if current == expected or (current is None and not expected):
                self._append(key, desired)
                return desired
        return expected if current is None else current

    def check(self, keys: list[str]) -> bool:
        """Tell whether all keys have values."""
        self._catch_up()
        return all(key in self._known for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Return when all keys have values.

        Raises:
            TimeoutError: if they have none after the timeout.
        """
        seconds = (timeout or self._timeout).total_seconds()
        begun = time.monotonic()
        while not self.check(keys):
            waited = time.monotonic() - begun
            if waited > seconds:
                missing = [key for key in keys if key not in self._known]
                raise TimeoutError(f"no rank has set {', '.join(missing)} within {seconds:g} s")
            time.sleep(_SHORT if waited < _AT_FIRST else _LONG)

    def delete_key(self, key: str) -> bool:
        """Take a key's value away; tell whether it had one."""
        with self._locked():
            if key not in self._known:
                return False
            self._append(key, None)
        return True

    def num_keys(self) -> int:
        """Return how many keys have values."""
        self._catch_up()
        return len(self._known)

    def set_timeout(self, timeout: timedelta) -> None:
        """Set how long to wait where nothing else is said."""
        self._timeout = timeout

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep the other ranks from writing, and know what they have written."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._catch_up()
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _append(self, key: str, value: bytes | None) -> None:
        name = key.encode()
        size = _DELETED if value is None else len(value)
        os.write(self._fd, _ENTRY.pack(len(name), size) + name + (value or b""))

    def _catch_up(self) -> None:
        """Read what has been appended since; an entry that is still being written is left for the next time."""
        size = os.fstat(self._fd).st_size
        if size == self._read:
            return
        data = os.pread(self._fd, size - self._read, self._read)
        at = 0
        while at + _ENTRY.size <= len(data):
            name_size, value_size = _ENTRY.unpack_from(data, at)
            start = at + _ENTRY.size + name_size
            end = start + (0 if value_size == _DELETED else value_size)
            if end > len(data):
                break
            key = data[at + _ENTRY.size : start].decode()
            if value_size == _DELETED:
                self._known.pop(key, None)
            else:
                self._known[key] = data[start:end]
            at = end
        self._read += at


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
