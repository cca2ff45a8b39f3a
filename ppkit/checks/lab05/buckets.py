"""Task 6: buckets that are all-reduced under the backward; what they show beside the check."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ppkit.buckets import make_buckets
from ppkit.checks.drivers import lab05_buckets as ranks
from ppkit.checks.drivers.lab05_buckets import Setting
from ppkit.checks.judge import Passed, Wrong, graded, require_function
from ppkit.checks.messages import Message
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.data_parallel import D44, D47, D48, D49, D50, D52, D52_UNUSED, D53
from ppkit.checks.mistakes.general import RETURNED
from ppkit.checks.mistakes.replicas import (
    ADDED_TO_OWN,
    BLOCKS,
    COLLECTIVE_ALONE,
    CUT_ELSEWHERE,
    LAST_BUCKET,
    LEFT_FROM_BEFORE,
    NEVER_AVERAGED,
    NO_OVERLAP,
    NOT_HANDED_BACK,
    OTHER_BUCKETS,
    SCALED,
    WRONG_NUMBERS,
)
from ppkit.checks.oracle import LEARNING_RATE
from ppkit.checks.oracle_gpipe import Cut, cut
from ppkit.checks.oracle_hybrid import ratio
from ppkit.checks.oracle_replicas import Branches, Net, combine, descend, digit_shards, shard_gradients
from ppkit.checks.replicas import on_replicas
from ppkit.checks.show import show_run
from ppkit.checks.trial import Trial
from ppkit.checks.values import all_equal, equal, first_difference
from ppkit.emulate import Emulation, Link
from ppkit.models import mlp, parameter_bytes
from ppkit.simulate_ddp import simulate_data_parallel

__all__ = ["check_reducer", "show_step"]

PARAMETERS = ("model", "bucket_bytes")
_FIRST = "2 ranks, a tied weight"


def _shards(*sizes: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """For each step, each rank's micro-batches, by their rows."""
    flat = [[rows for shard in step for rows in shard] for step in sizes]
    steps = []
    for step, whole in zip(sizes, digit_shards(flat), strict=True):
        inputs, targets = whole.batch
        rows = [sum(shard) for shard in step]
        parts = zip(inputs.split(rows), targets.split(rows), step, strict=True)
        steps.append([cut((x, y), list(shard)) for x, y, shard in parts])
    return steps


def settings() -> list[Setting]:
    """What a reducer is tried with."""
    left_right, right_left = (("left", "right"),), (("right", "left"),)
    return [
        Setting(_FIRST, Net(), 640, _shards([[4], [4]], [[4], [4]]), [(), ()], in_turn=True),
        Setting("3 ranks, 2 micro-batches each", Net(), 10_000, _shards(*[[[4, 2], [2, 2], [1, 1]]] * 2), [(), (), ()]),
        Setting(
            "2 ranks that go through two branches in opposite orders",
            *(Branches(), 576, _shards([[4], [4]]), [left_right, right_left]),
        ),
        Setting(
            "2 ranks, the second of which does not use one branch",
            *(Branches(), 576, _shards([[4], [4]]), [left_right, (("left",),)]),
        ),
    ]


@graded("Task 6, Reducer", 26)
def check_reducer(reducer_class: Any) -> Passed:
    """Check buckets on two and three ranks: gradients, all-reduces, and whether the backward hides them."""
    require_function(reducer_class, "Reducer", PARAMETERS)
    for setting in settings():
        messages = [Message(0, 1, 4)] * len(setting.batches) if setting.in_turn else []
        try:
            trial = on_replicas(
                *(ranks.train, reducer_class, setting),
                n_ranks=setting.n_ranks,
                where=setting.name,
                messages=messages,
            )
        except Wrong as verdict:
            _explain(verdict, setting)
            raise
        _judge_setting(trial, setting)
    return Passed(
        "With tied weights, several micro-batches, branches in different orders, and a branch that a rank does not "
        "use: every gradient is the mean over the ranks.",
        "In each step every bucket was all-reduced once, and the first ones began while the backward was running.",
        timeline=trial.timeline,
        output=trial.output,
    )


def _explain(verdict: Wrong, setting: Setting) -> None:
    """Find the mistake of buckets behind a run that got stuck."""
    if verdict.mistake is not COLLECTIVE_ALONE or verdict.timeline is None:
        return
    kinds = [event.kind for event in verdict.timeline.of_rank(0)]
    if setting.in_turn and kinds.count("F") > kinds.count("B"):
        verdict.mistake = BLOCKS
        verdict.facts = (*verdict.facts, "Rank 1 does not begin its backward before rank 0's is over.")
    elif len({frozenset(*how) for how in setting.how if how}) > 1:
        verdict.mistake = D52  # a branch that only one of them uses


def _judge_setting(trial: Trial, setting: Setting) -> None:
    for rank, seen in enumerate(trial.results):
        if "returned" in seen:
            raise trial.wrong(f"`Reducer(…)` made {seen['returned']} without a method `finish`.", RETURNED, rank=rank)
    model = copy.deepcopy(setting.model)
    for step, shards in enumerate(setting.batches):
        all_seen = [seen["steps"][step] for seen in trial.results]
        oracle = _Oracle(model, shards, setting.how)
        _judge_manner(trial, step, all_seen)
        for rank, seen in enumerate(all_seen):
            if text := first_difference(seen["gradients"], oracle.right):
                mistake = oracle.suspect(rank, seen)
                mistake = LEFT_FROM_BEFORE if step and mistake in (WRONG_NUMBERS, D47) else mistake
                raise trial.wrong(f"in step {step}, the gradient of {text}.", mistake, rank=rank)
        for rank, seen in enumerate(all_seen):
            _judge_pieces(trial, setting, rank, step, seen)
        descend(model, oracle.right, LEARNING_RATE)


def _judge_manner(trial: Trial, step: int, all_seen: Sequence[Mapping[str, Any]]) -> None:
    """Refuse all-reduces that are missing, too early, or never waited for."""
    if not step and trial.where == _FIRST and not any(seen["sizes"] for seen in all_seen):
        raise trial.unfinished("no gradient was all-reduced.", NEVER_AVERAGED)
    for rank, seen in enumerate(all_seen):
        if seen["early"]:
            text = f"in step {step}, an all-reduce began before the last micro-batch's turn."
            raise trial.wrong(text, D49, rank=rank)
        if seen["unwaited"]:
            text = f"in step {step}, not all of its all-reduces had been waited for after `finish`."
            raise trial.wrong(text, D47, rank=rank)


class _Oracle:
    """The gradients of one step, and those that known mistakes give.

    Args:
        model: at the beginning of the step.
        shards: each rank's micro-batches.
        how: for each rank, further arguments of the model.
    """

    def __init__(self, model: nn.Module, shards: Sequence[Cut], how: Sequence[tuple[Any, ...]]) -> None:
        self.n = len(shards)
        n_rows = sum(shard.n_rows for shard in shards)
        parts = [
            [
                combine([shard_gradients(model, (x, y), *extra)], [len(y) * self.n / n_rows])
                for x, y in zip(shard.inputs, shard.targets, strict=True)
            ]
            for shard, extra in zip(shards, how, strict=True)
        ]
        self.own = [combine(rank, [1.0] * len(rank)) for rank in parts]
        self.last = combine([rank[-1] for rank in parts], [1 / self.n] * self.n)
        self.right = combine(self.own, [1 / self.n] * self.n)

    def suspect(self, rank: int, seen: Mapping[str, Any]) -> Mistake:
        """The mistake behind a rank's wrong gradients."""
        got, own = seen["gradients"], self.own[rank]
        if all_equal(got, combine(self.own, [1.0] * self.n)):
            return D44
        if all_equal(got, self.last):
            return D48
        if all_equal(got, own):
            return NOT_HANDED_BACK if seen["sizes"] else LAST_BUCKET
        if self._mixed(rank, got):
            return D50
        wrong = {name for name, value in self.right.items() if not equal(got[name], value)}
        if all(got[name] is None for name in wrong):
            return D52_UNUSED
        if all(equal(got[name], own[name]) for name in wrong):
            return LAST_BUCKET
        if all(equal(got[name], torch.zeros_like(own[name])) for name in wrong):
            return D47
        scaled = any(equal(got["second.weight"], self.right["second.weight"] * s) for s in (self.n, 1 / self.n))
        return D53 if wrong == {"second.weight"} and scaled else self._by_hand(rank, got)

    def _by_hand(self, rank: int, got: Mapping[str, Any]) -> Mistake:
        """The mistake of packing, unpacking or scaling behind wrong gradients."""
        if ratio(got, self.right) is not None:
            return SCALED
        if all_equal(got, combine([self.own[rank], self.right], [1.0, 1.0])):
            return ADDED_TO_OWN
        if any(got[name] is None or got[name].shape != one.shape for name, one in self.right.items()):
            return WRONG_NUMBERS
        numbers = (torch.cat([one[name].flatten() for name in self.right]).sort().values for one in (got, self.right))
        return CUT_ELSEWHERE if equal(*numbers) else WRONG_NUMBERS

    def _mixed(self, rank: int, got: Mapping[str, Any]) -> bool:
        """Whether one branch's gradient of this rank was averaged with the other branch's of the other rank."""
        mine, theirs = self.own[rank], self.own[1 - rank]
        pairs = (("left", "right"), ("right", "left"))
        return "left.weight" in mine and any(
            equal(got[f"{one}.weight"], (mine[f"{one}.weight"] + theirs[f"{other}.weight"]) / 2) for one, other in pairs
        )


def _judge_pieces(trial: Trial, setting: Setting, rank: int, step: int, seen: Mapping[str, Any]) -> None:
    """Refuse right gradients that went in other pieces than the task's buckets, or not under the backward."""
    right = [bucket.nbytes for bucket in make_buckets(setting.model.named_parameters(), setting.bucket_bytes)]
    sizes = seen["sizes"]
    if sorted(sizes) != sorted(right):
        text = f"in step {step}, it all-reduced {_bytes(sizes)}; the task's rule makes {_bytes(right)}."
        tied = isinstance(setting.model, Net) and sum(sizes) - sum(right) == setting.model.second.weight.nbytes
        raise trial.wrong(text, D53 if tied else OTHER_BUCKETS, rank=rank)
    if len(right) > 1 and not seen["overlapped"]:
        text = f"in step {step}, no all-reduce had begun when the backward came to the first layer."
        raise trial.wrong(text, NO_OVERLAP, rank=rank)


def _bytes(sizes: Sequence[int]) -> str:
    return f"{len(sizes)} piece{'s' * (len(sizes) != 1)} of {', '.join(map(str, sizes))} bytes"


def show_step(reducer_class: Any) -> None:
    """Draw one step with the learner's buckets on three emulated devices, and a simulated one, on one time axis."""
    model, bucket_bytes, n_ranks = mlp(width=64, n_layers=8, dtype=torch.float64), 35_000, 3
    setting = Setting("3 ranks", model, bucket_bytes, _shards(*[[[8], [8], [8]]] * 3), [()] * n_ranks)
    layers = [parameter_bytes(layer) for layer in model]
    link = Link(latency=0.002, bandwidth=12e6)  # slow, because the model is small
    beside = simulate_data_parallel(
        *([0.080 * size / sum(layers) for size in layers], layers, n_ranks, bucket_bytes),
        forward=0.040,
        latency=link.latency,
        bandwidth=link.bandwidth,
    )
    emulation = Emulation(forward=0.040, backward=0.080, link=link, per_layer=True)
    data = (reducer_class, setting)
    show_run(beside, emulation, ranks.train, *data, name="Reducer", parameters=PARAMETERS, n_ranks=n_ranks)
