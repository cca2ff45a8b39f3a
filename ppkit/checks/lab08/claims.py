"""Task 3: claims that circulate, each answered by a letter; a wrong one meets numbers that speak against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppkit.builders import gpipe, one_f_one_b
from ppkit.checks.estimates import Choice, judge_estimates
from ppkit.checks.form import Form, Words
from ppkit.checks.judge import Passed, Verdict, Wrong, graded
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.choosing import G28_CLAIM, P111, P112, P113, P117
from ppkit.checks.mistakes.one_f_one_b import F40
from ppkit.costs import Costs
from ppkit.event import Event
from ppkit.memory import memory
from ppkit.simulate import simulate
from ppkit.simulate_ddp import simulate_data_parallel
from ppkit.timeline import Timeline
from ppkit.units import bytes_text, number

__all__ = ["ask_claims", "check_claims"]

_LETTERS = ("a", "b", "c", "d")
_TOPICS = (
    "data parallelism synchronises in every layer",
    "a pipeline reduces latency",
    "a pipeline helps where one layer is too large",
    "1F1B has a smaller bubble",
    "the more micro-batches, the shorter a step",
)
ask_claims = Form(*(Words(f"claim_{n}", f"Claim {n}, {topic}", _LETTERS) for n, topic in enumerate(_TOPICS, start=1)))


@dataclass(frozen=True)
class _Claim(Choice):
    """An answer to a claim.

    Attributes:
        against: what speaks against each wrong answer, by its letter.
        others: wrong answers that show another mistake.
    """

    against: Callable[[str], str] = str
    others: Mapping[str, Mistake] = field(default_factory=dict)

    def judge(self) -> tuple[str, type[Verdict], Mistake]:
        """What there is to say, with numbers where the answer is wrong; the verdict; the mistake."""
        text, verdict, mistake = super().judge()
        answer = self.value.strip().lower() if isinstance(self.value, str) else ""
        if verdict is Wrong and answer in self.words:
            text += f" {self.against(answer)}"
        return text, verdict, self.others.get(answer, mistake)


@graded("Task 3, five claims", 15)
def check_claims(claim_1: Any, claim_2: Any, claim_3: Any, claim_4: Any, claim_5: Any) -> Passed:
    """Check five answers; what speaks against a wrong one is simulated."""
    given = (claim_1, claim_2, claim_3, claim_4, claim_5)
    claims: Sequence[_Claim] = [
        _Claim(f"claim_{n}", value, right, _LETTERS, mistake, against, _OTHERS.get(n, {}))
        for n, (value, (right, mistake, against)) in enumerate(zip(given, _CLAIMS, strict=True), start=1)
    ]
    return judge_estimates(claims, 15)


# What speaks against an answer


def _synchronisation(answer: str) -> str:
    n, layers, nbytes = 4, 24, 10_000_000
    if answer == "b":
        step = simulate(one_f_one_b(1, 8).with_reduce(), Costs(n_replicas=n, parameter_bytes=layers * nbytes))
        count = len(_collectives(step))
        return f"A simulated step of {n} replicas with 8 micro-batches each has {count} all-reduce of all gradients."
    step = simulate_data_parallel([2.0] * layers, [nbytes] * layers, n, forward=1.0, bandwidth=1e9)
    if answer == "d":
        sent = sum(event.nbytes for event in _collectives(step)) / (layers * nbytes)
        return f"In a simulated step of {n} replicas each sends {number(sent)} times the bytes of all its gradients."
    turn = min(event.start for event in step if event.kind == "B")
    ahead = sum(event.start < turn for event in _collectives(step))
    return (
        f"A simulated step of {n} replicas with {layers} layers has {ahead} collectives in the forward, and "
        f"{len(_collectives(step))} from the backward on."
    )


def _collectives(timeline: Timeline) -> list[Event]:
    return [event for event in timeline.of_rank(0) if event.kind == "COLLECTIVE"]


def _latency(answer: str) -> str:
    part, hop = 40.0, 1.0  # milliseconds of a quarter of the model, and of a message
    one = _forwards(1, 10, Costs(forward=4 * part))
    four = _forwards(4, 10, Costs(forward=part, latency=hop))
    if answer == "c":
        finished = f"one device finishes {_rate(one):.0f} micro-batches a second, four stages {_rate(four):.0f}"
        return f"Simulated, {finished}."
    return (
        f"Simulated with 10 micro-batches, the first is through the model after {_ends(one)[0]:g} ms on one device, "
        f"and after {_ends(four)[0]:g} ms on four."
    )


def _forwards(n_stages: int, m: int, costs: Costs) -> Timeline:
    return simulate(gpipe(n_stages, m).forward_part(), costs)


def _ends(timeline: Timeline) -> list[float]:
    return sorted(event.end for event in timeline.of_rank(timeline.n_ranks - 1) if event.kind == "F")


def _rate(timeline: Timeline) -> float:
    """Micro-batches finished in a second, once the pipeline is full."""
    ends = _ends(timeline)
    return (len(ends) - 1) / (ends[-1] - ends[0]) * 1e3


def _layer(answer: str) -> str:
    state, kept, batch = 24 * 10**9, 10**9, 8  # bytes of one layer with all that belongs to it; activations of a sample

    def held(p: int, m: int, n: int = 1) -> str:
        """Bytes of the fullest device, for 8 layers in p stages."""
        share = 8 // p
        costs = Costs(n_replicas=n, parameter_bytes=share * state // 2, stored_bytes=share * kept * batch // m)
        return bytes_text(max(memory(one_f_one_b(p, m), costs).peak))

    begin = "8 layers of 24 GB each, on devices of 20 GB: simulated, the fullest holds"
    if answer == "b":
        return f"{begin} {held(8, 1)}, {held(8, 4)}, and {held(8, 8)} with 8 stages and 1, 4, and 8 micro-batches."
    if answer == "c":
        return f"{begin} {held(8, 8)}, {held(8, 8, 2)}, and {held(8, 8, 4)} with 8 stages and 1, 2, and 4 replicas."
    more = "a ninth stage would have no layer"
    return f"{begin} {held(2, 8)}, {held(4, 8)}, and {held(8, 8)} with 2, 4, and 8 stages; {more}."


def _bubble(_: str) -> str:
    first, other = (simulate(build(4, 8)).idle[0] for build in (gpipe, one_f_one_b))
    idle = f"each rank is idle for {first:g} units of time in GPipe, and for {other:g} in 1F1B"
    return f"Simulated with 4 stages, 8 micro-batches and free messages, {idle}."


def _more(answer: str) -> str:
    def step(m: int) -> Timeline:
        return simulate(one_f_one_b(4, m), Costs(1 + 64 / m, 1 + 128 / m))

    counts = (4, 8, 16, 64)
    if answer == "c":
        shown = ", ".join(f"{100 * step(m).bubble_fraction:.0f} % with {m}" for m in counts)
        return f"Simulated on 4 stages, the ranks are idle for {shown} micro-batches."
    shown = ", ".join(f"{step(m).makespan:g} ms with {m}" for m in counts)
    return (
        f"64 samples on 4 stages; a stage takes 1 ms a sample forward and 2 ms backward, and 1 ms more for each "
        f"micro-batch and direction. Simulated, a step takes {shown} micro-batches."
    )


_Against = Callable[[str], str]
# The right letter, the mistake that another shows, and what speaks against that.
_CLAIMS: Sequence[tuple[str, Mistake, _Against]] = (
    ("c", P111, _synchronisation),
    ("b", P112, _latency),
    ("d", P113, _layer),
    ("a", F40, _bubble),
    ("d", G28_CLAIM, _more),
)
_OTHERS: Mapping[int, Mapping[str, Mistake]] = {4: {"d": P117}}
