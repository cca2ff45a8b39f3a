"""Lab 08: plans are simulated as the planner simulates, the best is the best, and near it there are half points."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product

import IPython.display
import pytest
from bank import bank

from ppkit.checks import lab08
from ppkit.checks.lab08.paper import _HYBRIDS
from ppkit.checks.lab08.sites import (
    CLUSTER,
    HOME,
    SCHEDULES,
    SERVER,
    Decision,
    Link,
    Site,
    _links,
    at_least,
    best,
    impossible,
    outcome,
)
from ppkit.checks.mistakes import Mistake, choosing
from ppkit.checks.reference.choosing import all_reduce_seconds, pipeline_seconds
from ppkit.planner import plan

GOOD = {"replicas": 1, "stages": 2, "microbatches": 8, "schedule": "ZB-H1"}


def decisions(site: Site, sizes: tuple[int, ...], counts: tuple[int, ...]) -> list[Decision]:
    """Every possible plan with these numbers."""
    places = ("stages", "replicas") if site.n_nodes > 1 else ("stages",)
    choices = product(sizes, sizes, counts, SCHEDULES, (False, True), (False, True), places)
    return [one for one in (Decision(*choice) for choice in choices) if not impossible(site, one)]


# --- what a plan takes


@pytest.mark.parametrize(
    ("schedule", "kind"), [(n, "interleaved 1F1B" if n == "interleaved" else n) for n in SCHEDULES]
)
def test_a_pipeline_takes_what_the_planner_says(schedule: str, kind: str) -> None:
    site = replace(HOME, node=replace(HOME.node, memory=1e12))
    (option,) = [one for one in plan(site.model, site.node, site.batch).of_kind(kind) if one.n_stages == 2]
    ours = outcome(site, Decision(1, 2, option.n_microbatches, schedule))
    assert ours.seconds == pytest.approx(option.seconds)
    assert ours.peaks == pytest.approx(option.memory, rel=1e-6)


def test_the_formulas_of_the_lab_say_what_is_simulated() -> None:
    node = replace(HOME.node, overhead=0.0, bandwidth=1e30, latency=0.0)
    site = Site("test", HOME.model, node, 64)
    forward = HOME.model.forward * 8 / 2 / node.speed
    assert outcome(site, Decision(1, 2, 8)).seconds == pytest.approx(pipeline_seconds(2, 8, forward, 2 * forward, 0.0))
    ring = all_reduce_seconds(HOME.model.n_parameters * 2, 2, 1e-4, 0.5e9)
    alone = outcome(replace(HOME, batch=32), Decision(1, 1, 8)).seconds
    for zero, times in ((False, 1.0), (True, 1.5)):
        assert outcome(HOME, Decision(2, 1, 8, zero=zero)).seconds == pytest.approx(alone + times * ring)


def test_zero_and_recomputation_change_what_a_device_holds() -> None:
    count, layer, message = SERVER.model.n_parameters / 2, SERVER.model.activation_bytes, SERVER.model.message_bytes
    plain, sharded, again = (
        outcome(SERVER, Decision(4, 2, 8, zero=zero, recompute=recompute)).peaks[0]
        for zero, recompute in ((False, False), (True, False), (False, True))
    )
    assert plain == 16 * count + 2 * 12 * layer
    assert sharded == plain - 12 * count * 3 / 4
    assert message is not None
    assert again == 16 * count + 12 * layer + 2 * message


def test_the_slowest_link_on_the_way_counts() -> None:
    fast, slow = Link(1e-5, 200e9), CLUSTER.between
    links = {
        (4, 8, "stages"): (fast, slow),
        (4, 8, "replicas"): (slow, fast),
        (2, 3, "stages"): (fast, fast),  # all in the first node
        (8, 3, "stages"): (slow, slow),  # the third replica lies in two nodes
        (6, 4, "replicas"): (slow, slow),
        (1, 16, "stages"): (slow, slow),
    }
    found = {(d, p, place): _links(CLUSTER, Decision(d, p, 8, in_a_node=place)) for d, p, place in links}
    assert found == links
    reduces = {}
    for place in ("stages", "replicas"):
        events = outcome(CLUSTER, Decision(8, 4, 8, recompute=True, in_a_node=place)).timeline.of_rank(0)
        reduces[place] = next(event.end - event.start for event in events if event.kind == "COLLECTIVE")
    nbytes = CLUSTER.model.n_parameters / 4 * 2
    assert reduces["replicas"] == pytest.approx(all_reduce_seconds(nbytes, 8, *fast))
    assert slow is not None
    assert reduces["stages"] == pytest.approx(all_reduce_seconds(nbytes, 8, *slow))


# --- the best plan


@pytest.mark.parametrize("site", [HOME, SERVER], ids=lambda site: site.name)
def test_best_is_the_best_of_all(site: Site) -> None:
    every = decisions(site, (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64))
    results = [outcome(site, one) for one in every]
    fitting = [one.seconds for one in results if max(one.peaks) <= site.node.memory]
    found = outcome(site, best(site))
    assert found.seconds == min(fitting)
    assert max(found.peaks) <= site.node.memory
    near = sum(seconds <= 1.1 * found.seconds for seconds in fitting)
    assert 5 <= near <= len(fitting) / 2  # several are right, and most are not


@pytest.mark.parametrize("site", [HOME, SERVER, CLUSTER], ids=lambda site: site.name)
def test_no_plan_takes_less_than_its_bound(site: Site) -> None:
    sizes, counts = ((1, 2, 3), (1, 4, 8)) if site is HOME else ((1, 2, 4), (1, 2, 8))
    for one in decisions(site, sizes, counts):
        assert at_least(site, one) <= outcome(site, one).seconds * (1 + 1e-9), one


def test_each_machine_wants_a_plan_of_its_own() -> None:
    plans = [best(site) for site in (HOME, SERVER, CLUSTER)]
    assert (plans[0].replicas, plans[0].stages) == (1, 2)
    assert plans[1].recompute
    assert plans[2].in_a_node == "replicas"


# --- points


def test_near_the_best_there_are_half_of_the_points() -> None:
    report = lab08.check_cluster({"replicas": 8, "stages": 4, "microbatches": 32, "in_a_node": "replicas"})
    assert (report, report.mistake, report.done) == (6.0, "P135", True)
    assert "1.12 times as long" in str(report)
    assert report.timeline is not None


@pytest.mark.parametrize(
    ("seconds", "points", "words"),
    [(None, 6.0, "no number yet"), (1.9, 6.0, "too small."), (2100, 6.0, "not milliseconds"), (2.1, 12.0, "")],
)
def test_prediction_is_the_other_half(seconds: float | None, points: float, words: str) -> None:
    report = lab08.check_home(GOOD, seconds)
    assert report == points
    assert words in str(report)
    assert report.mistake == ("P139" if seconds and points == 6.0 else None)
    told = "A step takes" in str(report), report.timeline is not None
    assert told == ((points == 12.0,) * 2)  # the number to predict is not given away


def test_a_prediction_waits_for_the_plan() -> None:
    report = lab08.check_home(GOOD | {"schedule": "1F1B"}, 2.3)
    assert (report, report.mistake) == (3.0, "P135")
    assert "`home_seconds` is judged once" in str(report)
    assert "it waits for its neighbours" in str(report)
    alone = lab08.check_home({"replicas": 1, "stages": 1, "microbatches": 16}, None)
    assert "1 of 2 devices work; the busiest computes for" in str(alone)
    assert "waits for" not in str(alone)


@pytest.mark.ranks
def test_each_of_the_two_times_has_its_half() -> None:
    for functions in ((pipeline_seconds, None), (None, all_reduce_seconds)):
        report = lab08.check_times(*functions)
        assert (report, report.done) == (8.0, False)
        assert "agrees with simulated steps" in str(report)
    report = lab08.check_times(pipeline_seconds, lambda *_: 1.0)
    assert (report, report.done, report.mistake) == (8.0, True, "P109")


def test_hints_say_which_claim_they_are_about() -> None:
    assert "The hints are about `claim_2`" in str(lab08.check_claims("c", "a", "a", "a", "d"))
    assert "hints" not in "".join(lab08.check_claims("c", "a", "d", "a", "d").facts)


def test_what_is_left_blank_is_not_done_yet() -> None:
    report = lab08.check_server(dict.fromkeys(("replicas", "stages", "microbatches", "schedule"), ...))
    assert not report.done
    assert "'replicas', 'stages', 'microbatches', 'schedule'" in str(report)
    assert "'stages'" in str(lab08.check_server({"replicas": 1, "microbatches": 1}))
    assert "does not say yet: 'in_a_node'" in str(lab08.check_cluster({"replicas": 8, "stages": 4, "microbatches": 32}))
    assert not lab08.check_claims("c", ..., None, "a", "d").done
    assert lab08.check_claims("c", "b", "a", "a", "d") == 12.0


@pytest.mark.ranks
def test_the_bug_left_as_it_is_is_not_done_yet() -> None:
    def hybrid_seconds(batch, rows, d, p, forward, backward, nbytes, latency, bandwidth):  # type: ignore[no-untyped-def]
        reduce = all_reduce_seconds(nbytes / p, d, latency, bandwidth)
        return pipeline_seconds(p, batch // (d * rows), forward * rows / p, backward * rows / p + reduce, 0.0)

    report = lab08.check_hybrid_seconds(hybrid_seconds)
    assert (report.done, report.mistake) == (False, "P114")
    assert any(math.isclose(one.buggy, one.case().right) for one in _HYBRIDS)  # it is right at first sight
    slow = replace(_HYBRIDS[3], latency=0.1)
    assert replace(slow, rows=8).buggy < slow.buggy  # "one micro-batch is best"
    assert replace(slow, rows=8, n_stages=2).case().right > replace(slow, n_stages=2).case().right


def test_every_mistake_of_the_lab_is_in_the_bank() -> None:
    defined = {one.code for one in vars(choosing).values() if isinstance(one, Mistake) and one.code}
    recognised = {submission.code for submission in bank("lab08", "wrong").values()}
    assert defined - recognised == {"P139"}  # it costs half of the points: see above


# --- what the notebook shows


def test_plans_are_shown_beside_each_other(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(IPython.display, "display", drawn.append)
    lab08.show_plans(None, {"replicas": ...}, [1])
    said = capsys.readouterr().out
    for name, state in (("home", "not done yet"), ("server", "not done yet"), ("cluster", "does not work yet")):
        assert f"Your plan for {name}: {state}." in said
    assert not drawn
    lab08.show_plans({"replicas": 1, "stages": 1, "microbatches": 16}, GOOD, {"replicas": 4, **dict.fromkeys(GOOD, 4)})
    *_, home, server = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", home) == ["your plan for home", "1.95", "does not fit", "does not fit"]
    assert re.split(r"  +", server) == ["your plan for server", "1.00", "does not fit", "does not fit"]
    assert len(drawn) == 2


def test_machines_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    lab08.show_machines()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["home", "server", "cluster"]
    assert lines[1].split() == ["devices", "2", "8", "4", "×", "8"]
    assert "0.5 + 0.859 n ms" in lines[8]
