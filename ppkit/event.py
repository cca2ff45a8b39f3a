"""One thing that one rank did: the event that every timeline is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, index
from typing import Any, NamedTuple

from ppkit.errors import TimelineError
from ppkit.values import whole

__all__ = ["COMM_KINDS", "COMPUTE_KINDS", "Event", "check_events", "check_fields"]

COMPUTE_KINDS = ("F", "B", "I", "W", "OPTIM", "COMPUTE")
COMM_KINDS = ("SEND", "RECV", "WAIT", "COLLECTIVE")
_KINDS = frozenset(COMPUTE_KINDS + COMM_KINDS)
_MOST_RANKS = 1_000_000  # each takes a row of its own: more is a mistake, and would take all memory
_WHOLE = ("rank", "stage", "microbatch", "peer", "message")  # fields that are whole numbers, or None
_PLAIN = {int, type(None)}
_numbers = attrgetter(*_WHOLE)
_NAMES = {"COMPUTE": "compute", "WAIT": "wait", "COLLECTIVE": "collective"}


class Event(NamedTuple):
    """One thing that one rank did, from ``start`` to ``end`` in seconds since the timeline's zero.

    Args:
        rank: the process that did it.
        kind: compute lane: ``F`` forward, ``B`` full backward, ``I`` input gradient, ``W`` weight gradient,
            ``OPTIM`` optimizer step, ``COMPUTE`` any other; communication lane: ``SEND``, ``RECV``, ``WAIT``,
            ``COLLECTIVE``.
        start: seconds; for ``SEND`` when it was sent, for ``RECV`` when the receiver began to wait.
        end: seconds; for ``SEND`` when it arrived, for ``RECV`` when the receiver had it.
        stage: the slice of the model, where there is one.
        microbatch: its index, where there is one.
        name: what ran, such as ``"forward"``, ``"all_reduce"`` or ``"SGD.step"``.
        peer: the other rank of a ``SEND`` or ``RECV``.
        tag: the message's tag.
        nbytes: bytes that this rank sends (``SEND``; ``COLLECTIVE``: what a ring sends) or gets (``RECV``).
        message: one number, the same on a ``SEND`` and on the ``RECV`` that it pairs with.
        held_until: ``F`` only: seconds when its activations were freed. ``None``: at the end of the matching
            ``B`` or ``I``, or never if there is none.
        note: anything worth saying, such as ``"overran 20 ms by 3 ms"``.
    """

    rank: int
    kind: str
    start: float
    end: float
    stage: int | None = None
    microbatch: int | None = None
    name: str = ""
    peer: int | None = None
    tag: int | None = None
    nbytes: int = 0
    message: int | None = None
    held_until: float | None = None
    note: str = ""

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start

    @property
    def lane(self) -> str:
        """``"compute"`` or ``"comm"``: the row of its rank that the event is drawn on."""
        return "comm" if self.kind in COMM_KINDS else "compute"

    @property
    def label(self) -> str:
        """Its mark's text: ``"F0"``, ``"send→1"``, ``"recv←0"``, ``"all_reduce"``, ``"step"``."""
        if self.kind in ("F", "B", "I", "W"):
            return self.kind if self.microbatch is None else f"{self.kind}{self.microbatch}"
        if self.kind == "SEND":
            return "send" if self.peer is None else f"send→{self.peer}"
        if self.kind == "RECV":
            return "recv" if self.peer is None else f"recv←{self.peer}"
        return "step" if self.kind == "OPTIM" else self.name or _NAMES[self.kind]


def check_fields(n_ranks: Any, events: Any, name: Any, notes: Any) -> int:
    """The number of ranks as an int; TimelineError where a part of a timeline is of another kind than it says."""
    count = whole(n_ranks)
    if count is None or count < 1:
        raise TimelineError(f"a timeline has at least one rank; got n_ranks={n_ranks!r}", values={"n_ranks": n_ranks})
    if count > _MOST_RANKS:
        raise TimelineError(
            f"a timeline has at most {_MOST_RANKS:,} ranks; got n_ranks={count}", values={"n_ranks": count}
        )
    if not isinstance(events, Iterable):
        raise TimelineError(f"a timeline's events must be a list of Event; got {events!r}")
    if not isinstance(name, str):
        raise TimelineError(f"a timeline's name must be a text; got {name!r}")
    if not isinstance(notes, Mapping) or not all(isinstance(text, str) for pair in notes.items() for text in pair):
        raise TimelineError(f"a timeline's notes must be a dict of texts; got {notes!r}")
    return count


def check_events(events: Sequence[Event], n_ranks: int) -> None:
    """Refuse events that cannot be: ``TimelineError`` says which event, and what is wrong with it."""
    low, high, kinds = -math.inf, math.inf, _KINDS
    event: Any = None
    try:
        for event in events:
            # One chain of comparisons: NaN fails every one of them.
            if not (
                low < event.start <= event.end < high
                and 0 <= index(event.rank) < n_ranks
                and event.kind in kinds
                and event.nbytes >= 0
                and (event.held_until is None or event.held_until >= event.start)
            ):
                raise _complaint(event, _mistake(event, n_ranks))
        # Their types all at once: nearly every timeline holds plain numbers alone.
        if not set(map(type, chain.from_iterable(map(_numbers, events)))) <= _PLAIN:
            for event in events:
                for name, value in zip(_WHOLE, _numbers(event), strict=True):
                    if value is not None and whole(value) is None:
                        raise _complaint(event, f"{name} {value!r} is no whole number")
    except (TypeError, AttributeError) as error:
        raise TimelineError(
            f"not an event of a timeline: {event!r} ({error}); ranks are integers, times are seconds",
            values={"event": event},
        ) from error


def _mistake(event: Event, n_ranks: int) -> str:
    if event.kind not in _KINDS:
        return f"unknown kind {event.kind!r}; it is one of {', '.join(COMPUTE_KINDS + COMM_KINDS)}"
    if not 0 <= event.rank < n_ranks:
        return f"rank {event.rank} is out of range; the timeline has ranks 0 to {n_ranks - 1}"
    if not (math.isfinite(event.start) and math.isfinite(event.end)):
        return f"start {event.start} s and end {event.end} s must be finite numbers"
    if event.end < event.start:
        return f"it ends at {event.end} s, before its start at {event.start} s"
    if not event.nbytes >= 0:
        return f"nbytes {event.nbytes} is negative"
    return f"held_until {event.held_until} s is before its start at {event.start} s"


def _complaint(event: Event, what: str) -> TimelineError:
    # By hand: .label needs a known kind.
    place = "".join(f", {key} {value}" for key, value in _place(event) if value is not None)
    return TimelineError(
        f"event {event.kind!r} (rank {event.rank}{place}): {what}",
        rank=event.rank,
        stage=event.stage,
        values={"event": event},
    )


def _place(event: Event) -> tuple[tuple[str, object], ...]:
    return ("stage", event.stage), ("micro-batch", event.microbatch), ("name", event.name or None)
