"""A timeline as JSON that reads back exactly, and as a trace for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from ppkit.errors import TimelineError
from ppkit.event import Event
from ppkit.timeline import Timeline

__all__ = ["from_json", "perfetto_trace", "to_json", "write", "write_perfetto"]

FORMAT = "ppkit.timeline"
VERSION = 1
_FIELDS = Event._fields
_row = attrgetter(*_FIELDS)


def to_json(timeline: Timeline) -> str:
    """The timeline as JSON text: one list per event, in the order that ``"fields"`` names."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "source": timeline.source,
        "n_ranks": timeline.n_ranks,
        "name": timeline.name,
        "notes": timeline.notes,
        "fields": _FIELDS,
        "events": [_row(event) for event in timeline.events],
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """A number of NumPy or PyTorch as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TimelineError(f"an event holds {value!r}, which JSON cannot; give numbers and texts")


def write(path: str | Path, text: str) -> Path:
    """Write ``text`` to a file and return its path; ``TimelineError`` where that cannot be."""
    try:
        path = Path(path)
        path.write_text(text, encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        raise TimelineError(
            f"cannot write to {str(path)!r}: {getattr(error, 'strerror', None) or error}; "
            "give the path of a file in a folder that is there",
            values={"path": str(path)},
        ) from error
    return path


def from_json(text: str) -> Timeline:
    """The timeline that ``to_json`` wrote; ``TimelineError`` if the text is anything else."""
    document = _document(text)
    try:
        names, rows = tuple(document["fields"]), document["events"]
        if unknown := set(names) - set(_FIELDS):
            raise TimelineError(f"a timeline's JSON names unknown event fields {sorted(unknown)}; known: {_FIELDS}")
        events = tuple(_event(names, row, number) for number, row in enumerate(rows))
        return Timeline(events, document["source"], document["n_ranks"], document["name"], document["notes"])
    except KeyError as error:
        raise TimelineError(f"a timeline's JSON lacks {error}; it has {', '.join(document)}") from error
    except TypeError as error:
        raise TimelineError(f"a timeline's JSON holds something else than to_json() writes: {error}") from error


def _document(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise TimelineError(
            f"this is not JSON: {error}; from_json takes the text that to_json() returned, not a path"
        ) from error
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if found != FORMAT:
        raise TimelineError(f'this JSON is no timeline: its "format" is {found!r}, not {FORMAT!r}')
    if document.get("version") != VERSION:
        raise TimelineError(
            f"this timeline's JSON is of version {document.get('version')!r}; this ppkit reads version "
            f"{VERSION}: write it again with to_json(), or update ppkit"
        )
    return dict(document)


def _event(names: tuple[str, ...], row: list[Any], number: int) -> Event:
    if not isinstance(row, list) or len(row) != len(names):
        raise TimelineError(f"event {number} of a timeline's JSON does not hold the {len(names)} fields: {row!r}")
    return Event(**dict(zip(names, row, strict=True)))


def write_perfetto(timeline: Timeline, path: str | Path) -> Path:
    """Write the Chrome trace JSON that https://ui.perfetto.dev and chrome://tracing open."""
    return write(path, json.dumps(perfetto_trace(timeline), separators=(",", ":"), default=_plain))


def perfetto_trace(timeline: Timeline) -> dict[str, Any]:
    """The timeline in Chrome's trace event format: a process per rank, a thread per lane, microseconds.

    Messages are flow arrows: an ``"s"`` in the send and an ``"f"`` in the receive with the same id.
    """
    slices = {id(event): _slice(event, thread) for event, thread in _threads(timeline)}
    return {
        "traceEvents": [
            *_names(timeline.n_ranks, {(row["pid"], row["tid"]) for row in slices.values()}),
            *(slices[id(event)] for event in timeline.events),
            *(arrow for pair in timeline.messages for arrow in _arrow(pair, slices)),
        ],
        "displayTimeUnit": "ms",
        "otherData": {"title": timeline.title, "source": timeline.source, **timeline.notes},
    }


def _threads(timeline: Timeline) -> Iterator[tuple[Event, int]]:
    # Slices of one thread must nest, and messages under way at once don't: each takes the first free thread.
    free_at: dict[tuple[int, str], list[float]] = {}
    for event in timeline.events:
        ends = free_at.setdefault((event.rank, event.lane), [])
        lane = next((n for n, end in enumerate(ends) if end <= event.start), len(ends))
        ends[lane : lane + 1] = [event.end]
        yield event, 2 * lane + (event.lane == "comm")


def _slice(event: Event, thread: int) -> dict[str, Any]:
    start, end = round(event.start * 1e6, 3), round(event.end * 1e6, 3)
    return {
        "name": event.label,
        "cat": event.kind,
        "ph": "X",
        "ts": start,
        "dur": round(end - start, 3),
        "pid": event.rank,
        "tid": thread,
        "args": dict(_arguments(event)),
    }


def _arguments(event: Event) -> Iterator[tuple[str, object]]:
    for key in ("stage", "microbatch", "name", "peer", "tag", "nbytes", "message", "note"):
        value = getattr(event, key)
        if value not in (None, "") and (key != "nbytes" or value):
            yield key, value


def _names(n_ranks: int, threads: set[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for rank in range(n_ranks):
        yield {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}}
        yield {"name": "process_sort_index", "ph": "M", "pid": rank, "args": {"sort_index": rank}}
    for rank, thread in sorted(threads):
        lane = "communication" if thread % 2 else "compute"
        name = lane if thread < 2 else f"{lane} {thread // 2 + 1}"
        yield {"name": "thread_name", "ph": "M", "pid": rank, "tid": thread, "args": {"name": name}}


def _arrow(pair: tuple[Event, Event], slices: dict[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    send, receive = (slices[id(event)] for event in pair)
    # Each end must lie within its slice, and an arrow must not run backwards.
    arrival = min(max(send["ts"], receive["ts"]), round(receive["ts"] + receive["dur"], 3))
    common = {"name": "message", "cat": "message", "id": pair[0].message}
    yield {**common, "ph": "s", "ts": send["ts"], "pid": send["pid"], "tid": send["tid"]}
    yield {**common, "ph": "f", "bp": "e", "ts": arrival, "pid": receive["pid"], "tid": receive["tid"]}
