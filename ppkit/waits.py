"""What a rank waited for: for each wait in a timeline, when the other side of it was ready."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from ppkit.event import Event

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = ["Wait", "waits"]


class Wait(NamedTuple):
    """A communication event that kept its rank from computing.

    Args:
        event: from ``start`` to ``end`` its rank waited.
        ready: seconds: when the last other rank that it takes was there too; before that its rank waited for
            that one, after it for the communication itself. No earlier than minus infinity: it was always there.
        other: the event by which the last other rank joined; None where there is none, or it isn't known.
    """

    event: Event
    ready: float
    other: Event | None


def waits(timeline: Timeline) -> tuple[tuple[Wait, ...], ...]:
    """For each rank what it waited in, by start.

    Receives, blocking sends, waits for either, and collectives. A simulated send blocks nobody.
    """
    sends, receives = {}, {}
    for send, receive in timeline.messages:
        sends[id(receive)], receives[id(send)] = send, receive
    joined = _joined(timeline)
    found: list[tuple[Wait, ...]] = []
    for rank in range(timeline.n_ranks):
        row: list[Wait] = []
        isends: dict[tuple[int | None, int | None], list[Event]] = defaultdict(list)
        for event in timeline.of_rank(rank):
            other: Event | None = None
            if event.kind == "SEND" and timeline.source == "simulated":
                continue
            if event.kind == "SEND" and event.name != "send":
                isends[event.peer, event.tag].append(event)
                continue
            if event.kind == "RECV":
                other = sends.get(id(event))
            elif event.kind == "SEND":
                other = receives.get(id(event))
            elif event.kind == "WAIT" and isends[event.peer, event.tag]:
                other = receives.get(id(isends[event.peer, event.tag].pop(0)))
            elif event.kind == "COLLECTIVE":
                other = joined.get(id(event))
            elif event.kind != "WAIT":
                continue
            row.append(Wait(event, float("-inf") if other is None else other.start, other))
        found.append(tuple(row))
    return tuple(found)


def _joined(timeline: Timeline) -> dict[int, Event]:
    """For each collective the event of the rank that joined it last, where that was another rank.

    Events say no group. The n-th collective of one name and size on each rank is taken to be the same one if
    they overlap, which members of one collective always do.
    """
    same: dict[tuple[str, int, int], list[Event]] = defaultdict(list)
    for rank in range(timeline.n_ranks):
        count: Counter[tuple[str, int]] = Counter()
        for event in timeline.of_rank(rank):
            if event.kind == "COLLECTIVE":
                same[event.name, event.nbytes, count[event.name, event.nbytes]].append(event)
                count[event.name, event.nbytes] += 1
    last: dict[int, Event] = {}
    for members in same.values() if timeline.source != "simulated" else ():
        for event in members:
            with_it = [e for e in members if e.start < event.end and event.start < e.end]
            latest = max(with_it, key=lambda e: e.start, default=event)
            if latest.rank != event.rank:
                last[id(event)] = latest
    return last
