"""One timeline for simulated, measured and framework runs: its events, its metrics, its exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppkit.errors import TimelineError
from ppkit.event import COMM_KINDS, COMPUTE_KINDS, Event, check_events, check_fields
from ppkit.metrics import busy_seconds, peak_in_flight
from ppkit.units import duration, percent
from ppkit.values import real, whole

if TYPE_CHECKING:
    from ppkit.causes import IdleTable
    from ppkit.compare import Comparison

__all__ = ["COMM_KINDS", "COMPUTE_KINDS", "SOURCES", "Event", "Timeline"]

SOURCES = ("simulated", "measured", "measured, emulated", "torch")


@dataclass(frozen=True)
class Timeline:
    """What every rank did when: the one value that is drawn, scored, compared and exported.

    Args:
        events: in any order; kept sorted by start, then rank.
        source: ``"simulated"``, ``"measured"``, ``"measured, emulated"`` or ``"torch"``.
        n_ranks: the number of ranks, those without an event included.
        name: what ran, such as ``"1F1B"``.
        notes: text by key: ``"emulation"`` states the durations of an emulated run, ``"unit"`` names the unit
            of a timeline that has no seconds, such as ``"time units"``.

    Raises:
        TimelineError: an event has a rank, a kind, a time, a number or a size that cannot be, or the source is
            unknown.
    """

    events: tuple[Event, ...]
    source: str
    n_ranks: int
    name: str = ""
    notes: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise TimelineError(
                f"unknown source {self.source!r} of a timeline; it is one of {', '.join(map(repr, SOURCES))}",
                values={"source": self.source},
            )
        object.__setattr__(self, "n_ranks", check_fields(self.n_ranks, self.events, self.name, self.notes))
        events = list(self.events)
        check_events(events, self.n_ranks)
        # Two stable sorts on plain numbers are quicker than one on pairs.
        events.sort(key=attrgetter("rank"))
        events.sort(key=attrgetter("start"))
        object.__setattr__(self, "events", tuple(events))
        object.__setattr__(self, "notes", dict(self.notes))

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __repr__(self) -> str:
        return f"<Timeline {self.title}; {self.n_ranks} ranks, {len(self.events)} events>"

    # Parts

    def of_rank(self, rank: int) -> tuple[Event, ...]:
        """The events of one rank, by start.

        Raises:
            TimelineError: there is no such rank.
        """
        number = whole(rank)
        if number is None or not 0 <= number < self.n_ranks:
            raise TimelineError(f"no rank {rank!r}: the timeline has ranks 0 to {self.n_ranks - 1}", rank=number)
        return self._by_rank[number]

    @cached_property
    def _by_rank(self) -> tuple[tuple[Event, ...], ...]:
        rows: list[list[Event]] = [[] for _ in range(self.n_ranks)]
        for event in self.events:
            rows[event.rank].append(event)
        return tuple(map(tuple, rows))

    @property
    def start(self) -> float:
        """Seconds: the first start of an event; 0 where there is none."""
        return self.events[0].start if self.events else 0.0

    @cached_property
    def end(self) -> float:
        """Seconds: the last end of an event; 0 where there is none."""
        return max((event.end for event in self.events), default=0.0)

    @property
    def n_microbatches(self) -> int:
        """How many different micro-batches its events name."""
        return len({event.microbatch for event in self.events} - {None})

    @property
    def n_stages(self) -> int:
        """How many different stages its events name."""
        return len({event.stage for event in self.events} - {None})

    @cached_property
    def n_steps(self) -> int:
        """How many optimizer steps it holds: those of the rank that took most; 0 where none is recorded."""
        return max(sum(event.kind == "OPTIM" for event in row) for row in self._by_rank)

    def step(self, n: int, *, clip: bool = False) -> Timeline:
        """The timeline of optimizer step ``n`` (from 0; negative from the last), moved to start at zero.

        A rank's step ``n`` is what starts after the end of its own ``OPTIM`` event ``n - 1``, up to the end of
        its ``OPTIM`` event ``n``. So a rank may wait in it already while others still end the step before.

        Args:
            n: the step.
            clip: begin with the step's first computation instead: communication and waits that began before
                are cut there, those that were over by then are left out. Makespan and bubble are then of this
                step alone; without ``clip`` every event and byte of the step is kept.

        Raises:
            TimelineError: there is no such step.
        """
        from ppkit.steps import step

        return step(self, n, clip=clip)

    def shifted(self, start: float = 0.0) -> Timeline:
        """The same timeline with its first start moved to ``start`` seconds.

        Raises:
            TimelineError: ``start`` is no finite number.
        """
        if not isfinite(to := real(start)):
            raise TimelineError(f"shifted({start!r}): the new start is a finite number of seconds")
        by = to - self.start
        return replace(self, events=tuple(_moved(event, by) for event in self.events))

    # Metrics

    @property
    def makespan(self) -> float:
        """Seconds from the first start to the last end over all events, communication included."""
        return self.end - self.start

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds that each rank computed: the union of its compute-lane events, overlaps counted once."""
        return tuple(busy_seconds(row) for row in self._by_rank)

    @property
    def idle(self) -> tuple[float, ...]:
        """Seconds that each rank did not compute: ``makespan - busy``. Communication counts as idle."""
        # Never below zero: sums of floats may exceed the whole by a rounding.
        return tuple(max(0.0, self.makespan - busy) for busy in self.busy)

    def idle_causes(self) -> IdleTable:
        """Why each rank idles: its seconds of ``idle`` split into fill, waiting, communication, overhead and drain.

        Fill is before a rank's first computation, drain after its last. Between two, a rank waits for another
        that is late, or for what is on its way from it; what is neither is overhead of the program. A measured
        collective waits until its last rank joins. The parts of a rank add up to its ``idle``.
        """
        from ppkit.causes import idle_causes

        return idle_causes(self)

    def critical_path(self) -> tuple[Event, ...]:
        """A longest chain of events that explains the makespan: each could not start before the one in front.

        From the last end backwards: what a rank did before on its own, or, where it had to wait, the message it
        waited for and what its sender did before. Messages that took no time are left out. In a simulation the
        events follow each other without a gap from the first start to the last end; in a measurement what lies
        between two is overhead. To shorten a step, shorten something on this path.
        """
        from ppkit.critical import critical_path

        return critical_path(self)

    @property
    def bubble_fraction(self) -> float:
        """Idle ÷ (ranks × makespan): the part of the machine's time that computes nothing, from 0 to 1.

        GPipe (arXiv 1811.06965) and the zero-bubble paper (2401.10241) divide by the makespan too. GPipe and
        1F1B with equal stages give (p−1)/(m+p−1). An empty timeline gives 0.
        """
        available = self.n_ranks * self.makespan
        return sum(self.idle) / available if available else 0.0

    @property
    def bubble_ratio(self) -> float:
        """Idle ÷ ideal work, both summed over ranks; ideal work is the time computed. May exceed 1.

        Megatron-LM's definition (arXiv 2104.04473, section 2.2: bubble time ÷ ideal time). GPipe and 1F1B
        with equal stages give (p−1)/m. A timeline that computes nothing gives infinity, an empty one 0.
        """
        idle, work = sum(self.idle), sum(self.busy)
        if not work:
            return float("inf") if idle else 0.0
        return idle / work

    @cached_property
    def peak_in_flight(self) -> tuple[int, ...]:
        """The most forward results that each rank held at once; each stage and micro-batch counts singly.

        Up by one at the start of an ``F``; down by one at its ``held_until``, else at the end of the ``B``
        or ``I`` of the same stage and micro-batch, else never. At equal times releases come first. Counted as
        in PipeDream-flush (arXiv 2104.04473): min(p−r, m) for 1F1B, m for GPipe.
        """
        return tuple(peak_in_flight(row) for row in self._by_rank)

    @cached_property
    def bytes_sent(self) -> tuple[int, ...]:
        """Bytes that each rank sent: the sum of ``nbytes`` over its ``SEND`` and ``COLLECTIVE`` events."""
        return tuple(sum(e.nbytes for e in row if e.kind in ("SEND", "COLLECTIVE")) for row in self._by_rank)

    @cached_property
    def messages(self) -> tuple[tuple[Event, Event], ...]:
        """Pairs of a ``SEND`` and the ``RECV`` with the same message number, by the number.

        A number that has only one of the two (cut off by ``step``, or never received) is left out.

        Raises:
            TimelineError: two sends, or two receives, have the same number.
        """
        sends, receives = self._numbered("SEND"), self._numbered("RECV")
        return tuple((sends[number], receives[number]) for number in sorted(sends.keys() & receives.keys()))

    def arrival(self, send: Event, receive: Event) -> float:
        """Seconds: when a message of ``messages`` was there, where its line ends in a drawing.

        A measured blocking ``send`` ends when the backend has taken the message over, on an emulated link before
        the message arrives: it was there when the receiver had it. Any other ``SEND`` ends with the arrival.
        """
        if self.source in ("measured", "measured, emulated") and send.name == "send":
            return receive.end
        return min(send.end, receive.end)

    def _numbered(self, kind: str) -> dict[int, Event]:
        found: dict[int, Event] = {}
        for event in self.events:
            if event.kind == kind and event.message is not None and found.setdefault(event.message, event) is not event:
                ranks = (found[event.message].rank, event.rank)
                raise TimelineError(
                    f"message {event.message} has two {kind} events, on ranks {ranks[0]} and {ranks[1]}; "
                    "a message number belongs to one send and one receive",
                    rank=event.rank,
                    values={"message": event.message},
                )
        return found

    # Text and exports

    @property
    def title(self) -> str:
        """One line: its name, its source with the emulation stated, its makespan, its bubble fraction."""
        return f"{self.name or 'timeline'}: {self.subtitle}"

    @property
    def subtitle(self) -> str:
        """The title without the name."""
        emulation = self.notes.get("emulation")
        source = f"{self.source} ({emulation})" if emulation else self.source
        makespan = duration(self.makespan, self.notes.get("unit"))
        return f"{source}, makespan {makespan}, bubble fraction {percent(self.bubble_fraction)}"

    def compare(self, other: Timeline) -> Comparison:
        """How ``other`` differs from this timeline, operation by operation: a table that displays itself.

        Raises:
            TimelineError: ``other`` is no timeline, or has another unit.
        """
        from ppkit.compare import compare

        return compare(self, other)

    def to_text(self, width: int = 100) -> str:
        """The timeline as plain text: a line per rank, and its metrics.

        The picture is at most ``width`` characters wide; the lines below it may be longer.

        Raises:
            TimelineError: the width is no whole number, or leaves no room for a picture.
        """
        from ppkit.draw.text import to_text

        return to_text(self, width)

    def to_svg(self) -> str:
        """The timeline as one static SVG picture that needs nothing else."""
        from ppkit.draw.svg import to_svg

        return to_svg(self)

    def to_html(self, path: str | Path) -> Path:
        """Write the interactive Gantt as one HTML file that opens without a network; returns its path.

        Raises:
            TimelineError: the file cannot be written.
        """
        from ppkit.draw.gantt import write_html

        return write_html(self, path)

    def to_perfetto(self, path: str | Path) -> Path:
        """Write a trace for https://ui.perfetto.dev or chrome://tracing; returns its path.

        Raises:
            TimelineError: the file cannot be written, or two messages have the same number.
        """
        from ppkit.exports import write_perfetto

        return write_perfetto(self, path)

    def to_json(self) -> str:
        """The timeline as JSON text that ``Timeline.from_json`` reads back exactly."""
        from ppkit.exports import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str) -> Timeline:
        """The timeline that ``to_json`` wrote.

        Raises:
            TimelineError: the text is not such JSON, or of a version that this ppkit does not know.
        """
        from ppkit.exports import from_json

        return from_json(text)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from ppkit.draw import mimebundle

        return mimebundle(self)


def _moved(event: Event, by: float) -> Event:
    held = None if event.held_until is None else event.held_until + by
    return event._replace(start=event.start + by, end=event.end + by, held_until=held)
