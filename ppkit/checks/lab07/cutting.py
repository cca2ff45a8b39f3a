"""Task 2: the best cut of a row of layers in stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ppkit.checks.drivers import lab07 as ranks
from ppkit.checks.judge import Passed, Unfinished, Verdict, Wrong, graded, require_function
from ppkit.checks.lab07.paper import COSTS, N_MICROBATCHES, N_STAGES, step_of
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.balance_skips import H69, NOT_THE_BEST, S94, S95, S96, S97
from ppkit.checks.mistakes.general import ENDLESS, RETURNED
from ppkit.checks.trial import on_ranks
from ppkit.partition import equal_sizes, partition, stage_sums

__all__ = ["check_cut_layers", "show_cuts"]

Costs = list[float]
CASES: tuple[tuple[Costs, int], ...] = (
    ([6, 4, 6, 4, 7], 3),
    ([2, 3, 4, 9], 2),
    ([9, 1, 1, 1, 1, 1], 3),
    ([1, 3, 3, 3, 3, 3, 3, 2], 3),
    ([5, 5, 5, 5, 8, 2, 2], 4),
    ([1, 1, 8, 1, 7, 7, 1], 3),
    ([0.00021, 0.00094, 0.00095, 0.00092, 0.00093, 0.00018], 4),
    ([2.5, 0.0, 1.5, 0.0, 4.0, 3.5, 1.0], 4),
    ([8, 9, 7, 1, 8, 4], 3),
    ([1, 7, 9, 2, 3, 5, 2, 6], 3),
    ([8, 1, 7, 7, 1, 8, 5, 4, 2, 6], 4),
    ([7, 7, 7], 3),
    ([4, 2, 6], 1),
    ([8], 1),
)
IMPOSSIBLE: tuple[tuple[Costs, int], ...] = (([3, 5], 7), ([4, 4, 4], 9))
LARGE = ([float(3 + (7 * i * i + 5 * i) % 11) for i in range(48)], 8)


@graded("Task 2, cut_layers", 20)
def check_cut_layers(cut_layers: Any) -> Passed:
    """Check the learner's cuts of small models, of a large one, and of one with fewer layers than stages."""
    require_function(cut_layers, "cut_layers", ("costs", "n_stages"))
    seen = _run(cut_layers, CASES, IMPOSSIBLE)
    if all(sizes is None for sizes in seen["cuts"]):
        raise Unfinished("your function returned None.")
    for case, sizes in zip(CASES, seen["cuts"], strict=True):
        _require_cut(*case, sizes)
    for case, sizes in zip(CASES, seen["cuts"], strict=True):
        _require_best(*case, sizes, seen["cuts"])
    for (costs, n_stages), (kind, text) in zip(IMPOSSIBLE, seen["refused"], strict=True):
        _require_refused(len(costs), n_stages, kind, text)
    try:
        (sizes,) = _run(cut_layers, (LARGE,))["cuts"]
    except Wrong as verdict:
        if verdict.mistake is ENDLESS:
            what = f"The small models are cut well. With {len(LARGE[0])} layers and {LARGE[1]} stages"
            raise Wrong(f"{what}, {verdict.facts[0].partition(': ')[2]}", mistake=S95) from None
        raise
    _require_cut(*LARGE, sizes)
    _require_best(*LARGE, sizes)
    return Passed(
        f"{len(CASES)} small models and one of {len(LARGE[0])} layers: no cut has a slowest stage that costs less.",
        "More stages than layers are refused, with both numbers.",
    )


def _run(cut_layers: Any, *cases: Sequence[tuple[Costs, int]]) -> dict[str, list[Any]]:
    trial = on_ranks(ranks.cuts, cut_layers, *cases, n_ranks=1, where="your function", expected=Expected(()))
    seen: dict[str, list[Any]] = trial.results[0]
    return seen


def _require_cut(costs: Costs, n_stages: int, sizes: Any) -> None:
    what = _call(costs, n_stages)
    if not isinstance(sizes, list):
        raise Wrong(f"{what} returned {sizes or 'nothing'}; it must return a list of numbers.", mistake=RETURNED)
    if len(sizes) != n_stages:
        raise Wrong(f"{what} returned {sizes}, which is {len(sizes)} numbers.", mistake=S96)
    if min(sizes) < 1:
        raise Wrong(f"{what} returned {sizes}; a stage has no layer.", mistake=S96)
    if sum(sizes) != len(costs):
        raise Wrong(f"{what} returned {sizes}, which makes {sum(sizes)} layers of {len(costs)}.", mistake=S96)


def _require_best(costs: Costs, n_stages: int, sizes: list[int], cuts: Sequence[list[int]] = ()) -> None:
    got, best = (max(stage_sums(costs, cut)) for cut in (sizes, partition(costs, n_stages)))
    if got > best * (1 + 1e-6):
        stages = ", ".join(f"{cost:g}" for cost in stage_sums(costs, sizes))
        text = f"returned {sizes}: stages of {stages}. A cut with no stage above {best:g} is possible."
        raise Wrong(f"{_call(costs, n_stages)} {text}", mistake=_rule(sizes, cuts))


def _rule(sizes: list[int], cuts: Sequence[list[int]]) -> Mistake:
    """The mistake behind a cut that is not the best, by it and by the cuts of all small models."""
    if cuts and all(max(one) - min(one) <= 1 for one in cuts):
        return H69
    if all(cut[1:] == [1] * (len(cut) - 1) or cut[:-1] == [1] * (len(cut) - 1) for cut in cuts):
        return NOT_THE_BEST  # as if all cuts were equally good: a greedy one is not that uneven everywhere
    rules = zip(*(_greedy(*case) for case in CASES), strict=True)  # of one cut alone, it can be chance
    alike = [sum(a == b for a, b in zip(rule, cuts, strict=True)) for rule in rules if sizes in rule]
    return S94 if max(alike, default=0) >= 0.75 * len(CASES) else NOT_THE_BEST


def _require_refused(n_layers: int, n_stages: int, kind: str, text: Any) -> None:
    what = f"With {n_layers} layers and {n_stages} stages it raised"
    if not kind:
        raise Wrong(f"{what} no error.", mistake=S97)
    if kind != "ValueError":
        raise Wrong(f"{what} {kind}; the task asks for a ValueError.", mistake=S97)
    if not (str(n_layers) in text and str(n_stages) in text):
        raise Wrong(f"{what} an error that says {text!r}; it must name both numbers.", mistake=S97)


def _call(costs: Costs, n_stages: int) -> str:
    shown = f"[{', '.join(f'{cost:g}' for cost in costs)}]" if len(costs) <= 12 else f"<{len(costs)} layers>"
    return f"`cut_layers({shown}, {n_stages})`"


def _greedy(costs: Costs, n_stages: int) -> Iterator[list[int]]:
    """Cuts by filling stage after stage up to its share: not above it, or until it is reached."""
    for beyond in (False, True):
        for of_the_rest in (False, True):
            sizes: list[int] = []
            for stage in range(n_stages - 1):
                left = costs[sum(sizes) :]
                share = sum(left) / (n_stages - stage) if of_the_rest else sum(costs) / n_stages
                most = len(left) - (n_stages - 1 - stage)
                size = 1
                while size < most and (sum(left[:size]) < share if beyond else sum(left[: size + 1]) <= share):
                    size += 1
                sizes.append(size)
            yield [*sizes, len(costs) - sum(sizes)]


def show_cuts(cut_layers: Callable[..., Any]) -> None:
    """Draw a step of task 1's model, cut by layer count and cut by the learner's function, on one time axis."""
    from IPython.display import display

    from ppkit.draw import gantt

    costs = [float(cost) for cost in COSTS]
    try:
        require_function(cut_layers, "cut_layers", ("costs", "n_stages"))
        (sizes,) = _run(cut_layers, ((costs, N_STAGES),))["cuts"]
        _require_cut(costs, N_STAGES, sizes)
    except Verdict as verdict:
        print(verdict.text("Your cut"))
        return
    named = (("by layer count", equal_sizes(len(costs), N_STAGES)), ("your cut", sizes))
    steps = [replace(step_of(cut, N_MICROBATCHES), name=f"{name}: {_text(cut)} layers") for name, cut in named]
    display(gantt(*steps))  # type: ignore[no-untyped-call]  # IPython's display has no types


def _text(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes))
