"""Events, timelines, their metrics against values worked out by hand, steps and comparisons."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import numpy
import pytest

from ppkit.errors import TimelineError
from ppkit.timeline import Event, Timeline


def timeline(*events: Event, n_ranks: int = 2, source: str = "simulated") -> Timeline:
    return Timeline(events, source, n_ranks, "hand-made")


def two_ranks() -> Timeline:
    """Two stages, two micro-batches, F = 1 s, B = 2 s, as GPipe runs them.

    rank 0 |01..0011|
    rank 1 |.010011.|
    """
    return timeline(
        Event(0, "F", 0, 1, 0, 0),
        Event(0, "F", 1, 2, 0, 1),
        Event(1, "F", 1, 2, 1, 0),
        Event(1, "F", 2, 3, 1, 1),
        Event(1, "B", 3, 5, 1, 0),
        Event(1, "B", 5, 7, 1, 1),
        Event(0, "B", 5, 7, 0, 0),
        Event(0, "B", 7, 9, 0, 1),
    )


class TestEvent:
    def test_is_frozen_comparable_hashable_and_survives_copies(self) -> None:
        event = Event(1, "F", 0.0, 1.0, 1, 3, held_until=2.0)
        with pytest.raises(AttributeError):
            event.rank = 0  # type: ignore[misc]
        assert event == Event(1, "F", 0.0, 1.0, stage=1, microbatch=3, held_until=2.0)
        assert len({event, copy.copy(event), pickle.loads(pickle.dumps(event))}) == 1
        assert event._replace(rank=2).rank == 2
        assert type(copy.deepcopy(event)) is Event

    @pytest.mark.parametrize(
        ("event", "lane", "label"),
        [
            (Event(0, "F", 0, 1, 0, 5), "compute", "F5"),
            (Event(0, "B", 0, 1), "compute", "B"),
            (Event(0, "OPTIM", 0, 1, name="SGD.step"), "compute", "step"),
            (Event(0, "COMPUTE", 0, 1), "compute", "compute"),
            (Event(0, "SEND", 0, 1, peer=1), "comm", "send→1"),
            (Event(0, "RECV", 0, 1, peer=3), "comm", "recv←3"),
            (Event(0, "COLLECTIVE", 0, 1, name="all_reduce"), "comm", "all_reduce"),
            (Event(0, "WAIT", 0, 1), "comm", "wait"),
        ],
    )
    def test_lane_and_label(self, event: Event, lane: str, label: str) -> None:
        assert (event.lane, event.label) == (lane, label)


class TestValidation:
    @pytest.mark.parametrize(
        ("event", "message"),
        [
            (Event(0, "F", math.nan, 1), "start nan s and end 1 s must be finite"),
            (Event(0, "F", 0, math.inf), "must be finite"),
            (Event(0, "F", 2, 1, 0, 7), r"event 'F' \(rank 0, stage 0, micro-batch 7\): it ends at 1 s, before"),
            (Event(2, "F", 0, 1), "rank 2 is out of range; the timeline has ranks 0 to 1"),
            (Event(-1, "F", 0, 1), "rank -1 is out of range"),
            (Event(0, "FWD", 0, 1), "unknown kind 'FWD'; it is one of F, B"),
            (Event(0, "SEND", 0, 1, nbytes=-5), "nbytes -5 is negative"),
            (Event(0, "F", 1, 2, held_until=0.5), "held_until 0.5 s is before its start"),
            (Event("0", "F", 0, 1), "not an event of a timeline"),  # type: ignore[arg-type]
        ],
    )
    def test_an_impossible_event_is_named(self, event: Event, message: str) -> None:
        with pytest.raises(TimelineError, match=message) as caught:
            timeline(Event(0, "F", 0, 1), event)
        assert caught.value.values["event"] is event

    def test_something_else_in_place_of_an_event(self) -> None:
        with pytest.raises(TimelineError, match="not an event of a timeline: 'F0'"):
            timeline("F0")  # type: ignore[arg-type]

    def test_source_and_ranks(self) -> None:
        with pytest.raises(TimelineError, match="unknown source 'guessed'"):
            timeline(source="guessed")
        with pytest.raises(TimelineError, match="n_ranks=0"):
            timeline(n_ranks=0)


class TestMetrics:
    def test_two_ranks_by_hand(self) -> None:
        line = two_ranks()
        assert line.makespan == 9
        assert line.busy == (6.0, 6.0)
        assert line.idle == (3.0, 3.0)
        assert line.bubble_fraction == pytest.approx(1 / 3)  # (p−1)/(m+p−1)
        assert line.bubble_ratio == pytest.approx(1 / 2)  # (p−1)/m
        assert line.peak_in_flight == (2, 2)
        assert (line.n_stages, line.n_microbatches) == (2, 2)

    def test_events_are_sorted_by_start_then_rank(self) -> None:
        line = two_ranks()
        keys = [(event.start, event.rank) for event in line]
        assert keys == sorted(keys)
        assert len(line) == 8

    def test_empty(self) -> None:
        line = timeline()
        assert (line.makespan, line.bubble_fraction, line.bubble_ratio) == (0, 0, 0)
        assert line.peak_in_flight == line.bytes_sent == (0, 0)
        assert (line.messages, line.n_steps) == ((), 0)

    def test_communication_is_idle_and_extends_the_makespan(self) -> None:
        line = timeline(Event(0, "F", 1, 2), Event(0, "SEND", 2, 5, peer=1), Event(1, "WAIT", 1, 5))
        assert line.makespan == 4
        assert line.busy == (1.0, 0.0)
        assert line.idle == (3.0, 4.0)
        assert line.bubble_fraction == 7 / 8
        assert line.bubble_ratio == 7

    def test_overlapping_computation_counts_once(self) -> None:
        line = timeline(Event(0, "F", 0, 4), Event(0, "COMPUTE", 1, 2), Event(0, "OPTIM", 3, 6), n_ranks=1)
        assert line.busy == (6,)

    def test_nothing_computed_is_an_infinite_ratio(self) -> None:
        assert timeline(Event(0, "WAIT", 0, 1)).bubble_ratio == math.inf

    def test_bytes_sent(self) -> None:
        line = timeline(
            Event(0, "SEND", 0, 1, nbytes=100),
            Event(1, "RECV", 0, 1, nbytes=100),
            Event(0, "COLLECTIVE", 1, 2, nbytes=30),
            Event(1, "COLLECTIVE", 1, 2, nbytes=30),
        )
        assert line.bytes_sent == (130, 30)


class TestPeakInFlight:
    def peak(self, *events: Event) -> int:
        return timeline(*events, n_ranks=1).peak_in_flight[0]

    def test_a_release_comes_before_a_forward_at_the_same_time(self) -> None:
        assert self.peak(Event(0, "F", 0, 1, 0, 0), Event(0, "B", 1, 3, 0, 0), Event(0, "F", 3, 4, 0, 1)) == 1

    def test_the_input_gradient_releases_and_the_weight_gradient_does_not(self) -> None:
        first = [Event(0, "F", 0, 1, 0, 0), Event(0, "I", 1, 2, 0, 0), Event(0, "W", 4, 5, 0, 0)]
        assert self.peak(*first, Event(0, "F", 2, 3, 0, 1)) == 1

    def test_held_until_replaces_the_end_of_the_backward(self) -> None:
        second = Event(0, "F", 3, 4, 0, 1)
        backward = Event(0, "B", 1, 3, 0, 0)
        assert self.peak(Event(0, "F", 0, 1, 0, 0, held_until=3.5), backward, second) == 2
        assert self.peak(Event(0, "F", 0, 1, 0, 0, held_until=1), Event(0, "F", 1, 2, 0, 1, held_until=2)) == 1

    def test_without_a_backward_it_is_never_freed(self) -> None:
        assert self.peak(*(Event(0, "F", n, n + 1, 0, n) for n in range(5))) == 5

    def test_chunks_count_singly(self) -> None:
        assert self.peak(Event(0, "F", 0, 1, 0, 0), Event(0, "F", 1, 2, 4, 0), Event(0, "B", 2, 3, 4, 0)) == 2

    def test_the_same_micro_batch_again_in_the_next_step(self) -> None:
        step = [Event(0, "F", 0, 1, 0, 0), Event(0, "B", 1, 2, 0, 0)]
        later = [event._replace(start=event.start + 2, end=event.end + 2) for event in step]
        assert self.peak(*step, *later) == 1

    def test_a_forward_without_gradients_does_not_take_the_backward_of_the_next(self) -> None:
        evaluation = Event(0, "F", 0, 1, held_until=1)
        training = [Event(0, "F", 1, 2), Event(0, "B", 2, 3), Event(0, "F", 3, 4), Event(0, "B", 4, 5)]
        assert self.peak(evaluation, *training) == 1

    def test_a_backward_without_a_forward(self) -> None:
        assert self.peak(Event(0, "B", 0, 1, 0, 0), Event(0, "F", 1, 2, 0, 0)) == 1


class TestMessages:
    def test_pairs_by_number(self) -> None:
        send, receive = Event(0, "SEND", 0, 1, peer=1, message=7), Event(1, "RECV", 0, 1, peer=0, message=7)
        lost = Event(0, "SEND", 2, 3, peer=1, message=8)
        assert timeline(receive, lost, send).messages == ((send, receive),)

    @pytest.mark.parametrize(
        ("source", "name", "send_end", "arrival"),
        [
            ("measured, emulated", "send", 1, 5),  # handed over at 1, still on the link
            ("measured", "send", 6, 5),  # the receiver had it before send returned
            ("measured, emulated", "isend", 3, 3),  # there at 3, taken at 5
            ("simulated", "send", 3, 3),
            ("simulated", "send", 6, 5),
        ],
    )
    def test_arrival(self, source: str, name: str, send_end: float, arrival: float) -> None:
        send = Event(0, "SEND", 0, send_end, name=name, peer=1, message=7)
        receive = Event(1, "RECV", 2, 5, name="recv", peer=0, message=7)
        line = timeline(send, receive, source=source)
        assert line.arrival(*line.messages[0]) == arrival

    def test_a_number_used_twice(self) -> None:
        line = timeline(Event(0, "SEND", 0, 1, message=7), Event(1, "SEND", 0, 1, message=7))
        with pytest.raises(TimelineError, match="message 7 has two SEND events, on ranks 0 and 1"):
            _ = line.messages


class TestParts:
    def two_steps(self) -> Timeline:
        return timeline(
            *(Event(0, "F", t, t + 1, held_until=t + 2) for t in (0, 10)),
            *(Event(0, "OPTIM", t, t + 1) for t in (2, 12)),
            *(Event(1, "F", t, t + 1) for t in (1, 11)),
            *(Event(1, "OPTIM", t, t) for t in (4, 14)),
            Event(1, "F", 20, 21, name="after the last step"),
        )

    def test_steps(self) -> None:
        line = self.two_steps()
        assert line.n_steps == 2
        first, second = line.step(0), line.step(1)
        assert [(e.rank, e.kind, e.start) for e in first] == [
            (0, "F", 0),
            (1, "F", 1),
            (0, "OPTIM", 2),
            (1, "OPTIM", 4),
        ]
        assert second == first == line.step(-2)
        assert second.events[0].held_until == 2

    def test_a_clipped_step_begins_with_its_first_computation(self) -> None:
        """Rank 1 waits for step 1 while rank 0 still ends step 0.

        rank 0 |**...FF..**|
        rank 1 |*~~~~~~F*..|   ~ receive; W, a wait, is over before the first F
        """
        line = timeline(
            Event(0, "OPTIM", 0, 2),
            Event(1, "OPTIM", 0, 1),
            Event(1, "WAIT", 1, 1.5, name="wait for isend", peer=0),
            Event(1, "RECV", 1, 7, peer=0, message=0),
            Event(0, "RECV", 5, 5, peer=1),
            Event(0, "F", 5, 7, held_until=9),
            Event(0, "SEND", 7, 7, peer=1, message=0),
            Event(1, "F", 7, 8),
            Event(1, "OPTIM", 8, 9),
            Event(0, "OPTIM", 9, 11),
        )
        whole, clipped = line.step(1), line.step(-1, clip=True)
        assert (whole.makespan, len(whole)) == (10, 8)
        assert [(e.rank, e.kind, e.start, e.end) for e in clipped] == [
            (0, "RECV", 0, 0),
            (0, "F", 0, 2),
            (1, "RECV", 0, 2),
            (0, "SEND", 2, 2),
            (1, "F", 2, 3),
            (1, "OPTIM", 3, 4),
            (0, "OPTIM", 4, 6),
        ]
        assert clipped.events[1].held_until == 4
        assert clipped.makespan == 6
        assert clipped.busy == whole.busy
        assert len(clipped.messages) == 1

    def test_clipping_a_step_that_begins_with_computation_changes_nothing(self) -> None:
        assert self.two_steps().step(1, clip=True) == self.two_steps().step(1)

    def test_no_such_step(self) -> None:
        with pytest.raises(TimelineError, match="no step 2: the timeline has steps 0 to 1"):
            self.two_steps().step(2)
        with pytest.raises(TimelineError, match="no optimizer step"):
            two_ranks().step(0)

    def test_of_rank_and_shifted(self) -> None:
        line = two_ranks()
        assert [event.label for event in line.of_rank(1)] == ["F0", "F1", "B0", "B1"]
        assert line.shifted(5).start == 5
        assert line.shifted(5).shifted() == line
        with pytest.raises(TimelineError, match="no rank 2"):
            line.of_rank(2)


class TestTitle:
    def test_says_what_it_is(self) -> None:
        assert two_ranks().title == "hand-made: simulated, makespan 9 s, bubble fraction 33.3 %"
        notes = {"emulation": "F 20 ms, B 40 ms"}
        line = Timeline((Event(0, "F", 0, 0.02),), "measured, emulated", 1, "1F1B", notes)
        assert line.title == "1F1B: measured, emulated (F 20 ms, B 40 ms), makespan 20 ms, bubble fraction 0.0 %"

    def test_a_unit_of_its_own(self) -> None:
        line = dataclasses.replace(two_ranks(), notes={"unit": "time units"})
        assert "makespan 9 time units" in line.title


class TestCompare:
    def test_with_itself(self) -> None:
        found = two_ranks().compare(two_ranks().shifted(3))
        assert len(found.rows) == 8
        assert (found.missing, found.extra, found.reordered_ranks) == ((), (), ())
        assert found.makespan_ratio == 1
        assert {row.start_difference for row in found.rows} == {0}

    def test_longer_missing_extra_and_reordered(self) -> None:
        first = timeline(Event(0, "F", 0, 1, 0, 0), Event(0, "F", 1, 2, 0, 1), Event(0, "B", 2, 3, 0, 1))
        second = timeline(Event(0, "F", 0, 2, 0, 1), Event(0, "F", 2, 4, 0, 0), Event(0, "B", 4, 6, 0, 0))
        found = first.compare(second)
        assert [(row.microbatch, row.duration_ratio, row.start_difference) for row in found.rows] == [
            (0, 2, 2),
            (1, 2, -1),
        ]
        assert [event.label for event in found.missing] == ["B1"]
        assert [event.label for event in found.extra] == ["B0"]
        assert found.reordered_ranks == (0,)
        assert str(found).splitlines() == [
            "first:   hand-made: simulated, makespan 3 s, bubble fraction 50.0 %",
            "second:  hand-made: simulated, makespan 6 s, bubble fraction 50.0 %",
            "makespan second ÷ first: 2 (100.0 % longer)",
            "operations in both: 2; missing from the second: 1; extra in it: 1",
            "kind        count  median, first  median, second   ratio  most shifted",
            "F               2            1 s             2 s       2          +2 s",
            "why the second is longer or shorter, along its critical path:",
            "  operations take longer                    +2 s",
            "  operations that the first has not         +2 s",
            "  slack of this chain in the first          -1 s",
            "  in all                                    +3 s",
            "most changed: rank 0 F0 1 s → 2 s, rank 0 F1 1 s → 2 s",
            "order differs on rank 0",
            "missing: rank 0 B1",
            "extra: rank 0 B0",
        ]

    def test_occurrences_keep_steps_apart(self) -> None:
        steps = timeline(*(Event(0, "F", t, t + 1, 0, 0) for t in (0, 2, 4)))
        assert [row.occurrence for row in steps.compare(steps).rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"events": None}, "events must be a list of Event; got None"),
        ({"name": 5}, "name must be a text; got 5"),
        ({"notes": None}, "notes must be a dict of texts; got None"),
        ({"notes": {"emulation": 3}}, "notes must be a dict of texts"),
        ({"n_ranks": 2.0}, "at least one rank; got n_ranks=2.0"),
        ({"n_ranks": 10**9}, "at most 1,000,000 ranks; got n_ranks=1000000000"),
        ({"events": [Event(0.5, "F", 0, 1)]}, "ranks are integers"),  # type: ignore[arg-type]
        ({"events": [Event(0, "F", 0, 1), Event(False, "F", 0, 1)]}, "rank False is no whole number"),
        ({"events": [Event(0, "F", 0, 1, "a")]}, r"event 'F' \(rank 0, stage a\): stage 'a' is no whole number"),  # type: ignore[arg-type]
        ({"events": [Event(0, "F", 0, 1, 1.5)]}, "stage 1.5 is no whole number"),  # type: ignore[arg-type]
        ({"events": [Event(0, "F", 0, 1, 0, [1])]}, r"microbatch \[1\] is no whole number"),  # type: ignore[arg-type]
        ({"events": [Event(0, "SEND", 0, 1, peer="1")]}, "peer '1' is no whole number"),  # type: ignore[arg-type]
        ({"events": [Event(0, "SEND", 0, 1, message="1")]}, "message '1' is no whole number"),  # type: ignore[arg-type]
    ],
)
def test_parts_of_another_kind(change: dict[str, object], says: str) -> None:
    parts: dict[str, object] = {"events": (), "source": "measured", "n_ranks": 1} | change
    with pytest.raises(TimelineError, match=says):
        Timeline(**parts)  # type: ignore[arg-type]


def test_a_step_is_a_whole_number() -> None:
    with pytest.raises(TimelineError, match="whole number, the first step is 0"):
        Timeline((), "measured", 1).step("last")  # type: ignore[arg-type]
    timeline = Timeline((Event(0, "OPTIM", 0, 1),), "measured", 1)
    assert timeline.step(numpy.int64(0)) == timeline


@pytest.mark.parametrize("start", ["a", None, math.nan, True])
def test_a_start_is_a_number_of_seconds(start: Any) -> None:
    with pytest.raises(TimelineError, match="the new start is a finite number of seconds"):
        Timeline((), "measured", 1).shifted(start)


@pytest.mark.parametrize("rank", ["0", None, 0.0, 1, -1])
def test_a_rank_is_one_of_its_numbers(rank: Any) -> None:
    with pytest.raises(TimelineError, match=f"no rank {rank!r}: the timeline has ranks 0 to 0"):
        Timeline((), "measured", 1).of_rank(rank)


def test_numbers_of_numpy() -> None:
    event = Event(numpy.int64(0), "F", 0, 1, numpy.int64(0), numpy.int64(2))
    timeline = Timeline((event,), "measured", 1)
    assert timeline.of_rank(numpy.int64(0)) == (event,)
    assert timeline.to_text(width=numpy.int64(80)) == timeline.to_text(width=80)
    assert timeline.shifted(numpy.float32(1)).start == 1
