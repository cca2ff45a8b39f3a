"""Tasks 1, 2 and 4: memory and time on paper, as functions, set beside a simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from ppkit.builders import gpipe, one_f_one_b
from ppkit.checks.drivers import lab08 as ranks
from ppkit.checks.judge import Passed, Verdict, graded, require_function
from ppkit.checks.lab08.sites import many
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.choosing import (
    ACTIVATIONS,
    BROKEN,
    P100,
    P101,
    P102,
    P103,
    P104,
    P105,
    P106,
    P107,
    P108,
    P109,
    P110,
    P114,
    P115,
    P116,
    RANGE,
    SPREAD,
    UNIT,
)
from ppkit.checks.reference.choosing import pipeline_seconds as pipeline_reference
from ppkit.checks.trial import Trial, on_ranks
from ppkit.costs import Costs
from ppkit.memory import memory
from ppkit.simulate import simulate
from ppkit.simulate_ddp import ring_seconds
from ppkit.units import bytes_text, duration

__all__ = ["check_hybrid_seconds", "check_memory", "check_times"]

_CLOSE = 1e-6  # as a part of the right number
_OTHER_SIZES = {"GB": 1e9, "MB": 1e6, "GiB": 2.0**30, "MiB": 2.0**20, "bits": 1 / 8}
_OTHER_TIMES = {"milliseconds": 1e-3}


class _Case(NamedTuple):
    """One call of the learner's function."""

    arguments: tuple[Any, ...]
    right: float
    words: str
    mistake: Mistake  # what a wrong number means, where all cases before this one are right


def _call(
    function: Any, name: str, cases: Sequence[_Case], driver: Callable[..., Any] = ranks.calls
) -> tuple[Trial, list[float]]:
    """Call the learner's function for every case.

    Raises:
        Unfinished: it returns nothing.
        Wrong: what it returns is no number.
    """
    trial = on_ranks(
        *(driver, function, [case.arguments for case in cases]),
        n_ranks=1,
        where=f"`{name}`",
        expected=Expected(()),
    )
    values = list(trial.results[0])
    if all(value is None for value in values):
        raise trial.unfinished("it returned None.")
    for case, value in zip(cases, values, strict=True):
        if not isinstance(value, float) or not math.isfinite(value):
            raise trial.wrong(f"with {case.words}, it returned {'None' if value is None else value}.", RANGE)
    return trial, values


def _judge(
    function: Any,
    name: str,
    cases: Sequence[_Case],
    text: Callable[[float], str],
    other_units: Mapping[str, float],
) -> None:
    trial, values = _call(function, name, cases)
    for case, value in zip(cases, values, strict=True):
        if math.isclose(value, case.right, rel_tol=_CLOSE, abs_tol=1e-12):
            continue
        fact = f"with {case.words}, it returned {text(value)} instead of {text(case.right)}."
        for unit, size in other_units.items():
            if math.isclose(value * size, case.right, rel_tol=_CLOSE):
                raise trial.wrong(f"{fact} That would be right in {unit}.", UNIT)
        raise trial.wrong(fact, case.mistake)


# Task 1: memory


@dataclass(frozen=True)
class _Held:
    """The arguments of `memory_per_device`, in their order."""

    n_parameters: int = 24_000_000
    precision: str = "float32"
    n_replicas: int = 1
    zero: bool = False
    n_stages: int = 1
    schedule: str = "GPipe"
    n_microbatches: int = 1
    microbatch_bytes: int = 40_000_000
    stage: int = 0

    def case(self, mistake: Mistake) -> _Case:
        return _Case(astuple(self), self._simulated(), self._words(), mistake)

    def _simulated(self) -> float:
        count = self.n_parameters // self.n_stages
        value, state = {"float32": (4, 8), "mixed": (2, 12)}[self.precision]
        costs = Costs(
            parameter_bytes=count * value,
            optimizer_bytes=count * state // (self.n_replicas if self.zero else 1),
            stored_bytes=self.microbatch_bytes // self.n_stages,
        )
        build = {"GPipe": gpipe, "1F1B": one_f_one_b}[self.schedule]
        return float(memory(build(self.n_stages, self.n_microbatches), costs).peak[self.stage])

    def _words(self) -> str:
        replicas = many(self.n_replicas, "replica") + (" and ZeRO-1" if self.zero else "")
        model = f"{self.n_parameters:,} parameters in {self.precision}, {replicas}, {many(self.n_stages, 'stage')}"
        size = bytes_text(self.microbatch_bytes) if self.microbatch_bytes else "no activations"
        parts = f"{many(self.n_microbatches, 'micro-batch')} of {size}"
        return f"{model}, {self.schedule}, {parts}, on stage {self.stage}"


def _memory_cases() -> list[_Case]:
    """From one device on, with one thing more in each; so the first wrong one names what is not understood."""
    long = {"n_stages": 4, "n_microbatches": 8}
    listed: list[tuple[_Held, Mistake]] = [
        (_Held(microbatch_bytes=0), P100),
        (_Held(), ACTIVATIONS),
        (_Held(precision="mixed"), P101),
        (_Held(n_stages=4, microbatch_bytes=0), P103),
        (_Held(n_stages=4), P103),
        (_Held(n_replicas=4), P102),
        (_Held(n_replicas=4, zero=True), P104),
        (_Held(n_replicas=4, zero=True, precision="mixed"), P104),
        (_Held(n_replicas=4, zero=True, n_stages=2), P104),
        (_Held(**long), P105),  # type: ignore[arg-type]  # both are int
        (_Held(**long, schedule="1F1B"), P105),  # type: ignore[arg-type]
        (_Held(**long, stage=3), P105),  # type: ignore[arg-type]
        (_Held(**long, schedule="1F1B", stage=3), P106),  # type: ignore[arg-type]
        (_Held(**long, schedule="1F1B", stage=1), P106),  # type: ignore[arg-type]
        (_Held(n_stages=4, n_microbatches=2, schedule="1F1B"), P106),
        (_Held(48_000_000, "mixed", 2, True, 4, "1F1B", 16, 80_000_000, 2), P106),
    ]
    return [held.case(mistake) for held, mistake in listed]


@graded("Task 1, memory of a device", 18)
def check_memory(memory_per_device: Any) -> Passed:
    """Check the bytes that a device holds at most, for sixteen settings, against simulated steps."""
    names = tuple(_Held.__dataclass_fields__)
    require_function(memory_per_device, "memory_per_device", names)
    cases = _memory_cases()
    _judge(memory_per_device, "memory_per_device", cases, bytes_text, _OTHER_SIZES)
    return Passed(f"Right for all {len(cases)} settings, as with {cases[-1].words}: {bytes_text(cases[-1].right)}.")


# Task 2: time

_PIPELINE_PARAMETERS = ("n_stages", "n_microbatches", "forward", "backward", "transfer")
_RING_PARAMETERS = ("nbytes", "n_replicas", "latency", "bandwidth")
_PIPELINES = (
    *((1, 1, 1.0, 2.0, 0.0), (1, 5, 1.0, 2.0, 0.0), (4, 1, 1.0, 2.0, 0.0), (4, 8, 1.0, 2.0, 0.0)),
    *((3, 6, 0.02, 0.05, 0.0), (2, 1, 1.0, 2.0, 0.5), (4, 8, 1.0, 2.0, 0.25), (3, 2, 0.02, 0.03, 0.1)),
)
_RINGS = (
    *((8_000_000, 4, 0.0, 1e9), (8_000_000, 2, 0.0, 1e9), (8_000_000, 1, 0.0, 1e9), (6_000_000, 16, 0.0, 5e8)),
    *((8_000_000, 1, 1e-3, 1e9), (8_000_000, 2, 1e-3, 1e9), (8_000_000, 8, 1e-3, 1e9)),
)


@graded("Task 2, time of a step", 16)
def check_times(pipeline_seconds: Any, all_reduce_seconds: Any) -> Passed:
    """Check the time of a pipeline's step and of an all-reduce against simulated steps, each on its own."""
    pipelines = [_pipeline_case(*setting) for setting in _PIPELINES]
    rings = [_ring_case(*setting) for setting in _RINGS]
    found = (
        _time(pipeline_seconds, "pipeline_seconds", _PIPELINE_PARAMETERS, pipelines),
        _time(all_reduce_seconds, "all_reduce_seconds", _RING_PARAMETERS, rings),
    )
    missing = [verdict for verdict in found if not isinstance(verdict, Passed)]
    facts = [fact for verdict in found for fact in verdict.facts]
    if not missing:
        return Passed(*facts)
    verdict = next((one for one in missing if one.done), missing[0])
    verdict.facts, verdict.points = tuple(facts), 8.0 * (2 - len(missing))
    raise verdict


def _time(function: Any, name: str, parameters: Sequence[str], cases: Sequence[_Case]) -> Verdict:
    """The verdict on one of the two functions."""
    try:
        require_function(function, name, parameters)
        _judge(function, name, cases, duration, _OTHER_TIMES)
    except Verdict as verdict:
        return verdict
    return Passed(f"`{name}` agrees with simulated steps in {len(cases)} settings.")


def _pipeline_case(p: int, m: int, forward: float, backward: float, transfer: float) -> _Case:
    right = simulate(gpipe(p, m), Costs(forward, backward, latency=transfer)).makespan
    words = (
        f"{many(p, 'stage')}, {many(m, 'micro-batch')}, F {duration(forward)}, B {duration(backward)}, "
        f"and messages of {duration(transfer)}"
    )
    return _Case((p, m, forward, backward, transfer), right, words, P108 if transfer else P107)


def _ring_case(nbytes: int, n: int, latency: float, bandwidth: float) -> _Case:
    costs = Costs(n_replicas=n, parameter_bytes=nbytes, latency=latency, bandwidth=bandwidth)
    (reduce,) = [event for event in simulate(gpipe(1, 1).with_reduce(), costs) if event.kind == "COLLECTIVE"]
    words = (
        f"{bytes_text(nbytes)}, {many(n, 'replica')}, and links of {duration(latency)} and {bytes_text(bandwidth)}/s"
    )
    return _Case((nbytes, n, latency, bandwidth), reduce.end - reduce.start, words, P110 if latency else P109)


# Task 4: find the bug


@dataclass(frozen=True)
class _Hybrid:
    """The arguments of `hybrid_seconds`, in their order."""

    batch: int
    rows: int
    n_replicas: int
    n_stages: int
    forward: float = 0.02
    backward: float = 0.04
    gradient_bytes: int = 400_000_000
    latency: float = 1e-3
    bandwidth: float = 1e9

    @property
    def m(self) -> int:
        return self.batch // (self.n_replicas * self.rows)

    @property
    def stage(self) -> tuple[float, float]:
        """Seconds of a stage's forward and backward."""
        share = self.rows / self.n_stages
        return self.forward * share, self.backward * share

    @property
    def reduce(self) -> float:
        return ring_seconds(self.gradient_bytes / self.n_stages, self.n_replicas, self.latency, self.bandwidth)

    @property
    def buggy(self) -> float:
        """What the function of the exercise returns."""
        forward, backward = self.stage
        return pipeline_reference(self.n_stages, self.m, forward, backward + self.reduce, 0.0)

    @property
    def compute(self) -> float:
        return simulate(gpipe(self.n_stages, self.m), Costs(*self.stage)).makespan

    def case(self) -> _Case:
        costs = Costs(*self.stage, n_replicas=self.n_replicas, reduce_seconds=self.reduce)
        right = simulate(gpipe(self.n_stages, self.m).with_reduce(), costs).makespan
        words = (
            f"{many(self.n_replicas, 'replica')} of {many(self.n_stages, 'stage')}, and "
            f"{many(self.m, 'micro-batch')} of {many(self.rows, 'sample')} each"
        )
        return _Case(astuple(self), right, words, BROKEN)


_HYBRIDS = (
    *(_Hybrid(8, 2, 1, 1), _Hybrid(8, 2, 1, 4), _Hybrid(4, 2, 2, 1), _Hybrid(16, 2, 2, 1), _Hybrid(16, 1, 4, 1)),
    *(_Hybrid(32, 2, 2, 4), _Hybrid(32, 1, 4, 2), _Hybrid(32, 4, 2, 2, 0.05, 0.1, 100_000_000, 0.0, 5e8)),
)


@graded("Task 4, the bug", 15)
def check_hybrid_seconds(hybrid_seconds: Any) -> Passed:
    """Check the mended time of a step of replicas of a pipeline against simulated steps."""
    require_function(hybrid_seconds, "hybrid_seconds", tuple(_Hybrid.__dataclass_fields__))
    cases = [one.case() for one in _HYBRIDS]
    trial, values = _call(hybrid_seconds, "hybrid_seconds", cases, ranks.calls_with_times)
    wrong = [n for n, case in enumerate(cases) if not math.isclose(values[n], case.right, rel_tol=_CLOSE)]
    if wrong:
        n = wrong[0]
        text = f"with {cases[n].words}, it returns {duration(values[n])} instead of {duration(cases[n].right)}."
        if all(math.isclose(value, one.buggy, rel_tol=_CLOSE) for value, one in zip(values, _HYBRIDS, strict=True)):
            raise trial.unfinished(f"the bug is still in it: {text}", P114)
        raise trial.wrong(text, _explain(_HYBRIDS[n], values[n]))
    return Passed(f"All {len(cases)} settings take as long as simulated, as with {cases[-1].words}.")


def _explain(setting: _Hybrid, value: float) -> Mistake:
    """The mistake in a step's time, by what it holds beside the pipeline's."""
    d, p = setting.n_replicas, setting.n_stages
    alone = (value - setting.reduce) / setting.compute
    if d == 1 or any(math.isclose(alone, factor, rel_tol=1e-3) for factor in (d, 1 / d, p, 1 / p) if factor != 1):
        return BROKEN
    beside, m = value - setting.compute, setting.m
    if any(math.isclose(beside, times * setting.reduce, rel_tol=1e-3) for times in (m, m + setting.n_stages - 1)):
        return P114
    if math.isclose(beside, setting.reduce * (1 + (setting.n_stages - 1) / m), rel_tol=1e-3):
        return SPREAD
    whole = ring_seconds(setting.gradient_bytes, setting.n_replicas, setting.latency, setting.bandwidth)
    return P115 if beside < setting.reduce else P116 if beside <= 2 * whole else P114
