"""JSON that reads back exactly, Perfetto traces that nest and pair, HTML that needs no network."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest

from ppkit.errors import TimelineError
from ppkit.timeline import Event, Timeline


@pytest.fixture
def line() -> Timeline:
    """Two ranks, two messages under way at once, times that binary floats can't hold exactly."""
    events = [
        Event(0, "F", 0.1, 0.1 + 0.2, 0, 0, "forward", held_until=0.9),
        Event(0, "F", 0.3000000001, 0.5, 0, 1, "forward", note="overran 0.1 s by 0.1 s"),
        Event(0, "SEND", 0.3, 0.8, 0, 0, "send", 1, 4, 1024, 0),
        Event(0, "SEND", 0.5, 0.9, 0, 1, "send", 1, 5, 1024, 1),
        Event(1, "RECV", 0.1, 0.8, 1, 0, "recv", 0, 4, 1024, 0),
        Event(1, "RECV", 0.85, 0.9, 1, 1, "recv", 0, 5, 1024, 1),
        Event(1, "COLLECTIVE", 0.9, 1.0, name="all_reduce", nbytes=8),
    ]
    return Timeline(tuple(events), "measured, emulated", 2, "<hand> & made", {"emulation": "F 200 ms"})


class TestJson:
    def test_round_trip_is_exact(self, line: Timeline) -> None:
        assert Timeline.from_json(line.to_json()) == line
        assert Timeline.from_json(line.to_json()).to_json() == line.to_json()

    def test_fields(self, line: Timeline) -> None:
        document = json.loads(line.to_json())
        assert (document["format"], document["version"], document["n_ranks"]) == ("ppkit.timeline", 1, 2)
        assert document["fields"][:4] == ["rank", "kind", "start", "end"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("timeline.json", "not JSON.*not a path"),
            ("[" * 100_000, "not JSON"),
            ("[1, 2]", "no timeline.*'list'"),
            ('{"format": "other"}', "'other', not 'ppkit.timeline'"),
            ('{"format": "ppkit.timeline", "version": 9}', "version 9; this ppkit reads version 1"),
            ('{"format": "ppkit.timeline", "version": 1, "events": []}', "lacks 'fields'"),
        ],
    )
    def test_wrong_input(self, text: str, message: str) -> None:
        with pytest.raises(TimelineError, match=message):
            Timeline.from_json(text)

    def test_wrong_rows(self, line: Timeline) -> None:
        document = json.loads(line.to_json())
        with pytest.raises(TimelineError, match=r"event 0 .* 13 fields: \[0, 'F'\]"):
            Timeline.from_json(json.dumps({**document, "events": [[0, "F"]]}))
        with pytest.raises(TimelineError, match=r"unknown event fields \['colour'\]"):
            Timeline.from_json(json.dumps({**document, "fields": ["colour"]}))
        with pytest.raises(TimelineError, match="unknown kind 'X'"):
            Timeline.from_json(json.dumps({**document, "events": [[0, "X", *document["events"][0][2:]]]}))


class TestPerfetto:
    @pytest.fixture
    def trace(self, line: Timeline, tmp_path: Path) -> list[dict[str, Any]]:
        document = json.loads(line.to_perfetto(tmp_path / "trace.json").read_text(encoding="utf-8"))
        assert document["otherData"]["source"] == "measured, emulated"
        events: list[dict[str, Any]] = document["traceEvents"]
        return events

    def test_slices_are_in_microseconds_by_rank(self, line: Timeline, trace: list[dict[str, Any]]) -> None:
        slices = [row for row in trace if row["ph"] == "X"]
        assert len(slices) == len(line)
        first = next(row for row in slices if row["name"] == "F0")
        assert (first["ts"], first["dur"], first["pid"], first["tid"]) == (100000.0, 200000.0, 0, 0)
        assert first["args"] == {"stage": 0, "microbatch": 0, "name": "forward"}

    def test_slices_of_a_thread_do_not_overlap(self, trace: list[dict[str, Any]]) -> None:
        threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for row in trace:
            if row["ph"] == "X":
                threads.setdefault((row["pid"], row["tid"]), []).append((row["ts"], row["ts"] + row["dur"]))
        assert len([key for key in threads if key[0] == 0]) == 3  # compute, and two messages at once
        for spans in threads.values():
            assert all(a[1] <= b[0] + 1e-3 for a, b in itertools.pairwise(sorted(spans)))

    def test_ranks_and_threads_have_names(self, trace: list[dict[str, Any]]) -> None:
        names = {(row["pid"], row.get("tid"), row["args"].get("name")) for row in trace if row["ph"] == "M"}
        assert {(0, None, "rank 0"), (1, None, "rank 1"), (0, 0, "compute"), (0, 1, "communication")} <= names
        assert (0, 3, "communication 2") in names

    def test_flow_arrows_pair_lie_in_their_slices_and_run_forwards(self, trace: list[dict[str, Any]]) -> None:
        starts = {row["id"]: row for row in trace if row["ph"] == "s"}
        ends = {row["id"]: row for row in trace if row["ph"] == "f"}
        assert starts.keys() == ends.keys() == {0, 1}
        for number, start in starts.items():
            assert start["ts"] <= ends[number]["ts"]
            for arrow, kind in ((start, "SEND"), (ends[number], "RECV")):
                own = [
                    row
                    for row in trace
                    if row["ph"] == "X" and row["cat"] == kind and row["args"].get("tag") == number + 4
                ]
                assert [(row["pid"], row["tid"]) for row in own] == [(arrow["pid"], arrow["tid"])]
                assert own[0]["ts"] <= arrow["ts"] <= own[0]["ts"] + own[0]["dur"]
        assert all(row["bp"] == "e" for row in ends.values())


class TestHtml:
    def test_is_one_file_with_its_script_inside(self, line: Timeline, tmp_path: Path) -> None:
        pytest.importorskip("plotly")
        html = line.to_html(tmp_path / "gantt.html").read_text(encoding="utf-8")
        assert len(html) > 1_000_000  # plotly.js itself
        assert not re.findall(r"<script[^>]+src=", html)
        assert not re.findall(r"<link[^>]+href=", html)
        assert "<title>&lt;hand&gt; &amp; made: measured, emulated (F 200 ms)" in html

    def test_opens_without_a_network(self, line: Timeline, tmp_path: Path, chromium: str) -> None:
        api = pytest.importorskip("playwright.sync_api")
        path = line.to_html(tmp_path / "gantt.html")
        with api.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 900, "height": 600})
            asked: list[str] = []
            wrong: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(path.as_uri())
            page.wait_for_selector(".barlayer .point")
            marks = page.locator(".barlayer .point").count()
            browser.close()
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
        assert wrong == []
        assert marks == 2 + 7  # the idle row of each rank, and each event


def test_numbers_of_numpy_are_written() -> None:
    event = Event(numpy.int64(0), "F", numpy.float32(0), numpy.float64(1), microbatch=numpy.int64(3))
    timeline = Timeline((event,), "measured", numpy.int64(1))
    assert Timeline.from_json(timeline.to_json()) == timeline


@pytest.mark.parametrize("name", ["missing/file", ".", "a\0b", None])
@pytest.mark.parametrize("write", [Timeline.to_html, Timeline.to_perfetto])
def test_a_file_that_cannot_be_written(write: Any, name: Any, tmp_path: Path) -> None:
    timeline = Timeline((Event(0, "F", 0, 1),), "measured", 1)
    with pytest.raises(TimelineError, match=r"cannot write to .* give the path of a file in a folder that is there"):
        write(timeline, name and tmp_path / name)


@pytest.mark.parametrize(("key", "value"), [("events", 5), ("fields", 5), ("notes", 5), ("name", 5), ("n_ranks", "1")])
def test_json_with_values_of_another_kind(key: str, value: Any) -> None:
    document = json.loads(Timeline((Event(0, "F", 0, 1),), "measured", 1).to_json()) | {key: value}
    with pytest.raises(TimelineError):
        Timeline.from_json(json.dumps(document))
