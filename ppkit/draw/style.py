"""The look of a timeline, shared by every drawing: its marks, their colours, and all that is said in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ppkit.event import COMM_KINDS, Event
from ppkit.timeline import Timeline
from ppkit.units import TimeUnit, bytes_text, number

__all__ = [
    "Mark",
    "colour",
    "critical_marks",
    "curve_colour",
    "hover",
    "ink",
    "legend_keys",
    "legend_name",
    "marks",
    "rank_role",
    "relative_luminance",
    "row_names",
    "row_role",
    "shown_communication",
    "title_lines",
]

PAPER, TEXT, MUTED, IDLE, GRID, MESSAGE = "#FFFFFF", "#1A1A1A", "#4A4A4A", "#E4E8EC", "#D0D5DA", "#444444"
CRITICAL = "#C2001F"  # the edge of what is on the critical path
FONT = "Open Sans, Segoe UI, Helvetica Neue, Arial, DejaVu Sans, sans-serif"

# After Okabe and Ito, "Color Universal Design" (2008). From each colour of the pipeline's operations to the next
# (OPTIM < F < W < B < I) contrast is 1.5 or more, so that a pale projector or a grey print tells them apart.
COLOURS = {
    "F": "#0072B2",
    "B": "#E69F00",
    "I": "#F0E442",
    "W": "#009E73",
    "OPTIM": "#333333",
    "COMPUTE": "#9A9A9A",
    "WAIT": "#C3CAD1",
    "COLLECTIVE": "#A8336F",
    "SEND": "#56B4E9",
}
WORDS = {
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "W": "weight gradient",
    "OPTIM": "optimizer step",
    "COMPUTE": "other computation",
    "WAIT": "receive, wait",
    "COLLECTIVE": "collective",
    "SEND": "send",
}
ORDER = tuple(COLOURS)

# More communication events than this would make a figure of megabytes that shows nothing.
MOST_COMM_EVENTS = 6000


@dataclass(frozen=True, slots=True)
class Mark:
    """One bar: an event, its times counted from the first start, and its chunk (0: its rank's first stage)."""

    event: Event
    start: float
    length: float
    group: str
    chunk: int

    @property
    def end(self) -> float:
        """Seconds from the timeline's first start to the end of the bar."""
        return self.start + self.length

    @property
    def text(self) -> str:
        """What the bar bears: its micro-batch, for messages the peer too, for waits that it is one."""
        event = self.event
        if event.lane == "compute":
            known = event.kind in ("F", "B", "I", "W") and event.microbatch is not None
            return str(event.microbatch) if known else event.label
        if event.kind == "WAIT":
            return "wait"
        if event.peer is None:
            return event.label
        what = "" if event.microbatch is None else event.microbatch
        return f"{what}{'→' if event.kind == 'SEND' else '←'}{event.peer}"


def marks(timeline: Timeline, communication: bool) -> dict[tuple[str, int], list[Mark]]:
    """The bars by (group, chunk) in drawing order; ``RECV`` and ``WAIT`` are one group."""
    zero, chunks = timeline.start, _chunks(timeline)
    found: dict[tuple[str, int], list[Mark]] = {}
    for event in timeline.events:
        if event.kind in COMM_KINDS and not (communication and event.end > event.start):
            continue
        group = "WAIT" if event.kind == "RECV" else event.kind
        chunk = chunks.get((event.rank, event.stage), 0) if event.kind not in COMM_KINDS else 0
        mark = Mark(event, event.start - zero, event.end - event.start, group, chunk)
        found.setdefault((group, chunk), []).append(mark)
    return dict(sorted(found.items(), key=lambda item: (ORDER.index(item[0][0]), item[0][1])))


def critical_marks(timeline: Timeline, communication: bool) -> list[Mark]:
    """What is to be marked as the critical path, in order of time."""
    zero = timeline.start
    path = (e for e in timeline.critical_path() if communication or e.kind not in COMM_KINDS)
    return [Mark(event, event.start - zero, event.end - event.start, event.kind, 0) for event in path]


def _chunks(timeline: Timeline) -> dict[tuple[int, int | None], int]:
    pairs = {(event.rank, event.stage) for event in timeline.events if event.stage is not None}
    counts: dict[int, int] = {}
    chunks: dict[tuple[int, int | None], int] = {}
    for rank, stage in sorted(pairs, key=lambda pair: (pair[0], pair[1] or 0)):
        chunks[rank, stage] = counts.get(rank, 0)
        counts[rank] = chunks[rank, stage] + 1
    return chunks


def shown_communication(timelines: Sequence[Timeline]) -> tuple[bool, int]:
    """Whether to draw a communication lane, and how many events are left out because they are too many."""
    lasting = sum(e.kind in COMM_KINDS and e.end > e.start for t in timelines for e in t.events)
    return (False, lasting) if lasting > MOST_COMM_EVENTS else (lasting > 0, 0)


def colour(group: str, chunk: int = 0) -> str:
    """The colour of a group of marks; a rank's later stages (chunks) are lighter."""
    share = 1 - 0.62**chunk
    return "#" + "".join(f"{round(part + (255 - part) * share):02X}" for part in _rgb(COLOURS[group]))


def ink(background: str) -> str:
    """Black or white, whichever reads better on ``background``."""
    light = relative_luminance(background)
    return "#FFFFFF" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"


def relative_luminance(hex_colour: str) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in _rgb(hex_colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(hex_colour: str) -> list[int]:
    return [int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)]


def legend_keys(groups: Iterable[Iterable[tuple[str, int]]]) -> list[tuple[str, int]]:
    """The (group, chunk) pairs of all timelines of a drawing, in the order of its legend."""
    return sorted({key for found in groups for key in found}, key=lambda key: (ORDER.index(key[0]), key[1]))


def legend_name(group: str, chunk: int, keys: Iterable[tuple[str, int]]) -> str:
    """The legend's words for one of its keys, such as ``"forward"`` or ``"forward, chunk 1"``."""
    several = sum(other == group for other, _ in keys) > 1
    return f"{WORDS[group]}, chunk {chunk}" if several else WORDS[group]


def hover(mark: Mark, unit: TimeUnit, decimals: int) -> str:
    """One line on a mark: ``"rank 2, F5 (stage 2), 20.1 ms: 40.0–60.1 ms"``."""
    event = mark.event
    place = "" if event.stage is None else f" (stage {event.stage})"
    if event.kind in COMM_KINDS:
        place = "" if event.microbatch is None else f" (micro-batch {event.microbatch})"
        place += f", {bytes_text(event.nbytes)}" if event.nbytes else ""
    times = "–".join(f"{time * unit.scale:.{decimals}f}" for time in (mark.start, mark.end))
    note = f" — {event.note}" if event.note else ""
    length = f"{number(mark.length * unit.scale)} {unit.symbol}"
    what = f"{event.label} to {event.peer}" if event.kind == "WAIT" and event.peer is not None else event.label
    return f"rank {event.rank}, {what}{place}, {length}: {times} {unit.symbol}{note}"


def rank_role(timeline: Timeline, rank: int) -> str:
    """What a rank is beside its number, such as ``"replica 0 · stage 1"``; ``""`` where nothing is noted."""
    return timeline.notes.get(f"rank {rank}", "")


def row_role(timeline: Timeline, rank: int, tag: str = "") -> str:
    """What stands under a row's rank: its role, and the tag of its timeline."""
    return ", ".join(text for text in (rank_role(timeline, rank), tag) if text)


def row_names(timelines: Sequence[Timeline]) -> list[str]:
    """What tells the rows of one rank apart where several timelines are drawn rank by rank."""
    for names in ([t.source for t in timelines], [t.name for t in timelines]):
        if len(set(names)) == len(names):
            return names
    return [f"{number}." for number in range(1, len(timelines) + 1)]


def curve_colour(rank: int, n_ranks: int) -> str:
    """The colour of a rank's curve, from dark to light over the ranks (stops of matplotlib's viridis)."""
    place = 3 * rank / max(1, n_ranks - 1)
    low = min(2, int(place))
    mixed = zip(_rgb(_CURVES[low]), _rgb(_CURVES[low + 1]), strict=True)
    return "#" + "".join(f"{round(one + (other - one) * (place - low)):02X}" for one, other in mixed)


_CURVES = ("#440154", "#31688E", "#1F9E89", "#7AB648")
# So that curves that lie on each other, or are printed in grey, can be told apart.
CURVE_DASHES = ("solid", "dash", "dot", "dashdot")


def title_lines(timeline: Timeline, width: int, left_out: int = 0) -> list[str]:
    """The name, then what must be said of the timeline in lines of at most ``width`` characters."""
    text = timeline.subtitle + (f", {left_out} communication events not drawn" if left_out else "")
    lines = [""]
    for part in text.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(longer) > width and lines[-1]:
            lines[-1] += ","
            lines.append(part)
        else:
            lines[-1] = longer
    return [timeline.name or "Timeline", *lines]
