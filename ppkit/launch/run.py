"""What a launch returns, and the timeline put together from what every rank saw."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ppkit.emulate import Emulation
from ppkit.event import Event
from ppkit.launch.output import labelled
from ppkit.observe.fields import Message, Row
from ppkit.timeline import Timeline


@dataclass(frozen=True)
class Run:
    """One function called on every rank, and what came of it.

    Attributes:
        results: what each rank returned, by rank.
        output: what each rank printed, by rank.
        timeline: what each rank did; empty with `observe=False`.
        seconds: how long the launch took, from the call to the last result.
        n_ranks: how many ranks there were.
        device: "cpu" or "cuda".
        backend: "gloo" or "nccl".
        warnings: what may go wrong another time: a buffer that was used too early, a request that nobody waited for.
    """

    results: tuple[Any, ...]
    output: tuple[str, ...] = field(repr=False)
    timeline: Timeline = field(repr=False)
    seconds: float
    n_ranks: int
    device: str
    backend: str
    warnings: tuple[str, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return (
            f"<Run of {self.n_ranks} rank{'s' * (self.n_ranks > 1)} on {self.device} over {self.backend}: "
            f"{len(self.timeline)} events; .results, .timeline, .output>"
        )

    def __str__(self) -> str:
        return labelled(self.output).rstrip("\n")


def merge(rows: dict[int, list[Row]], n_ranks: int, name: str, emulation: Emulation | None) -> Timeline:
    """Return one timeline of what the ranks of a run recorded.

    The clock is one for all processes of a host, so times need no alignment; zero is the first event.

    Args:
        rows: events of each rank, as `Recorder` keeps them.
        n_ranks: of the run.
        name: of the learner's function.
        emulation: if there was one.
    """
    zero = min((row.start for own in rows.values() for row in own), default=0.0)
    end = max((row.end for own in rows.values() for row in own), default=0.0)
    arrivals = _arrivals(rows, emulation)
    numbers: dict[Message, int] = {}
    events = []
    for rank, own in sorted(rows.items()):
        for row in own:
            values = asdict(row)
            key = row.message
            if key is not None:
                values["message"] = numbers.setdefault(key, len(numbers)) if key in arrivals else None
                if row.name == "isend":
                    values["end"] = max(row.end, arrivals.get(key, 0.0))
            if row.kind == "F":  # what was never freed is held to the end
                values["held_until"] = (row.held_until or end) - zero
            events.append(Event(**{**values, "rank": rank, "start": row.start - zero, "end": values["end"] - zero}))
    overrun = [event for event in events if event.note.startswith("overran")]
    notes = {}
    if emulation is not None:
        notes["emulation"] = str(emulation)
        if overrun:
            worst = max(overrun, key=lambda event: event.end - event.start)
            count = f"{len(overrun)} of {sum(e.lane == 'compute' for e in events)} operations overran"
            notes["emulation"] += f"; {count}"
            notes["overrun"] = f"{count}; {worst.label} on rank {worst.rank} {worst.note}"
    source = "measured" if emulation is None else "measured, emulated"
    return Timeline(tuple(events), source, n_ranks, name=name, notes=notes)


def _arrivals(rows: dict[int, list[Row]], emulation: Emulation | None) -> dict[Message, float]:
    """Return when each message that was sent and received arrived: as the link says, or when the receiver had it."""
    sent: dict[Message, float] = {}
    received: dict[Message, float] = {}
    for own in rows.values():
        for row in own:
            if row.message is not None and row.kind == "SEND":
                sent[row.message] = row.start + (0.0 if emulation is None else emulation.link.seconds(row.nbytes))
            elif row.message is not None and row.kind == "RECV":
                received[row.message] = row.end
    return {key: end if emulation is None else min(end, sent[key]) for key, end in received.items() if key in sent}
