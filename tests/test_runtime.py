"""The executor: whatever the schedule and the model, a pipeline computes what one process computes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pipelines import KINDS, Case, difference, in_ranks, merged, one_process
from torch import nn

from ppkit import routes
from ppkit.builders import gpipe, interleaved_1f1b, naive, one_f_one_b, zero_bubble_h1, zero_bubble_v
from ppkit.emulate import Emulation
from ppkit.errors import DeadlockError, PpkitError, RankError
from ppkit.launch import launch
from ppkit.layout import delivered
from ppkit.models import split
from ppkit.runtime import Pipeline, PipelineError, shared_parameters
from ppkit.schedule import Action, Op, Schedule
from ppkit.simulate import simulate

pytestmark = pytest.mark.ranks

EXACT = [kind for kind in KINDS if kind != "dropout"]  # those that one process trains alike
COUNTS = (1, 2, 3, 4, 8)


def _schedules(p: int, m: int) -> Iterator[Schedule]:
    yield naive(p, m)
    yield gpipe(p, m)
    yield one_f_one_b(p, m)
    yield interleaved_1f1b(p, m, 2)
    yield zero_bubble_h1(p, m)
    yield zero_bubble_v(p, m)


def _check(cases: list[Case], n_ranks: int, n_steps: int = 2) -> None:
    """Compare the last of some steps, which relies on the shapes of the one before, with one process."""
    results = launch(in_ranks, cases, n_steps, n_ranks=n_ranks, observe=False, show=False, threads=1).results
    expected = {key: one_process(*key) for key in {(case.kind, case.n_samples) for case in cases}}
    wrong = {}
    for number, case in enumerate(cases):
        off = difference(expected[case.kind, case.n_samples], merged(results, number))
        if not off < 1e-10:
            wrong[str(case)] = off
    assert not wrong


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_loss_and_gradients_are_those_of_one_process(p: int) -> None:
    """Every kind of model with every schedule; counts and ragged batches in turn."""
    sizes = cycle([(m, 2 * m + ragged) for m in COUNTS for ragged in (0, 1)])
    cases = []
    for position, kind in enumerate(EXACT):
        for number in range((position + p) % 2, 6, 2):  # the other schedules with one rank more
            m, n_samples = next(sizes)
            cases.append(Case(kind, list(_schedules(p, m))[number], n_samples))
    _check(cases, p)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_every_combination_is_one_process(p: int, kind: str) -> None:
    cases = [Case(kind, schedule, 2 * m + ragged) for m in COUNTS for schedule in _schedules(p, m) for ragged in (0, 1)]
    _check(cases, p)


def _random_schedule(seed: int, n_ranks: int) -> Schedule:
    """Any order in which one device after another could run the actions, on stages that lie anywhere."""
    choose = random.Random(seed)
    n_stages, m = choose.randint(1, 5), choose.randint(1, 4)
    ranks = tuple(choose.randrange(n_ranks) for _ in range(n_stages))
    rows: list[list[Action]] = [[] for _ in range(n_ranks)]
    waits: dict[Action, set[tuple[int, int, str]]] = {}
    for stage in range(n_stages):
        for i in range(m):
            waits[Action(stage, Op.F, i)] = {(stage - 1, i, "F")} if stage else set()
            back = {(stage, i, "F")} | ({(stage + 1, i, "back")} if stage < n_stages - 1 else set())
            if choose.random() < 0.5:
                waits[Action(stage, Op.B, i)] = back
            else:
                waits |= {Action(stage, Op.I, i): back, Action(stage, Op.W, i): {(stage, i, "back")}}
    done: set[tuple[int, int, str]] = set()
    while waits:
        action = choose.choice([action for action, needs in waits.items() if needs <= done])
        del waits[action]
        rows[ranks[action.stage]].append(action)
        done.add((action.stage, action.microbatch or 0, {Op.F: "F", Op.W: "W"}.get(action.op, "back")))
    return Schedule(f"random {seed}", n_ranks, n_stages, m, tuple(map(tuple, rows)), ranks)


def _random_cases(n_ranks: int, seeds: range) -> list[Case]:
    kinds = cycle(EXACT)
    schedules = [_random_schedule(seed, n_ranks) for seed in seeds]
    return [
        Case(next(kinds), s, s.n_microbatches + seed % 4, seed % 3 == 0)
        for seed, s in zip(seeds, schedules, strict=True)
    ]


@pytest.mark.parametrize("p", [2, 3])
def test_a_schedule_in_any_order_runs(p: int) -> None:
    _check(_random_cases(p, range(16)), p)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_many_schedules_in_any_order_run(p: int) -> None:
    _check(_random_cases(p, range(100, 300)), p)


def test_shapes_may_change_from_step_to_step() -> None:
    cases = [Case(kind, one_f_one_b(2, 3), 7) for kind in ("mlp", "tuples", "skips")]
    cases += [Case("used twice", zero_bubble_v(2, 3), 7)]
    for n_steps in (2, 3, 5):  # batches of 7 and 8 in turn, the last one of 7
        _check(cases, 2, n_steps)


def _posted_ahead(case: Case, limit: int) -> tuple[int, Any]:
    """How many receives of a line are posted at most, and what the case gives."""
    routes._AHEAD_BYTES = limit
    post_ahead, most = routes._Line._post_ahead, 0

    def counted(line: Any, specs: Any) -> None:
        nonlocal most
        post_ahead(line, specs)
        most = max(most, len(line._posted))

    routes._Line._post_ahead = counted  # type: ignore[method-assign]
    found = in_ranks([case], 2)
    return most, found


@pytest.mark.parametrize(("n_samples", "limit", "expected"), [(8, 1 << 20, 8), (8, 150, 3), (8, 0, 2), (9, 0, 2)])
def test_receives_are_posted_ahead_while_their_buffers_are_small(n_samples: int, limit: int, expected: int) -> None:
    case = Case("mlp", one_f_one_b(2, 8), n_samples)
    results = launch(_posted_ahead, case, limit, n_ranks=2, observe=False, show=False).results
    assert [most for most, _ in results] == [expected] * 2
    assert difference(one_process("mlp", n_samples), merged(tuple(found for _, found in results), 0)) < 1e-10


@pytest.mark.parametrize("checkpoint", [True, (1,)], ids=str)
def test_a_checkpoint_changes_no_number(checkpoint: bool | tuple[int, ...]) -> None:
    """Dropout is drawn alike when a forward is computed again."""
    every = [s for m in (1, 3) for s in _schedules(2, m)]
    plain = [Case(kind, schedule, 7) for schedule in every for kind in ("dropout", "tuples", "skips")]
    kept = [Case(case.kind, case.schedule, 7, checkpoint) for case in plain]
    results = launch(in_ranks, plain + kept, n_ranks=2, observe=False, show=False, threads=1).results
    for number, case in enumerate(plain):
        assert difference(merged(results, number), merged(results, len(plain) + number)) < 1e-12, str(case)


def test_a_checkpoint_leaves_random_numbers_as_they_are() -> None:
    def numbers(checkpoint: bool) -> float:
        torch.manual_seed(dist.get_rank())
        pipe = _pipe(one_f_one_b(2, 3), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), checkpoint=checkpoint)
        pipe.step(torch.ones(6, 4), torch.zeros(6, 4))
        return torch.rand(1).item()

    runs = [launch(numbers, checkpoint, show=False).results for checkpoint in (False, True)]
    assert runs[0] == runs[1]


def test_a_schedule_may_say_itself_when_to_send_and_receive() -> None:
    first, second = gpipe(2, 4).with_comms().actions
    early = sorted(second, key=lambda action: action.op is not Op.RECV_F)  # all receives first
    _check([Case("mlp", Schedule("early", 2, 2, 4, (first, tuple(early))), 9)], 2)


@pytest.mark.parametrize("schedule", list(_schedules(4, 16)), ids=lambda s: s.name)
def test_buffers_of_sends_are_let_go_of(schedule: Schedule) -> None:
    """As many are kept as micro-batches are in flight, not as the batch has."""
    full = schedule.with_comms()
    for rank, row in enumerate(full.actions):
        known, kept, most = delivered(full, rank), set(), 0
        for action in row:
            key = (action.op, action.stage, action.microbatch)
            if action.op.is_send:
                kept.add(key)
            elif action.op.is_recv:
                assert set(known.get(key, ())) <= kept  # nothing arrives before it is sent
                kept -= set(known.get(key, ()))
            most = max(most, len(kept))
        if schedule.name == "1F1B":
            assert most <= 5
        elif schedule.name != "GPipe":
            assert most < 16


def test_stages_may_lie_anywhere_in_any_order() -> None:
    rows = ("0F1 0F0 3F0 3F1 3I1 3B0 0B0 3W1 0B1", "1F1 1F0 2F0 2F1 2B0 2I1 1B0 2W1 1I1 1W1")
    _check([Case(kind, Schedule("odd", 2, 4, 2, rows, (0, 1, 1, 0)), 5) for kind in EXACT], 2)


@pytest.mark.parametrize("kind", ["mlp", "tuples", "skips", "dropout"])
@pytest.mark.parametrize("schedule", [gpipe(2, 3), zero_bubble_v(2, 3)], ids=lambda s: s.name)
def test_a_schedule_without_backward_evaluates(schedule: Schedule, kind: str) -> None:
    def evaluate() -> tuple[float | None, torch.Tensor | None]:
        stages = split(KINDS[kind].build().eval(), schedule.n_stages, by="layers")
        mine = {s: stages[s] for s, owner in enumerate(schedule.stage_to_rank) if owner == dist.get_rank()}
        pipe = Pipeline(schedule.forward_part(), mine, KINDS[kind].loss_fn, checkpoint=True)
        pipe.step(KINDS[kind].inputs(8))
        result = pipe.step(KINDS[kind].inputs(7), KINDS[kind].targets(7))
        assert all(p.grad is None for module in mine.values() for p in module.parameters())
        return result.loss, result.output

    run = launch(evaluate, n_ranks=2, show=False)
    inputs, model = KINDS[kind].inputs(7), KINDS[kind].build().eval()
    output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    loss, found = run.results[schedule.stage_to_rank[-1]]
    assert torch.allclose(found, output, rtol=0, atol=1e-12)
    assert loss == pytest.approx(KINDS[kind].loss_fn(output, KINDS[kind].targets(7)).item(), abs=1e-12)
    assert run.timeline.peak_in_flight == simulate(schedule.forward_part()).peak_in_flight


def test_one_rank_needs_no_process_group() -> None:
    module = nn.Sequential(nn.Linear(3, 1, dtype=torch.float64))
    x, y = torch.arange(6.0, dtype=torch.float64).reshape(2, 3), torch.ones(2, 1, dtype=torch.float64)
    loss = nn.functional.mse_loss(module(x), y)
    result = Pipeline(gpipe(1, 2), [module], nn.functional.mse_loss).step(x, y)
    assert result.loss == pytest.approx(loss.item(), abs=1e-12)
    assert len(result.losses or ()) == 2
    assert torch.allclose(module[0].weight.grad, torch.autograd.grad(loss, module[0].weight)[0])


def test_weights_of_micro_batches_can_be_given() -> None:
    """A mean over tokens without padding weighs by their number."""

    def mean(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target, ignore_index=0)

    model = nn.Linear(3, 5, dtype=torch.float64)
    x, y = torch.eye(3, dtype=torch.float64).repeat(3, 1), torch.tensor([1, 2, 0, 0, 0, 3, 4, 1, 2])
    pipe = Pipeline(gpipe(1, 3), [model], mean, weigh=lambda target: int((target != 0).sum()))
    assert pipe.step(x, y).loss == pytest.approx(mean(model(x), y).item(), abs=1e-12)


# --- Groups, reductions, shared parameters -------------------------------------------------------------------------


def _pipe(schedule: Schedule, module: nn.Module, **options: Any) -> Pipeline:
    """A pipeline with one stage a rank."""
    return Pipeline(schedule, [module], options.pop("loss_fn", nn.functional.mse_loss), **options)


def test_pipelines_side_by_side_reduce_their_gradients() -> None:
    """Two pipelines of two ranks, each with half of the batch, are one process with the whole."""
    rows = ("0F0 0F1 0B0 0B1 0REDUCE", "1F0 1B0 1F1 1B1 1REDUCE")
    schedule = Schedule("1F1B with REDUCE", 2, 2, 2, rows)

    def hybrid() -> tuple[float | None, list[torch.Tensor], list[int]]:
        rank, called = dist.get_rank(), []
        pipelines = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        replicas = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        replica, stage = divmod(rank, 2)
        torch.manual_seed(stage)
        module = nn.Linear(4, 4, dtype=torch.float64)

        def reduce(at: int, reduced: nn.Module) -> Any:
            called.append(at)
            assert reduced is module
            flat = [p.grad for p in module.parameters()]
            for gradient in flat:
                gradient.div_(2)
            works = [dist.all_reduce(gradient, group=replicas[stage], async_op=True) for gradient in flat]
            works[0].wait()
            return works[1]

        pipe = _pipe(schedule, module, group=pipelines[replica], reduce=reduce)
        half = slice(4 * replica, 4 * replica + 4)
        result = pipe.step(_batch()[half], _batch().flip(0)[half])
        return result.loss, [p.grad for p in module.parameters()], called

    results = launch(hybrid, n_ranks=4, show=False).results
    modules = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        modules.append(nn.Linear(4, 4, dtype=torch.float64))
    loss = nn.functional.mse_loss(modules[1](modules[0](_batch())), _batch().flip(0))
    loss.backward()
    assert (results[1][0] + results[3][0]) / 2 == pytest.approx(loss.item(), abs=1e-12)
    for rank, (_, gradients, called) in enumerate(results):
        assert called == [rank % 2]
        for parameter, gradient in zip(modules[rank % 2].parameters(), gradients, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=0, atol=1e-12)


def _batch() -> torch.Tensor:
    return torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(8, 4)


SHARING = {"table": {0: "weight", 1: "weight"}}


def test_shared_gradients_accumulate_over_steps() -> None:
    def train() -> torch.Tensor:
        torch.manual_seed(0)
        module = nn.Linear(4, 4, bias=False, dtype=torch.float64)
        pipe = _pipe(gpipe(2, 2), module, shared=SHARING)
        for _ in range(3):
            pipe.step(_batch(), _batch())
        return module.weight.grad

    torch.manual_seed(0)
    module = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    nn.functional.mse_loss(module(module(_batch())), _batch()).backward()
    for gradient in launch(train, show=False).results:
        assert torch.allclose(gradient, 3 * module.weight.grad, rtol=0, atol=1e-12)


def test_shared_parameters_are_found() -> None:
    layer = nn.Linear(2, 2)
    stages = [nn.Sequential(layer), nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.ReLU(), layer)]
    assert shared_parameters(stages) == {
        "0.weight": {0: "0.weight", 2: "1.weight"},
        "0.bias": {0: "0.bias", 2: "1.bias"},
    }


# --- What a run looks like -----------------------------------------------------------------------------------------


def _labels(timeline: Any, rank: int) -> list[str]:
    return [f"{e.stage}{e.kind}{e.microbatch}" for e in timeline.of_rank(rank) if e.kind in "FBIW"]


@pytest.mark.parametrize("schedule", list(_schedules(2, 3)), ids=lambda s: s.name)
def test_the_timeline_is_the_schedule(schedule: Schedule) -> None:
    for cases in ([Case("mlp", schedule, 7)], [Case("skips", schedule, 7, checkpoint=True)]):
        timeline = launch(in_ranks, cases, 2, n_ranks=2, show=False).timeline
        for rank, row in enumerate(schedule.actions):
            assert _labels(timeline, rank) == [str(action) for action in row] * 2
        assert timeline.peak_in_flight == simulate(schedule).peak_in_flight


def test_the_handshake_is_no_part_of_the_timeline() -> None:
    timeline = launch(in_ranks, [Case("mlp", gpipe(2, 3), 6)], n_ranks=2, show=False).timeline
    per_sample = timeline.bytes_sent[0] // 6
    assert timeline.bytes_sent == (6 * per_sample,) * 2
    assert len([event for event in timeline if event.kind == "SEND"]) == 6
    assert not [event for event in timeline if event.note]


def test_an_emulated_checkpoint_costs_a_forward_more() -> None:
    emulation = Emulation(forward=0.02, backward=0.03)
    timeline = launch(in_ranks, [Case("mlp", zero_bubble_h1(2, 2), 4, (1,))], n_ranks=2, emulate=emulation, show=False)
    shortest = {
        (kind, rank): min(e.end - e.start for e in timeline.timeline.of_rank(rank) if e.kind == kind)
        for kind in "FIW"
        for rank in (0, 1)
    }
    assert shortest["I", 1] >= 0.015 + 0.02 - 1e-9
    assert min(shortest["I", 0], shortest["W", 0], shortest["W", 1]) >= 0.015 - 1e-9


@pytest.mark.gpu
@pytest.mark.parametrize("checkpoint", [False, True])
def test_stages_on_a_gpu_that_ranks_share(checkpoint: bool) -> None:
    """Messages go through the CPU, over gloo."""

    def train(schedule: Schedule) -> list[torch.Tensor]:
        torch.manual_seed(dist.get_rank())
        module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).to("cuda", torch.float64)
        pipe = _pipe(schedule, module, checkpoint=checkpoint)
        for _ in range(2):
            torch.manual_seed(dist.get_rank())
            pipe.step(_batch(), _batch())
        return [p.grad for p in module.parameters()]

    runs = [launch(train, s, n_ranks=2, device="cuda", show=False).results for s in (one_f_one_b(2, 3), gpipe(2, 3))]
    for one, other in zip(*runs, strict=True):
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(one, other, strict=True))


# --- Mistakes ------------------------------------------------------------------------------------------------------


def _all_raise(make: Callable[[], Any], n_ranks: int = 2) -> list[str]:
    """Run what every rank must refuse; return the messages."""

    def refused() -> str:
        try:
            make()
        except PpkitError as error:
            return str(error)
        return "nothing was raised"

    return list(launch(refused, n_ranks=n_ranks, show=False).results)


def _step(schedule: Schedule | None = None, module: nn.Module | None = None, n: int = 4, **options: Any) -> Any:
    x = torch.linspace(0, 1, 4 * n).reshape(n, 4)
    targets = options.pop("targets", x)
    return _pipe(schedule or gpipe(2, 2), module or nn.Linear(4, 4), **options).step(x, targets)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "too few samples": (lambda: _step(n=1), "a batch of 1 samples cannot be cut in 2 micro-batches"),
    "wrong number of ranks": (lambda: _step(gpipe(3, 2)), "GPipe needs a group of 3 ranks; got a group of 2 ranks"),
    "no schedule": (lambda: _step("gpipe"), "needs a Schedule"),  # type: ignore[arg-type]
    "invalid schedule": (lambda: _step(Schedule("s", 2, 2, 1, ("0F0 0B0", "1B0 1F0"))), "1B0 runs before its forward"),
    "different schedules": (lambda: _step(gpipe(2, 2 + dist.get_rank())), "different values of schedule"),
    "wrong number of stages": (
        lambda: Pipeline(gpipe(2, 2), [nn.Linear(2, 2)] * (1 + dist.get_rank()), nn.functional.mse_loss),
        "rank 1 has the stages [1]: modules must be a list of 1",
    ),
    "another rank's stage": (
        lambda: Pipeline(gpipe(2, 2), {0: nn.Linear(2, 2)}, nn.functional.mse_loss),
        "rank 1 has the stages [1] and needs one module for each; got {0: Linear}",
    ),
    "a stage's number as a text": (
        lambda: Pipeline(gpipe(2, 2), {str(dist.get_rank()): nn.Linear(2, 2)}, nn.functional.mse_loss),  # type: ignore[dict-item]
        "needs one module for each; got {'",
    ),
    "unequal shared": (
        lambda: _step(module=_linear(seed=dist.get_rank()), shared=SHARING),
        "its values in stage 1 (weight) are not those in stage 0 (weight)",
    ),
    "no loss function": (lambda: _step(loss_fn=None), "loss_fn is None, but the schedule trains"),
    "no such stage to checkpoint": (lambda: _step(checkpoint=(2,)), "True, or some of the stages 0 to 1"),
    "no stages to checkpoint": (lambda: _step(checkpoint=1), "checkpoint=1: True, or some of the stages"),
    "no function of loss": (lambda: _step(loss_fn="mse"), "loss_fn must be a function of output and target; got 'mse'"),
    "shared with no stage": (
        lambda: _step(shared={"a": {0: "weight", 9: "weight"}}),
        "shared parameter 'a': there is no stage 9; the stages are 0 to 1",
    ),
    "unknown device": (lambda: _step(device="gpu"), "device='gpu': such as"),
    "without gradients": (lambda: torch.no_grad()(_step)(), "call it outside of torch.no_grad()"),
    "unknown shared": (lambda: _step(shared={"a": {0: "weight", 1: "wait"}}), "stage 1 has no parameter 'wait'"),
}


def _linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 4)


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_work_is_refused_on_every_rank(mistake: str) -> None:
    make, message = REFUSED[mistake]
    for raised in _all_raise(make):
        assert message in raised


class _Returns(nn.Module):
    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(self.linear(x))


def _changing() -> Any:
    module = _Returns(lambda y: y)
    pipe = _pipe(gpipe(2, 2), module)
    x = torch.ones(4, 4)
    pipe.step(x, x)
    module.make = lambda y: y[:, :2]
    pipe.step(x, x)


FAILS: dict[str, tuple[Callable[[], Any], str]] = {
    "no tensor": (lambda: _step(module=_Returns(lambda y: {"y": y})), "rank 0, 0F0: a stage must return a tensor"),
    "no tensors": (lambda: _step(module=_Returns(lambda y: (y, 1))), "it returned a tuple with an int"),
    "no scalar": (lambda: _step(loss_fn=lambda y, t: y - t), "rank 1, 1F0: loss_fn must return a scalar"),
    "no loss": (lambda: _step(loss_fn=lambda y, t: 1.0), "it returned a float"),
    "NaN": (lambda: _step(loss_fn=lambda y, t: y.sum() * float("nan")), "the loss of micro-batch 0 is NaN"),
    "wrong shape": (lambda: _step(module=nn.Linear(4, 3)), "rank 1, 1F0: RuntimeError: mat1 and mat2 shapes"),
    "nothing to train": (lambda: _step(module=nn.Linear(4, 4).requires_grad_(False)), "nothing was trained"),
    "wrong targets": (lambda: _step(targets=torch.ones(3, 4)), "targets have 3 samples for inputs of 4"),
    "in place": (
        lambda: _step(module=nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))),
        "A stage may not change its input in place: give its first operation inplace=False",
    ),
    "no targets": (lambda: _step(targets=None), "targets must be a tensor [N, ...]"),
    "other shapes than agreed": (_changing, "stage 0 hands on float32 [2, 2]"),
}


@pytest.mark.parametrize("mistake", FAILS)
def test_a_failure_names_rank_and_action(mistake: str) -> None:
    make, message = FAILS[mistake]
    with pytest.raises(RankError) as caught:
        launch(make, show=False, timeout=30)
    assert message in str(caught.value)
    assert caught.value.original_type == PipelineError.__name__


def test_a_failure_shows_the_line_of_the_module() -> None:
    def broken(y: torch.Tensor) -> torch.Tensor:
        return y @ torch.ones(3)  # this line

    with pytest.raises(RankError, match="# this line"):
        launch(lambda: _step(module=_Returns(broken)), show=False, timeout=30)


def test_a_rank_that_does_not_take_part_is_found() -> None:
    def alone() -> None:
        pipe = _pipe(gpipe(2, 2), nn.Linear(4, 4))
        if dist.get_rank() == 1:
            pipe.step(targets=torch.ones(4, 4))  # this line
        else:
            dist.recv(torch.ones(1), 1)

    with pytest.raises(DeadlockError, match=r"rank 1: waits in recv.*# this line"):
        launch(alone, show=False, timeout=60)


def test_a_pipeline_that_failed_stays_so() -> None:
    pipe = Pipeline(gpipe(1, 2), [nn.Linear(2, 2)], nn.functional.mse_loss)
    with pytest.raises(PipelineError, match="0F0: RuntimeError") as caught:
        pipe.step(torch.ones(2, 3), torch.ones(2, 2))
    assert (caught.value.rank, caught.value.stage, caught.value.action) == (0, 0, "0F0")
    with pytest.raises(PipelineError, match="failed in an earlier step"):
        pipe.step(torch.ones(2, 2), torch.ones(2, 2))


def test_modules_may_be_a_module_list() -> None:
    def train() -> float | None:
        torch.manual_seed(0)
        modules = nn.ModuleList([nn.Linear(4, 4)])
        return Pipeline(gpipe(2, 2), modules, nn.functional.mse_loss).step(torch.ones(4, 4), torch.ones(4, 4)).loss

    assert launch(train, show=False).results[1] is not None


def test_frozen_parameters_can_be_thawed() -> None:
    def thaw() -> bool:
        module = nn.Linear(4, 4).requires_grad_(dist.get_rank() == 1)
        pipe = _pipe(gpipe(2, 2), module)
        pipe.step(_batch().float(), _batch().float())
        frozen = module.weight.grad is None
        module.requires_grad_(True)
        pipe.forget_shapes()
        pipe.step(_batch().float(), _batch().float())
        return frozen == (dist.get_rank() == 0) and module.weight.grad is not None

    assert all(launch(thaw, show=False).results)
