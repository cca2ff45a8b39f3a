"""A timeline as plain text: a line per rank, a column per stretch of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ppkit.draw import style
from ppkit.draw.style import Mark
from ppkit.errors import TimelineError
from ppkit.timeline import Timeline
from ppkit.units import bytes_text, duration, number, percent
from ppkit.values import whole

__all__ = ["critical_line", "to_text"]

FILL = {
    "F": "=",
    "B": "#",
    "I": "+",
    "W": "%",
    "OPTIM": "*",
    "COMPUTE": "o",
    "WAIT": "~",
    "COLLECTIVE": "@",
    "SEND": ">",
}
IDLE = "."


def to_text(timeline: Timeline, width: int = 100) -> str:
    """The timeline as a picture at most ``width`` characters wide; each bar begins with its micro-batch number.

    The lines below the picture may be longer.

    Raises:
        TimelineError: the width is no whole number, or leaves no room for a picture.
    """
    margin = max(len(f"{_rank(timeline, rank)} |") for rank in range(timeline.n_ranks))
    room = whole(width)
    if room is None:
        raise TimelineError(f"to_text(width={width!r}): it is a whole number of characters", values={"width": width})
    if room < margin + 20:
        raise TimelineError(f"to_text(width={room}) is too narrow; it takes {margin + 20} characters or more")
    communication, left_out = style.shown_communication([timeline])
    groups = style.marks(timeline, communication)
    marks = [mark for found in groups.values() for mark in found]
    columns = _columns(timeline.makespan, marks, room - margin - 1)
    rows = list(_rows(timeline, marks, columns, margin, communication))
    title = style.title_lines(timeline, room, left_out)
    return "\n".join([*title, *rows, *_scale(timeline, columns, margin), *_legend(groups), *_metrics(timeline)])


def _rank(timeline: Timeline, rank: int) -> str:
    role = style.rank_role(timeline, rank)
    return f"rank {rank}, {role}" if role else f"rank {rank}"


def _columns(span: float, marks: Sequence[Mark], room: int) -> int:
    """Columns of the makespan: a whole number per shortest compute bar, where all times are its multiples."""
    unit = min((m.length for m in marks if m.event.lane == "compute" and m.length), default=0.0)
    count = span / unit if unit else 0.0
    each = int(room / count) if count else 0
    even = each >= 2 and all(_whole(time / unit) for mark in marks for time in (mark.start, mark.end))
    return round(count * each) if even else room


def _whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def _rows(timeline: Timeline, marks: Sequence[Mark], columns: int, margin: int, communication: bool) -> Iterator[str]:
    lanes = ("compute", "comm") if communication else ("compute",)
    scale = columns / timeline.makespan if timeline.makespan else 0.0
    for rank in range(timeline.n_ranks):
        for lane in lanes:
            cells = [IDLE if lane == "compute" else " "] * columns
            for mark in marks:
                if mark.event.rank == rank and mark.event.lane == lane:
                    _put(cells, mark, scale)
            head = _rank(timeline, rank) if lane == "compute" else ""
            yield f"{head:<{margin - 1}}|{''.join(cells)}|"


def _put(cells: list[str], mark: Mark, scale: float) -> None:
    start, end = round(mark.start * scale), round(mark.end * scale)
    start = min(start, len(cells) - 1)
    end = min(max(end, start + 1), len(cells))
    fill = FILL[mark.group] * (end - start)
    text = mark.text if mark.event.lane == "compute" and mark.event.microbatch is not None else ""
    # A forward may be all number; any other kind keeps a character that tells what it is.
    room = end - start - (mark.group != "F")
    text = text[-room:] if room > 0 else ""
    cells[start:end] = text + fill[len(text) :]


def _scale(timeline: Timeline, columns: int, margin: int) -> Iterator[str]:
    right = duration(timeline.makespan, timeline.notes.get("unit"))
    yield f"{'':<{margin}}0{right:>{columns - 1}}"


def _legend(groups: dict[tuple[str, int], list[Mark]]) -> Iterator[str]:
    kinds = dict.fromkeys(group for group, _ in groups)
    words = ", ".join(f"{FILL[kind]} {style.WORDS[kind]}" for kind in kinds)
    yield f"{words}, {IDLE} idle; numbers are micro-batches" if words else f"{IDLE} idle"


def _metrics(timeline: Timeline) -> Iterator[str]:
    yield (
        f"bubble fraction {percent(timeline.bubble_fraction)} (idle ÷ ranks × makespan), "
        f"bubble ratio {number(timeline.bubble_ratio)} (idle ÷ work)"
    )
    if any(timeline.peak_in_flight):
        yield f"peak in flight by rank: {' '.join(map(str, timeline.peak_in_flight))}"
    if any(timeline.bytes_sent):
        yield f"bytes sent by rank: {', '.join(map(bytes_text, timeline.bytes_sent))}"


def critical_line(timeline: Timeline, most: int = 24) -> str:
    """The critical path in one line: each rank once for what it does there in a row."""
    parts: list[str] = []
    rank = None
    path = [event for event in timeline.critical_path() if event.lane == "compute" or event.kind == "COLLECTIVE"]
    for event in path[:most]:
        parts += ([f"rank {event.rank}:"] if event.rank != rank else []) + [event.label]
        rank = event.rank
    more = f" … and {len(path) - most} more" if len(path) > most else ""
    return f"critical path: {' '.join(parts)}{more}"
