"""Drawings: text laid out as the pictures it makes, SVG that stands alone, figures within their budgets."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from ppkit.draw import mimebundle, style, to_svg, to_text
from ppkit.draw.gantt import figure_spec, gantt
from ppkit.errors import PpkitError, TimelineError
from ppkit.timeline import Event, Timeline

Order = Callable[[int, int, int], list[tuple[str, int]]]
PLOTLY, SVG = "application/vnd.plotly.v1+json", "image/svg+xml"


def gpipe_order(n_ranks: int, n_microbatches: int, rank: int) -> list[tuple[str, int]]:
    return [(kind, index) for kind in "FB" for index in range(n_microbatches)]


def one_f_one_b_order(n_ranks: int, n_microbatches: int, rank: int) -> list[tuple[str, int]]:
    warm = min(n_ranks - 1 - rank, n_microbatches)
    forwards = [("F", index) for index in range(n_microbatches)]
    backwards = [("B", index) for index in range(n_microbatches)]
    steady = itertools.chain(*zip(forwards[warm:], backwards, strict=False))
    return [*forwards[:warm], *steady, *backwards[n_microbatches - warm :]]


def pipeline(n_ranks: int, n_microbatches: int, order: Order, latency: float = 0.0, **about: Any) -> Timeline:
    """Play each rank's order with F = 1 s and B = 2 s; messages take ``latency``."""
    todo = [order(n_ranks, n_microbatches, rank) for rank in range(n_ranks)]
    done: dict[tuple[str, int, int], float] = {}
    events: list[Event] = []
    clock, numbers = [0.0] * n_ranks, itertools.count()
    while any(todo):
        for rank, row in enumerate(todo):
            if not row:
                continue
            kind, index = row[0]
            source = rank - 1 if kind == "F" else rank + 1
            first = kind == "F" and rank == 0
            last = kind == "B" and rank == n_ranks - 1
            needed = ("F", rank, index) if last else (kind, source, index)
            if not first and needed not in done:
                continue
            ready = 0.0 if first else done[needed]
            if not (first or last):
                number, sent = next(numbers), ready
                ready += latency
                events.append(Event(source, "SEND", sent, ready, source, index, "send", rank, index, 4096, number))
                began = min(max(clock[rank], sent), ready)
                events.append(Event(rank, "RECV", began, ready, rank, index, "recv", source, index, 4096, number))
            start = max(clock[rank], ready)
            clock[rank] = done[kind, rank, index] = start + (1 if kind == "F" else 2)
            events.append(Event(rank, kind, start, clock[rank], rank, index))
            row.pop(0)
    return Timeline(tuple(events), **{"source": "simulated", "n_ranks": n_ranks, **about})


@pytest.fixture(scope="module")
def gpipe() -> Timeline:
    return pipeline(4, 8, gpipe_order, name="GPipe")


@pytest.fixture(scope="module")
def one_f_one_b() -> Timeline:
    return pipeline(4, 8, one_f_one_b_order, name="1F1B")


@pytest.fixture(scope="module")
def emulated() -> Timeline:
    notes = {"emulation": "F 1 s, B 2 s, link 250 ms"}
    return pipeline(4, 8, one_f_one_b_order, 0.25, source="measured, emulated", name="1F1B", notes=notes)


@pytest.fixture(scope="module")
def large() -> Timeline:
    return pipeline(32, 256, one_f_one_b_order, name="1F1B")


@pytest.fixture(scope="module")
def blocking() -> Timeline:
    """A blocking send on an emulated link of 100 ms, an asynchronous one, and the waits for both kinds of work."""
    events = (
        Event(0, "F", 0, 0.2, 0, 0),
        Event(0, "SEND", 0.2, 0.21, name="send", peer=1, message=0),
        Event(1, "RECV", 0, 0.3, name="recv", peer=0, message=0),
        Event(0, "SEND", 0.21, 0.31, name="isend", peer=1, message=1),
        Event(0, "WAIT", 0.21, 0.4, name="wait for isend", peer=1),
        Event(1, "RECV", 0.35, 0.5, name="irecv", peer=0, message=1),
        Event(1, "WAIT", 0.5, 0.9, name="wait for all_reduce"),
    )
    return Timeline(events, "measured, emulated", 2, "blocking", {"emulation": "link 100 ms"})


class TestText:
    def test_gpipe(self, gpipe: Timeline) -> None:
        assert to_text(gpipe, 80).splitlines() == [
            "GPipe",
            "simulated, makespan 33 s, bubble fraction 27.3 %",
            "rank 0 |0=1=2=3=4=5=6=7=..................0###1###2###3###4###5###6###7###|",
            "rank 1 |..0=1=2=3=4=5=6=7=............0###1###2###3###4###5###6###7###....|",
            "rank 2 |....0=1=2=3=4=5=6=7=......0###1###2###3###4###5###6###7###........|",
            "rank 3 |......0=1=2=3=4=5=6=7=0###1###2###3###4###5###6###7###............|",
            "        0                                                             33 s",
            "= forward, # backward, . idle; numbers are micro-batches",
            "bubble fraction 27.3 % (idle ÷ ranks × makespan), bubble ratio 0.375 (idle ÷ work)",
            "peak in flight by rank: 8 8 8 8",
            "bytes sent by rank: 32.8 kB, 65.5 kB, 65.5 kB, 32.8 kB",
        ]

    def test_one_f_one_b(self, one_f_one_b: Timeline) -> None:
        text = to_text(one_f_one_b)
        assert text.splitlines()[2:6] == [
            "rank 0 |0=1=2=3=............0###4=1###5=2###6=3###7=4###..5###..6###..7###|",
            "rank 1 |..0=1=2=........0###3=1###4=2###5=3###6=4###7=5###..6###..7###....|",
            "rank 2 |....0=1=....0###2=1###3=2###4=3###5=4###6=5###7=6###..7###........|",
            "rank 3 |......0=0###1=1###2=2###3=3###4=4###5=5###6=6###7=7###............|",
        ]
        assert "peak in flight by rank: 4 3 2 1" in text

    def test_kinds_keep_a_character_of_their_own(self) -> None:
        kinds = ("F", "I", "W", "B")
        events = tuple(Event(0, kind, 2 * n, 2 * n + 2, 0, 12) for n, kind in enumerate(kinds))
        lines = to_text(Timeline(events, "simulated", 1), 36).splitlines()
        assert "rank 0 |12====12++++12%%%%12####|" in lines

    def test_communication_has_a_lane_only_if_it_lasts(self, emulated: Timeline) -> None:
        lines = to_text(emulated, 100).splitlines()
        assert lines[1].startswith("measured, emulated (F 1 s, B 2 s, link 250 ms), makespan")
        assert [line[:8] for line in lines[2:6]] == ["rank 0 |", "       |", "rank 1 |", "       |"]
        assert "~" in lines[5]
        assert all(len(line) <= 100 for line in lines)

    def test_empty(self) -> None:
        assert "rank 1 |....." in to_text(Timeline((), "simulated", 2))

    def test_too_narrow(self, gpipe: Timeline) -> None:
        with pytest.raises(TimelineError, match=r"width=10\) is too narrow; it takes 28"):
            to_text(gpipe, 10)


class TestSvg:
    def test_stands_alone(self, emulated: Timeline) -> None:
        svg = to_svg(emulated)
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        words = " ".join(root.itertext())
        for word in ("emulated", "link 250 ms", "rank 3", "forward", "backward", "send", "message", "time (s)"):
            assert word in words
        assert re.findall(r'href|<script|<style|url\(|https?://(?!www\.w3\.org/2000/svg")', svg) == []

    def test_is_small_and_labelled(self, one_f_one_b: Timeline) -> None:
        svg = to_svg(one_f_one_b)
        assert len(svg) < 10_000
        assert len(re.findall(r">7</text>", svg)) == 8  # F7 and B7 of every rank

    def test_text_stays_on_the_page(self, emulated: Timeline) -> None:
        root = ElementTree.fromstring(to_svg(emulated))
        height = float(root.attrib["height"])
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            assert 0 <= float(text.attrib["x"]) <= 900
            assert 10 <= float(text.attrib["y"]) <= height - 4

    def test_bands_share_an_axis_and_a_legend(self, gpipe: Timeline, emulated: Timeline) -> None:
        short = Timeline(gpipe.events[:8], "simulated", 4, "short")
        svg = to_svg(emulated, short, title="Two & one axis")
        root = ElementTree.fromstring(svg)
        texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        for once in ("Two & one axis", "1F1B", "short", "time (s)", "forward", "backward", "send", "message"):
            assert texts.count(once) == 1
        assert any("measured, emulated (F 1 s, B 2 s, link 250 ms)" in text for text in texts if text)
        assert texts.count("rank 3") == 2
        idle = re.findall(rf'<rect x="64" y="[^"]*" width="(\S+)" height="\S+" fill="{style.IDLE}"/>', svg)
        assert [float(width) for width in idle[:8]] == pytest.approx(
            4 * [816] + 4 * [816 * short.makespan / emulated.makespan], abs=0.1
        )

    def test_bands_lie_one_below_the_other(self, gpipe: Timeline, one_f_one_b: Timeline) -> None:
        root = ElementTree.fromstring(to_svg(gpipe, one_f_one_b, gpipe, title="Three"))
        y = {text.text: float(text.attrib["y"]) for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert y["Three"] < y["1F1B"] < y["GPipe"] < y["rank 0"] < y["rank 3"] < y["time (s)"] < y["forward"]
        assert y["forward"] < float(root.attrib["height"])

    def test_height(self, gpipe: Timeline, one_f_one_b: Timeline) -> None:
        for height in (700, 1000):
            root = ElementTree.fromstring(to_svg(gpipe, one_f_one_b, title="Title", height=height))
            assert float(root.attrib["height"]) == height
        assert 100 < float(ElementTree.fromstring(to_svg(gpipe, height=10)).attrib["height"]) < 250

    def test_labels_and_messages(self, emulated: Timeline, gpipe: Timeline) -> None:
        assert ">7</text>" not in to_svg(emulated, labels=False)
        assert ">message</text>" not in to_svg(emulated, messages=False)
        assert ">message</text>" not in to_svg(gpipe)
        assert ">message</text>" in to_svg(gpipe, messages=True)

    def test_escapes(self) -> None:
        line = Timeline((Event(0, "COMPUTE", 0, 1, name="a<b&c"),), "measured", 1, "<i>&")
        words = " ".join(ElementTree.fromstring(to_svg(line)).itertext())
        assert "<i>&" in words
        assert "a<b&c" in words

    @pytest.mark.parametrize("events", [(), (Event(0, "F", 1, 1),), (Event(1, "F", 0, 3e-9),)])
    def test_odd_timelines(self, events: tuple[Event, ...]) -> None:
        line = Timeline(events, "measured", 2)
        ElementTree.fromstring(to_svg(line))
        assert figure_spec(line)["data"]
        assert to_text(line)


class TestColours:
    def test_operations_differ_in_grey(self) -> None:
        order = ["OPTIM", "F", "W", "B", "I"]
        light = [style.relative_luminance(style.colour(kind)) + 0.05 for kind in order]
        assert all(b / a >= 1.5 for a, b in itertools.pairwise(light))

    def test_messages_differ_in_grey(self) -> None:
        light = [style.relative_luminance(style.colour(kind)) + 0.05 for kind in ("COLLECTIVE", "SEND", "WAIT")]
        assert all(b / a >= 1.3 for a, b in itertools.pairwise(light))

    @pytest.mark.parametrize("group", style.ORDER)
    @pytest.mark.parametrize("chunk", [0, 1, 3])
    def test_labels_are_legible(self, group: str, chunk: int) -> None:
        colour = style.colour(group, chunk)
        a, b = sorted(style.relative_luminance(c) + 0.05 for c in (colour, style.ink(colour)))
        assert b / a >= 4.5


class TestFigure:
    def test_one_trace_per_kind(self, emulated: Timeline) -> None:
        spec = figure_spec(emulated)
        names = [trace["name"] for trace in spec["data"]]
        assert names == ["idle", "forward", "backward", "receive, wait", "send", "message"]
        idle, forward = spec["data"][:2]
        assert idle["hoverinfo"] == "skip"
        assert forward["hovertext"][0] == "rank 0, F0 (stage 0), 1 s: 0.00–1.00 s"
        assert set(forward["text"]) == set("01234567")
        title = spec["layout"]["title"]["text"]
        assert "measured, emulated (F 1 s, B 2 s, link 250 ms)" in title
        assert "makespan" in title
        assert "bubble fraction" in title

    def test_hover_says_notes_peers_and_bytes(self) -> None:
        send = Event(0, "SEND", 0.02, 0.025, 0, 5, "send", 1, 5, 4100, 0)
        line = Timeline((Event(0, "F", 0, 0.0201, 0, 5, note="overran"), send), "measured", 2)
        _, forward, sent = figure_spec(line)["data"]
        assert forward["hovertext"] == ["rank 0, F5 (stage 0), 20.1 ms: 0.00–20.10 ms — overran"]
        assert sent["hovertext"] == ["rank 0, send→1 (micro-batch 5), 4.1 kB, 5 ms: 20.00–25.00 ms"]

    def test_waits_are_not_drawn_as_receives(self, blocking: Timeline) -> None:
        waits = next(trace for trace in figure_spec(blocking)["data"] if trace["name"] == "receive, wait")
        assert waits["text"] == ["←0", "wait", "←0", "wait"]
        assert [text.split(", ")[1] for text in waits["hovertext"]] == [
            "recv←0",
            "wait for isend to 1",
            "recv←0",
            "wait for all_reduce",
        ]
        assert to_svg(blocking).count(">wait</text>") == 2

    def test_messages_end_where_they_arrive(self, blocking: Timeline) -> None:
        *_, lines = figure_spec(blocking)["data"]
        assert lines["x"] == [200, 300, None, 210, 310, None]  # ms: the blocking send has ended at 210
        points = re.findall(rf'd="([^"]*)" fill="none" stroke="{style.MESSAGE}"', to_svg(blocking))[0]
        ends = [64 + 816 * ms / 900 for ms in (200, 300, 210, 310)]
        assert [float(x) for x in re.findall(r"[ML](\S+)", points)] == pytest.approx(ends, abs=0.06)

    def test_no_communication_lane_unless_it_lasts(self, one_f_one_b: Timeline, emulated: Timeline) -> None:
        names = [trace["name"] for trace in figure_spec(one_f_one_b)["data"]]
        assert names == ["idle", "forward", "backward", "message"]
        *_, sends, messages = figure_spec(emulated)["data"]
        assert sends["width"] < figure_spec(emulated)["data"][1]["width"]
        assert len(messages["x"]) == 3 * len(emulated.messages)
        assert "visible" not in messages

    def test_times_count_from_the_first_start(self, gpipe: Timeline) -> None:
        assert figure_spec(gpipe.shifted(1000.0)) == figure_spec(gpipe)

    def test_bands_share_an_axis(self, gpipe: Timeline, one_f_one_b: Timeline) -> None:
        spec = figure_spec(gpipe, one_f_one_b, title="Same bubble")
        assert len(spec["layout"]["yaxis"]["tickvals"]) == 8
        assert "Same bubble" in spec["layout"]["title"]["text"]
        assert ["1F1B" in note["text"] for note in spec["layout"]["annotations"]] == [True]
        assert [len(trace["x"]) for trace in spec["data"][:3]] == [8, 64, 64]

    def test_chunks_have_their_own_shade(self) -> None:
        events = [Event(0, "F", n, n + 1, stage, 0) for n, stage in enumerate((0, 7, 3))]
        data = figure_spec(Timeline(tuple(events), "simulated", 1))["data"][1:]
        assert [trace["name"] for trace in data] == ["forward, chunk 0", "forward, chunk 1", "forward, chunk 2"]
        assert len({trace["marker"]["color"] for trace in data}) == 3

    def test_many_bars_show_their_numbers_on_zoom(self, gpipe: Timeline) -> None:
        assert "uniformtext" not in figure_spec(gpipe)["layout"]
        assert figure_spec(pipeline(8, 32, gpipe_order))["layout"]["uniformtext"]["mode"] == "hide"
        assert all("text" not in trace for trace in figure_spec(gpipe, labels=False)["data"])

    def test_a_large_timeline_within_budget(self, large: Timeline) -> None:
        spec = figure_spec(large)
        assert sum(event.lane == "compute" for event in large) == 16_384
        assert len(spec["data"]) == 3
        # As a notebook file holds it, which puts each number of a list on a line of its own.
        assert len(json.dumps(spec, indent=1)) < 400_000
        assert "customdata" in spec["data"][1]

    def test_a_large_timeline_with_varied_times_within_budget(self, large: Timeline) -> None:
        stretched = [
            Event(e.rank, e.kind, 1.01 * e.start, 1.01 * e.end * (1 + 1e-4 * e.rank), e.stage, e.microbatch)
            for e in large
            if e.lane == "compute"
        ]
        spec = figure_spec(Timeline(tuple(stretched), "measured", 32))
        assert len(json.dumps(spec, indent=1)) < 400_000

    def test_communication_too_large_to_draw_is_said(self, large: Timeline) -> None:
        line = pipeline(32, 256, one_f_one_b_order, 0.01)
        spec = figure_spec(line)
        assert len(spec["data"]) == 3
        assert re.search(r"\d+ communication events not drawn", spec["layout"]["title"]["text"])

    def test_without_plotly_or_numpy(self, tmp_path: Any) -> None:
        code = (
            "import sys; sys.modules['plotly'] = None; from ppkit.timeline import Event, Timeline;"
            "line = Timeline((Event(0, 'F', 0, 1),), 'simulated', 1); from ppkit.draw import mimebundle, gantt;"
            "line.to_text(); line.to_svg(); line.to_json();"
            "assert not {'numpy', 'torch'} & set(sys.modules)\n"
            "try: gantt(line)\nexcept Exception as e: print(type(e).__name__, e)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "PpkitError gantt() needs plotly: pip install plotly" in done.stdout


class TestGantt:
    def test_is_a_valid_figure_without_template_or_random_names(self, emulated: Timeline, large: Timeline) -> None:
        go = pytest.importorskip("plotly.graph_objects")
        figure = gantt(emulated)
        assert isinstance(figure, go.Figure)
        text = figure.to_json()
        assert text == gantt(emulated).to_json()
        assert "uid" not in text
        assert "colorscale" not in text
        assert len(text) < 20_000
        assert len(gantt(large).to_json()) < 400_000

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "got no timeline; give it at least one"),
            (([],), r"argument 1 of gantt\(\) is a list; write gantt\(\*timelines\)"),
            (("1F1B",), "is a str, not a Timeline"),
        ],
    )
    def test_wrong_timelines(self, arguments: tuple[Any, ...], message: str) -> None:
        with pytest.raises(TimelineError, match=message):
            gantt(*arguments)

    def test_something_that_has_a_timeline(self, gpipe: Timeline) -> None:
        class Run:
            timeline = gpipe

        class Schedule:
            stage_to_rank = (0,)

        with pytest.raises(TimelineError, match=r"argument 2 .* is a Run; give its \.timeline"):
            gantt(gpipe, Run())  # type: ignore[arg-type]
        with pytest.raises(TimelineError, match=r"give simulate\(schedule\)"):
            gantt(Schedule())  # type: ignore[arg-type]

    def test_wrong_options(self, gpipe: Timeline) -> None:
        with pytest.raises(TimelineError, match="labels='no'"):
            gantt(gpipe, labels="no")
        other = Timeline(gpipe.events, "simulated", 4, notes={"unit": "time units"})
        with pytest.raises(TimelineError, match="seconds and time units on one axis"):
            gantt(gpipe, other)


class TestDisplay:
    def test_bundle(self, one_f_one_b: Timeline) -> None:
        pytest.importorskip("plotly")
        bundle = one_f_one_b._repr_mimebundle_()
        assert bundle.keys() == {"text/plain", SVG, PLOTLY}
        assert bundle == one_f_one_b._repr_mimebundle_()
        assert len(json.dumps(bundle[PLOTLY])) < 12_000
        json.dumps(bundle[PLOTLY], allow_nan=False)

    def test_large_bundle_has_no_svg(self, large: Timeline) -> None:
        assert SVG not in mimebundle(large)

    def test_without_plotly(self, one_f_one_b: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ppkit.draw.find_spec", lambda name: None)
        assert mimebundle(one_f_one_b).keys() == {"text/plain", SVG}

    def test_colab_gets_html(self, one_f_one_b: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("plotly")
        monkeypatch.setitem(sys.modules, "google.colab", object())
        assert "plotly" in mimebundle(one_f_one_b)["text/html"]

    def test_a_figure_shows_what_its_timeline_shows(self, emulated: Timeline, large: Timeline) -> None:
        pytest.importorskip("plotly")
        assert gantt(emulated)._repr_mimebundle_() == emulated._repr_mimebundle_()
        assert gantt(large)._repr_mimebundle_() == large._repr_mimebundle_()

    def test_a_figure_of_several(self, gpipe: Timeline, one_f_one_b: Timeline, large: Timeline) -> None:
        pytest.importorskip("plotly")
        figure = gantt(gpipe, one_f_one_b, title="Same bubble", height=640)
        bundle = figure._repr_mimebundle_()
        assert bundle.keys() == {"text/plain", SVG, PLOTLY}
        assert bundle == gantt(gpipe, one_f_one_b, title="Same bubble", height=640)._repr_mimebundle_()
        expected = figure_spec(gpipe, one_f_one_b, title="Same bubble", height=640)
        assert bundle[PLOTLY] == {**expected, "config": {"displaylogo": False}}
        assert bundle[SVG] == to_svg(gpipe, one_f_one_b, title="Same bubble", height=640)
        assert bundle["text/plain"] == f"Same bubble\n\n{gpipe.to_text()}\n\n{one_f_one_b.to_text()}"
        assert SVG not in gantt(gpipe, large)._repr_mimebundle_()

    def test_a_figure_that_was_changed(self, gpipe: Timeline) -> None:
        pytest.importorskip("plotly")
        figure = gantt(gpipe).update_layout(template="plotly_dark", paper_bgcolor="black").add_vline(x=3)
        layout = figure._repr_mimebundle_()[PLOTLY]["layout"]
        assert layout["paper_bgcolor"] == "black"
        assert len(layout["shapes"]) == 1
        assert layout["template"]["data"]

    def test_copies_of_a_figure(self, gpipe: Timeline) -> None:
        pytest.importorskip("plotly")
        figure = gantt(gpipe, title="Copied")
        for other in (copy.deepcopy(figure), pickle.loads(pickle.dumps(figure))):
            assert other._repr_mimebundle_() == figure._repr_mimebundle_()

    def test_jupyter_takes_the_bundle_and_nothing_else(self, gpipe: Timeline) -> None:
        pytest.importorskip("plotly")
        formatters = pytest.importorskip("IPython.core.formatters")
        shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
        assert not callable(gantt(gpipe)._ipython_display_)
        data, _ = formatters.DisplayFormatter(parent=shell).format(gantt(gpipe))
        assert data.keys() == {"text/plain", SVG, PLOTLY}

    def test_errors_are_ppkit_errors(self) -> None:
        assert issubclass(TimelineError, PpkitError)


def test_what_is_noted_of_a_rank_stands_beside_its_number():
    roles = {"rank 0": "replica 0 · stage 0", "rank 1": "replica 0 · stage 1"}
    plain, noted = (pipeline(2, 4, one_f_one_b_order, notes=notes) for notes in ({}, roles))
    names = figure_spec(noted)["layout"]["yaxis"]["ticktext"]
    assert ["rank 1" in names[1], "replica 0 · stage 1" in names[1]] == [True, True]
    assert figure_spec(noted)["layout"]["margin"]["l"] > figure_spec(plain)["layout"]["margin"]["l"]
    svg = noted.to_svg()
    assert svg.count("replica 0 · stage") == 2
    left = int(svg.split('viewBox="')[1].split()[0])
    assert left < 0  # room for the longer names
    assert 'viewBox="0 0 900' in plain.to_svg()
    lines = noted.to_text().splitlines()
    assert any(line.startswith("rank 1, replica 0 · stage 1 |") for line in lines)
