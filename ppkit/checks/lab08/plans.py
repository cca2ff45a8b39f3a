"""Tasks 5 to 7: a plan for each of three machines, simulated and set beside the best."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, replace
from functools import partial
from itertools import product
from operator import itemgetter
from typing import Any

from ppkit.checks.estimates import Estimate
from ppkit.checks.judge import Passed, Unfinished, Wrong, graded, is_blank
from ppkit.checks.lab08.sites import (
    CLUSTER,
    HOME,
    SCHEDULES,
    SERVER,
    Decision,
    Outcome,
    Site,
    at_least,
    best,
    impossible,
    outcome,
)
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.choosing import (
    G28,
    NOT_A_PLAN,
    P130,
    P131,
    P132,
    P133,
    P134,
    P135,
    P136,
    P137,
    P138,
    P139,
    TOO_SLOW,
)
from ppkit.memory import PARTS
from ppkit.units import bytes_text, duration

__all__ = ["check_cluster", "check_home", "check_server", "read_plan"]

CLOSE, NEAR = 1.10, 1.30  # times the best plan's step: every point, and half of them
PREDICTED = 0.10  # a prediction's distance from the simulation
_WORDS: dict[str, tuple[str, ...]] = {"schedule": tuple(SCHEDULES), "in_a_node": ("stages", "replicas")}


@graded("Task 5, one PC at home", 12)
def check_home(home_plan: Any, home_seconds: Any) -> Passed:
    """Check the plan for two small devices and a slow link, and what the learner expects a step to take."""
    plan = read_plan(HOME, home_plan)
    result = outcome(HOME, plan)
    try:
        fits, takes = _judge(HOME, plan, 6)
    except Wrong as wrong:
        wrong.facts = (*wrong.facts, "`home_seconds` is judged once every point of the plan is yours.")
        raise
    # Neither its time nor its drawing, from which that can be read, as long as it is to be predicted.
    hidden = "The plan is close enough to the best. What its step takes is told with the right prediction."
    if is_blank(home_seconds):
        raise Unfinished(fits, hidden, "`home_seconds` has no number yet.", points=6)
    estimate = Estimate("home_seconds", home_seconds, result.seconds, " s", tolerance=PREDICTED)
    text, verdict, _ = estimate.judge()
    if verdict is not Passed:
        in_milliseconds = replace(estimate, right=1e3 * result.seconds).judge()[1] is Passed
        text += " Seconds are asked, not milliseconds." * in_milliseconds
        raise Wrong(fits, hidden, text, mistake=P139, points=6)
    return Passed(fits, takes, text, timeline=result.timeline)


@graded("Task 6, one server", 12)
def check_server(server_plan: Any) -> Passed:
    """Check the plan for eight devices with fast links, and long samples."""
    return _check(SERVER, server_plan, 12)


@graded("Task 7, four servers", 12)
def check_cluster(cluster_plan: Any) -> Passed:
    """Check the plan for four nodes of eight devices, with slow links between nodes."""
    return _check(CLUSTER, cluster_plan, 12)


def _check(site: Site, answer: Any, points: float) -> Passed:
    plan = read_plan(site, answer)
    return Passed(*_judge(site, plan, points), timeline=outcome(site, plan).timeline)


# What a learner writes


def read_plan(site: Site, answer: Any) -> Decision:
    """Make a decision of the learner's dictionary.

    Raises:
        Unfinished: a value is missing.
        Wrong: it is no plan, or one that cannot be carried out.
    """
    if is_blank(answer):
        raise Unfinished("There is no plan yet.")
    if not isinstance(answer, Mapping):
        raise Wrong(f"The plan is of type {type(answer).__name__}, not a dictionary.", mistake=NOT_A_PLAN)
    known = {field.name: field for field in fields(Decision)}
    if unknown := [key for key in answer if key not in known]:
        raise Wrong(f"A plan has no {unknown[0]!r}; it has {', '.join(map(repr, known))}.", mistake=NOT_A_PLAN)
    needed = {name for name, field in known.items() if field.default is MISSING}
    if site.n_nodes > 1:
        needed.add("in_a_node")
    missing = [name for name in known if name in needed and name not in answer]
    if blank := [*missing, *(name for name, value in answer.items() if is_blank(value))]:
        raise Unfinished(f"The plan does not say yet: {', '.join(map(repr, blank))}.")
    values: dict[str, Any] = {name: _read(name, value) for name, value in answer.items()}
    plan = Decision(**values)
    if why := impossible(site, plan):
        raise Wrong(f"It cannot be carried out: {why}.", mistake=P130)
    return plan


def _read(name: str, value: Any) -> Any:
    if name in _WORDS:
        if value not in _WORDS[name]:
            raise Wrong(f"{name!r} is one of {', '.join(map(repr, _WORDS[name]))}; got {value!r}.", mistake=NOT_A_PLAN)
        return value
    if name in ("recompute", "zero"):
        if not isinstance(value, bool):
            raise Wrong(f"{name!r} is True or False; got {value!r}.", mistake=NOT_A_PLAN)
        return value
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise Wrong(f"{name!r} is a whole number of at least 1; got {value!r}.", mistake=NOT_A_PLAN)
    return number


# What the simulation says of it


def _judge(site: Site, plan: Decision, points: float) -> tuple[str, str]:
    """Say what a plan takes; refuse one that does not fit or is too slow.

    Raises:
        Wrong: with half of the points if it is not far from the best.
    """
    result = outcome(site, plan)
    where, held = result.fullest, max(result.peaks)
    has = f"a device has {bytes_text(site.node.memory)}"
    if held > site.node.memory:
        fact = f"It does not fit: rank {where} needs {_parts(result)}, in all {bytes_text(held)}; {has}."
        raise Wrong(fact, mistake=_too_large(result), timeline=result.timeline)
    fits = f"It fits: rank {where} holds the most, {bytes_text(held)}; {has}."
    least = outcome(site, best(site)).seconds
    takes = f"A step takes {duration(result.seconds)}; the best plan that was found takes {duration(least)}."
    if result.seconds <= CLOSE * least:
        return fits, takes
    times = (
        f"That is {result.seconds / least:.2f} times as long; every point is for {CLOSE:g} times at most, and half of "
        f"them for {NEAR:g}."
    )
    raise Wrong(
        fits,
        f"{takes} {times}",
        _spent(site, plan, result),
        mistake=_what_helps(site, plan),
        points=points / 2 if result.seconds <= NEAR * least else 0.0,
        timeline=result.timeline,
    )


def _parts(result: Outcome) -> str:
    """What the fullest rank holds at its peak."""
    state = _state(result)
    activations = bytes_text(max(result.peaks) - state)
    return f"{bytes_text(state)} for parameters, gradients and optimizer, and {activations} for activations"


def _too_large(result: Outcome) -> Mistake:
    return P131 if _state(result) > max(result.peaks) / 2 else P132


def _state(result: Outcome) -> int:
    """Bytes of parameters, gradients and optimizer on the fullest rank, at its peak."""
    curve = result.memory.curves[result.fullest]
    parts = curve.at(curve.peak_at)
    return sum(parts[part] for part in PARTS[:3])


def _spent(site: Site, plan: Decision, result: Outcome) -> str:
    """Where the time goes: computing, all-reduces, and the rest."""
    timeline = result.timeline
    waits = max((event.end - event.start for event in timeline if event.kind == "COLLECTIVE"), default=0.0)
    busy = max(timeline.busy)
    left = max(0.0, result.seconds - busy - waits)
    used = plan.replicas * plan.stages
    parts = [f"the busiest computes for {duration(busy)}"]
    if waits:
        parts.append(f"an all-reduce takes {duration(waits)}")
    if left > 1e-3 * busy:
        parts.append(f"for {duration(left)} it waits for its neighbours")
    return f"{used} of {site.n_devices} devices work; {', '.join(parts[:-1])}{' and ' * (len(parts) > 1)}{parts[-1]}."


def _what_helps(site: Site, plan: Decision) -> Mistake:
    """The mistake in a plan that fits and is too slow: the decision whose change alone would save the most."""
    least, found = 0.99 * outcome(site, plan).seconds, TOO_SLOW
    possible = ((mistake, changed) for mistake, changed in _changes(site, plan) if not impossible(site, changed))
    for bound, mistake, changed in sorted(
        ((at_least(site, one), why, one) for why, one in possible), key=itemgetter(0)
    ):
        if bound >= least:
            break
        result = outcome(site, changed)
        if result.seconds < least and max(result.peaks) <= site.node.memory:
            least, found = result.seconds, mistake
    return found


def _changes(site: Site, plan: Decision) -> Iterator[tuple[Mistake, Decision]]:
    """Other plans, mostly with one decision changed, and the mistake that it would mend."""
    d, p, m = plan.replicas, plan.stages, plan.microbatches
    change = partial(replace, plan)
    for factor in (2, 4, 8):
        yield P134, change(microbatches=m * factor)
        if m % factor == 0:
            yield G28, change(microbatches=m // factor)
    yield from ((P135, change(schedule=name)) for name in SCHEDULES)
    if plan.recompute:
        yield from ((P136, change(recompute=False, schedule=name)) for name in SCHEDULES)
    yield P138, change(in_a_node="replicas" if plan.in_a_node == "stages" else "stages")
    yield P138, change(zero=not plan.zero)
    # Other replicas and stages, on as many devices or on more; micro-batches stay as large as they are.
    rows = site.batch // (d * m)
    powers = [2**n for n in range(site.n_devices.bit_length())]
    for replicas, stages in product(powers, powers):
        if replicas * stages >= d * p and (replicas, stages) != (d, p) and replicas * rows <= site.batch:
            changed = change(replicas=replicas, stages=stages, microbatches=site.batch // (replicas * rows))
            yield P133 if replicas * stages > d * p else P137, changed
