"""Drawings with the critical path, rank by rank, and with memory beneath."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from ppkit.builders import gpipe, one_f_one_b, zero_bubble_h1
from ppkit.costs import Costs
from ppkit.draw import mimebundle, style, to_svg
from ppkit.draw.gantt import figure_spec, gantt
from ppkit.errors import TimelineError
from ppkit.memory import Memory, memory
from ppkit.simulate import simulate
from ppkit.timeline import Timeline

SIZES = Costs(forward=1, input_grad=1, weight_grad=1, stored_bytes=1_000_000, parameter_bytes=500_000)


@pytest.fixture
def slow_middle() -> Timeline:
    return simulate(gpipe(3, 3), Costs(forward=[1, 2, 1], backward=[2, 4, 2], latency=0.5))


@pytest.fixture
def held() -> Memory:
    return memory(zero_bubble_h1(3, 4), SIZES)


def trace(spec: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in spec["data"] if found["name"].startswith(name))


def words(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


# Critical path


def test_edges_lie_on_the_bars_of_the_path(slow_middle: Timeline) -> None:
    edges = trace(figure_spec(slow_middle, critical=True), "critical path")
    path = slow_middle.critical_path()
    assert edges["base"] == [event.start for event in path]
    assert edges["x"] == [event.duration for event in path]
    assert [round(y) for y in edges["y"]] == [event.rank for event in path]
    assert [width < 0.5 for width in edges["width"]] == [event.lane == "comm" for event in path]
    assert edges["marker"]["color"] == "rgba(0,0,0,0)"
    assert not any(t["name"] == "critical path" for t in figure_spec(slow_middle)["data"])


def test_edges_in_the_static_picture_and_words_in_the_text(slow_middle: Timeline) -> None:
    svg = to_svg(slow_middle, critical=True)
    assert svg.count(f'stroke="{style.CRITICAL}"') == len(slow_middle.critical_path())
    assert "critical path" in words(svg)
    assert "critical path" not in words(to_svg(slow_middle))
    text = mimebundle(slow_middle, critical=True)["text/plain"]
    assert text.splitlines()[-1] == (
        "critical path: rank 0: F0 rank 1: F0 F1 F2 rank 2: F2 B0 rank 1: B0 B1 B2 rank 0: B2"
    )
    long = mimebundle(simulate(one_f_one_b(4, 30)), critical=True)["text/plain"].splitlines()[-1]
    assert re.search(r" … and \d+ more$", long)


def test_edges_of_every_timeline(slow_middle: Timeline) -> None:
    edges = trace(figure_spec(slow_middle, slow_middle, critical=True), "critical path")
    assert len(edges["x"]) == 2 * len(slow_middle.critical_path())


# Rank by rank


def test_rows_of_a_rank_lie_together(slow_middle: Timeline) -> None:
    measured = Timeline(slow_middle.events, "measured", 3, "GPipe")
    spec = figure_spec(slow_middle, measured, by_rank=True)
    axis = spec["layout"]["yaxis"]
    rows = sorted(zip(axis["tickvals"], axis["ticktext"], strict=True))
    names = [re.sub("<[^>]*>", " ", text).split() for _, text in rows]
    assert names == [["rank", str(rank), source] for rank in range(3) for source in ("simulated", "measured")]
    # Every bar lies on its row.
    forward = trace(spec, "forward")
    assert set(forward["y"]) <= set(axis["tickvals"])
    title = spec["layout"]["title"]["text"]
    assert "simulated, makespan" in title
    assert "measured, makespan" in title
    assert "annotations" not in spec["layout"]
    assert trace(spec, "message")["visible"] == "legendonly"
    svg = to_svg(slow_middle, measured, by_rank=True)
    assert words(svg).split().count("measured") == 3
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="end">rank', svg)]
    assert len(set(heights)) == 6


def test_rows_are_told_apart_by_what_differs(slow_middle: Timeline) -> None:
    other = simulate(one_f_one_b(3, 3))
    assert style.row_names([slow_middle, other]) == ["GPipe", "1F1B"]
    assert style.row_names([other, other]) == ["1.", "2."]


def test_timelines_of_different_ranks_by_rank() -> None:
    two, four = simulate(gpipe(2, 2)), simulate(gpipe(4, 2))
    for pair in ((two, four), (four, two)):
        spec = figure_spec(*pair, by_rank=True)
        axis = spec["layout"]["yaxis"]
        assert len(set(axis["tickvals"])) == 6
        assert max(axis["tickvals"]) < axis["range"][0]
        ElementTree.fromstring(to_svg(*pair, by_rank=True, height=500))


# Memory


def test_curves_step_where_memory_changes(held: Memory) -> None:
    spec = figure_spec(held.timeline, memory=held)
    curve = trace(spec, "rank 1: peak")
    assert curve["line"]["shape"] == "hv"
    assert curve["yaxis"] == "y2"
    for x, y in list(zip(curve["x"], curve["y"], strict=True))[:-1]:
        assert sum(held.curves[1].at(x).values()) == y
    assert curve["x"][-1] == held.timeline.makespan
    assert all(one != other for one, other in zip(curve["y"][:-2], curve["y"][1:-1], strict=True))
    peaks = trace(spec, "peak")
    assert tuple(peaks["y"]) == held.peak
    assert tuple(peaks["x"]) == held.peak_at
    assert peaks["hovertext"][2] == (
        "rank 2: peak 4 MB at 8 s: parameters 500 kB, gradients 500 kB, weight-gradient leftovers 3 MB"
    )
    layout = spec["layout"]
    assert layout["yaxis"]["domain"][0] > layout["yaxis2"]["domain"][1]
    assert layout["xaxis"]["anchor"] == "y2"
    assert layout["height"] > figure_spec(held.timeline)["layout"]["height"] + 100


def test_memory_in_the_static_picture_and_the_text(held: Memory) -> None:
    svg = held.to_svg()
    assert svg.count("<circle") == 3
    assert "rank 0: peak 4 MB at" in words(svg)
    bundle = held._repr_mimebundle_()
    assert bundle["image/svg+xml"] == svg
    assert str(held) in bundle["text/plain"]
    figure = held.gantt(critical=True)
    shown = figure._repr_mimebundle_()
    assert shown["image/svg+xml"].count("<circle") == 3
    assert style.CRITICAL in shown["image/svg+xml"]


def test_many_ranks_have_no_legend_of_curves() -> None:
    many = memory(one_f_one_b(16, 128), SIZES)
    spec = figure_spec(many.timeline, memory=many)
    assert not trace(spec, "rank 3: peak").get("showlegend", True)
    assert "hovertext" not in trace(spec, "rank 3: peak")
    assert "rank 3: peak" not in to_svg(many.timeline, memory=many)


def test_curves_are_told_apart_without_colour(held: Memory) -> None:
    colours = [style.curve_colour(rank, 4) for rank in range(4)]
    assert len(set(colours)) == 4
    lights = [style.relative_luminance(colour) for colour in colours]
    assert lights == sorted(lights)
    dashes = [t["line"]["dash"] for t in figure_spec(held.timeline, memory=held)["data"] if t["name"][:4] == "rank"]
    assert len(set(dashes)) == 3


# Mistakes


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda t, m: gantt(t, critical="yes"), "critical='yes'.*True or False"),
        (lambda t, m: gantt(t, by_rank=1), "by_rank=1.*True or False"),
        (lambda t, m: gantt(t, memory=5), r"memory=5\): it is what memory\(timeline, costs\) returns"),
        (lambda t, m: gantt(t, memory=m), r"memory under the one timeline that it is of"),
        (lambda t, m: gantt(m.timeline, t, memory=m), r"memory under the one timeline that it is of"),
    ],
)
def test_mistakes(slow_middle: Timeline, held: Memory, make: Callable[..., Any], says: str) -> None:
    with pytest.raises(TimelineError, match=says):
        make(slow_middle, held)


def test_all_reduces_of_many_small_buckets_are_not_hidden_under_their_edges() -> None:
    schedule = one_f_one_b(2, 4).with_reduce()
    few, many = (Costs(n_replicas=2, parameter_bytes=1000, bandwidth=1000, bucket_bytes=n) for n in (500, 5))
    assert trace(figure_spec(simulate(schedule, few)), "collective")["marker"]["line"]["width"] == 1
    assert "line" not in trace(figure_spec(simulate(schedule, many)), "collective")["marker"]


@pytest.mark.parametrize("height", [-5, 0, "big", float("nan"), float("inf")])
def test_a_height_is_a_number_of_pixels(slow_middle: Timeline, height: Any) -> None:
    with pytest.raises(TimelineError, match="a number of pixels, 10 or more"):
        gantt(slow_middle, height=height)


def test_texts_and_widths_of_another_kind(slow_middle: Timeline) -> None:
    with pytest.raises(TimelineError, match=r"gantt\(title=5\): it is a text"):
        gantt(slow_middle, title=5)  # type: ignore[arg-type]
    for width in ("wide", 80.5, float("nan")):
        with pytest.raises(TimelineError, match="whole number of characters"):
            slow_middle.to_text(width)  # type: ignore[arg-type]
