"""Our schedules run by torch, torch's read as ours: same actions, same losses, same gradients as one process."""

from __future__ import annotations

import csv
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ppkit import (
    Emulation,
    PpkitError,
    Run,
    Schedule,
    gpipe,
    interleaved_1f1b,
    launch,
    naive,
    one_f_one_b,
    simulate,
    zero_bubble_h1,
    zero_bubble_v,
)
from ppkit import torch_names as names
from ppkit.bridge import BridgeError, TorchPipeline, as_torch, differences, from_torch, to_torch, torch_schedule

OURS: dict[str, Callable[[int, int], Schedule]] = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": lambda p, m: interleaved_1f1b(p, m, 2),
    "zb-h1": zero_bubble_h1,
    "zb-v": zero_bubble_v,
}
THEIRS = {
    "GPipe": gpipe,
    "1F1B": one_f_one_b,
    "Interleaved1F1B": OURS["interleaved"],
    "ZBVZeroBubble": zero_bubble_v,
}
P, M, SAMPLES = 2, 4, 8


def layers(n_stages: int) -> list[nn.Sequential]:
    """The same on every rank: an MLP whose slices use all kinds of weights."""
    torch.manual_seed(3)
    return [nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6)).double() for _ in range(n_stages)]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.randn(SAMPLES, 6, dtype=torch.float64), torch.randn(SAMPLES, 6, dtype=torch.float64)


def run_torch(schedule: Any, steps: int, n_microbatches: int | None) -> Any:
    """Train through torch on this rank; return losses and gradients by name."""
    rank = dist.get_rank()
    if isinstance(schedule, Schedule):
        plan = schedule
    else:
        chunks = 1 if schedule in ("GPipe", "1F1B") else 2
        plan = torch_schedule(schedule, dist.get_world_size(), n_microbatches or M, chunks)
    stages = layers(plan.n_stages)
    own = {s: stages[s] for s in range(plan.n_stages) if plan.stage_to_rank[s] == rank}
    pipe = TorchPipeline(schedule, own, nn.functional.mse_loss, n_microbatches=n_microbatches)
    optimizer = torch.optim.SGD([p for stage in own.values() for p in stage.parameters()], 0.1)
    x, y = batch()
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        result = pipe.step(x if 0 in own else None, y if plan.n_stages - 1 in own else None)
        gradients = {(s, n): p.grad.clone() for s, m in own.items() for n, p in m.named_parameters()}
        found.append((result.loss, result.losses, gradients))
        optimizer.step()
    return found, pipe.schedule


def in_one_process(n_stages: int, steps: int) -> list[tuple[float, dict[tuple[int, str], torch.Tensor]]]:
    stages = layers(n_stages)
    model = nn.Sequential(*stages)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = batch()
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        found.append(
            (loss.item(), {(s, n): p.grad.clone() for s, m in enumerate(stages) for n, p in m.named_parameters()})
        )
        optimizer.step()
    return found


def check_equal(run: Run, n_stages: int, steps: int) -> None:
    """Losses and gradients of every step and stage are those of one process."""
    reference = in_one_process(n_stages, steps)
    seen = set()
    for found, _ in run.results:
        for (loss, losses, gradients), (right_loss, right) in zip(found, reference, strict=True):
            if loss is not None:
                assert loss == pytest.approx(right_loss, abs=1e-10)
                assert len(losses) == M
            for key, gradient in gradients.items():
                seen.add(key)
                torch.testing.assert_close(gradient, right[key], rtol=0, atol=1e-10)
    assert seen == reference[0][1].keys()
    assert sum(found[0][0] is not None for found, _ in run.results) == 1


def order_of(run: Run) -> list[list[str]]:
    """What each rank computed in the last step, as it was observed."""
    step = run.timeline.step(-1)
    return [
        [f"{e.stage}{e.kind}{e.microbatch}" for e in step.of_rank(r) if e.kind in "FBIW"] for r in range(run.n_ranks)
    ]


def texts(schedule: Schedule) -> list[list[str]]:
    return [[str(action) for action in row] for row in schedule.compute_only().actions]


# Ours through torch, torch's own


@pytest.mark.ranks
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("comms", [False, True], ids=["torch's messages", "our messages"])
def test_our_schedules_train_through_torch_as_one_process(kind: str, comms: bool) -> None:
    schedule = OURS[kind](P, M)
    if comms:
        schedule = schedule.with_comms()
    run = launch(run_torch, schedule, 2, None, n_ranks=P, show=False)
    check_equal(run, schedule.n_stages, 2)
    assert order_of(run) == texts(schedule)


@pytest.mark.ranks
@pytest.mark.parametrize("kind", THEIRS)
def test_torchs_schedules_train_as_one_process_and_are_seen_as_they_are(kind: str) -> None:
    run = launch(run_torch, kind, 2, M, n_ranks=P, show=False)
    ours = THEIRS[kind](P, M)
    check_equal(run, ours.n_stages, 2)
    assert order_of(run) == texts(ours)
    assert not differences(ours, run.results[0][1])


@pytest.mark.ranks
def test_a_schedule_of_ones_own_runs_through_torch() -> None:
    own = Schedule("mine", 2, 2, 4, ("0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3", "1F0 1I0 1F1 1I1 1W1 1F2 1W0 1B2 1F3 1B3"))
    run = launch(run_torch, own, 1, None, n_ranks=2, show=False)
    check_equal(run, 2, 1)
    assert order_of(run) == texts(own)


# What is seen of a run


@pytest.mark.ranks
def test_the_timeline_has_stages_microbatches_peaks_and_no_made_up_forward() -> None:
    schedule = zero_bubble_v(P, M)
    run = launch(run_torch, schedule, 2, None, n_ranks=P, show=False)
    ideal = simulate(schedule)
    step = run.timeline.step(1)
    assert step.peak_in_flight == ideal.peak_in_flight
    assert (step.n_stages, step.n_microbatches) == (schedule.n_stages, M)
    assert not [e for e in step.events if e.name == "shape inference"]
    first = run.timeline.step(0)
    shapes = [e for e in first.events if e.name == "shape inference"]
    assert len(shapes) == 2 * schedule.n_stages  # a forward and a backward of each
    assert {e.kind for e in shapes} == {"COMPUTE"}
    assert len([e for e in first.events if e.kind == "F"]) == M * schedule.n_stages


@pytest.mark.ranks
def test_emulated_durations_hold_for_torch_too() -> None:
    emulation = Emulation(forward=0.02, input_grad=0.02, weight_grad=0.02)
    run = launch(run_torch, zero_bubble_h1(P, M), 2, None, n_ranks=P, emulate=emulation, show=False)
    assert all(e.duration >= 0.0199 for e in run.timeline.events if e.kind in "FIW")
    shown = as_torch(run.timeline.step(-1), "ZB-H1 by torch")
    assert shown.source == "torch"
    assert "emulated: F 20 ms" in shown.title


@pytest.mark.ranks
def test_nothing_is_imported_in_a_rank() -> None:
    def new_modules() -> list[str]:
        before = set(sys.modules)
        run_torch(zero_bubble_v(P, M), 1, None)
        return sorted(set(sys.modules) - before)

    assert launch(new_modules, n_ranks=P, show=False).results == ([], [])


@pytest.mark.ranks
def test_gradients_are_added_to_those_that_are_there() -> None:
    def twice() -> list[torch.Tensor]:
        rank = dist.get_rank()
        stage = layers(P)[rank]
        pipe = TorchPipeline(one_f_one_b(P, M), [stage], nn.functional.mse_loss)
        x, y = batch()
        pipe.step(x, y)
        once = [p.grad.clone() for p in stage.parameters()]
        pipe.step(x, y)
        return [(p.grad - 2 * g).abs().max() for p, g in zip(stage.parameters(), once, strict=True)]

    assert max(max(rank) for rank in launch(twice, n_ranks=P, show=False).results) < 1e-12


def plain_torch() -> list[str]:
    """Zero bubble as a user of torch writes it, without the bridge."""
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import ScheduleZBVZeroBubble

    rank = dist.get_rank()
    modules = layers(4)
    stages = [PipelineStage(modules[s], s, 4, torch.device("cpu")) for s in (rank, 3 - rank)]
    x, y = batch()
    pipe = ScheduleZBVZeroBubble(stages, M, loss_fn=nn.functional.mse_loss)
    losses: list[torch.Tensor] = []
    pipe.step(*((x,) if rank == 0 else ()), **({"target": y, "losses": losses} if rank == 0 else {}))
    return [f"{loss.item():.6f}" for loss in losses]


@pytest.mark.ranks
def test_torchs_halves_of_a_backward_are_seen_without_the_bridge_too() -> None:
    run = launch(plain_torch, n_ranks=P, show=False)
    assert len(run.results[0]) == M
    assert {"F", "I", "W"} <= {e.kind for e in run.timeline.events}


# Text


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(("p", "m"), [(2, 1), (3, 5), (4, 8)])
def test_to_torch_and_back(kind: str, p: int, m: int) -> None:
    schedule = OURS[kind](p, m)
    order = to_torch(schedule)
    assert {rank: len(row) for rank, row in order.items()} == {r: len(t) for r, t in enumerate(schedule.ticks())}
    back = from_torch(order, name=schedule.name)
    assert back == schedule
    assert not differences(schedule, back)


@pytest.mark.parametrize("kind", OURS)
def test_torchs_own_loader_reads_our_csv_and_ours_reads_what_it_dumps(kind: str, tmp_path: Path) -> None:
    from torch.distributed.pipelining.schedules import _Action, _validate_schedule

    schedule = OURS[kind](4, 8)
    path = tmp_path / "ours.csv"
    path.write_text(schedule.to_csv())
    with path.open(newline="") as file:  # as `_load_csv` does
        order = {rank: [_Action.from_str(cell) for cell in row] for rank, row in enumerate(csv.reader(file))}
    placed = _validate_schedule(order, 4, schedule.n_stages, 8)
    assert tuple(placed[stage] for stage in range(schedule.n_stages)) == schedule.stage_to_rank
    assert order == to_torch(schedule)
    with path.open("w", newline="") as file:  # as `_dump_csv` does
        csv.writer(file).writerows(order.values())
    assert Schedule.from_csv(path, schedule.name) == schedule


@pytest.mark.parametrize("kind", sorted(THEIRS.keys() - {"1F1B"}))
def test_torchs_schedules_are_ours(kind: str) -> None:
    for p, m in ((2, 4), (4, 4), (4, 8), (3, 9)):
        found = differences(THEIRS[kind](p, m), torch_schedule(kind, p, m))
        assert not found, str(found)
    assert not differences(zero_bubble_h1(4, 8), torch_schedule("InterleavedZeroBubble", 4, 8, 1))


def test_the_table_of_torchs_1f1b_is_wrong_and_validate_says_so() -> None:
    with pytest.raises(PpkitError, match="3"):
        torch_schedule("1F1B", 4, 8).validate()


def test_differences_name_rank_place_and_actions() -> None:
    found = differences(gpipe(2, 2), one_f_one_b(2, 2))
    assert found
    assert [(row.rank, row.position) for row in found] == [(1, 1), (1, 2)]
    assert str(found).splitlines() == [
        "GPipe and 1F1B differ in 2 places:",
        "rank 1, from action 1: nothing  against  1B0",
        "rank 1, from action 2: 1B0  against  nothing",
    ]
    same = differences(gpipe(2, 2), gpipe(2, 2).with_comms())
    assert not same
    assert str(same) == "GPipe and GPipe: the same 8 actions in the same order on every rank"


def test_dual_pipe_is_read_one_action_after_the_other() -> None:
    schedule = torch_schedule("DualPipeV", 2, 8)
    assert schedule.validate().stage_to_rank == (0, 1, 1, 0)


# What is refused


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: torch_schedule("Nope", 2, 4), "Unknown schedule name 'Nope'"),
        (lambda: torch_schedule("Interleaved1F1B", 4, 9), "refuses 4 ranks, 9 micro-batches, 2 stages a rank"),
        (lambda: torch_schedule("ZBVZeroBubble", 4, 8, 3), "exactly 2 stages per rank"),
        (lambda: from_torch(7), "takes a pipeline_order"),
        (lambda: torch_schedule("Interleaved1F1B", 0, 3), "n_ranks is 0; it must be a whole number of at least 1"),
        (lambda: torch_schedule("GPipe", "2", 3), "n_ranks is '2'"),  # type: ignore[arg-type]
        (lambda: torch_schedule("GPipe", 2, None), "n_microbatches is None"),  # type: ignore[arg-type]
        (lambda: torch_schedule("Interleaved1F1B", 2, 4, -1), "n_chunks is -1"),
        (lambda: torch_schedule("Interleaved1F1B", 2, 4, 0), "n_chunks is 0"),
        (lambda: from_torch({}), "takes a pipeline_order"),
        (lambda: from_torch({0: ["0F0"]}), r"rank 0 has '0F0', which is no action of torch; for texts use"),
        (lambda: from_torch({0: 3}), "the actions of rank 0 must be a list; got 3"),
        (lambda: from_torch({1: [], "a": []}), r"actions are of ranks \[1, 'a'\]; they must be 0 to 1"),
        (lambda: torch_schedule(None, 2, 4), "one of its classes, or its name"),  # type: ignore[arg-type]
        (lambda: torch_schedule(dict, 2, 4), "one of its classes, or its name"),
        (lambda: to_torch("gpipe"), r"to_torch\(\) takes a Schedule; got 'gpipe'"),  # type: ignore[arg-type]
        (lambda: differences(gpipe(2, 2), 5), r"differences\(\) takes a Schedule; got 5"),  # type: ignore[arg-type]
        (lambda: as_torch(gpipe(2, 2)), r"as_torch\(\) takes a Timeline"),  # type: ignore[arg-type]
    ],
)
def test_what_torch_has_not_is_said(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(BridgeError, match=says) as caught:
        call()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def refused(what: str) -> str:
    stage = layers(P)[dist.get_rank()]
    x, y = batch()
    odd = Schedule("odd", 2, 2, 2, ("0F1 0F0 0B1 0B0", "1F1 1F0 1B1 1B0"))
    try:
        if what == "ragged":
            TorchPipeline(gpipe(P, 3), [stage], nn.functional.mse_loss).step(x, y)
        elif what == "losses":
            TorchPipeline(odd, [stage], nn.functional.mse_loss)
        elif what == "modules":
            TorchPipeline(zero_bubble_v(P, M), [stage], nn.functional.mse_loss)
        elif what == "ranks":
            TorchPipeline(gpipe(3, M), [stage], nn.functional.mse_loss)
        elif what == "forward only":
            TorchPipeline(gpipe(P, M).forward_part(), [stage], nn.functional.mse_loss)
        elif what == "idle rank":
            idle = Schedule("one", 2, 2, 1, ("0F0 1F0 1B0 0B0", ""), (0, 0))
            TorchPipeline(idle, [stage] * 2, nn.functional.mse_loss)
        elif what == "number":
            TorchPipeline(gpipe(P, M), [stage], nn.functional.mse_loss).step(torch.tensor(1.0), torch.tensor(1.0))
        elif what == "count":
            TorchPipeline("1F1B", [stage], nn.functional.mse_loss)
        else:
            TorchPipeline(gpipe(P, M), [stage], nn.functional.mse_loss).step(None, None)
    except BridgeError as error:
        return str(error)
    return "accepted"


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("ragged", "8 samples make no 3 micro-batches of one size"),
        ("losses", "in the order [1, 0]"),
        ("modules", "got 1 modules"),
        ("ranks", "is for 3 ranks, but the group has 2"),
        ("count", "needs n_microbatches="),
        ("nothing", "step takes tensors"),
        ("number", "step takes tensors"),
        ("forward only", "GPipe is forward only, and torch's schedules train"),
        ("idle rank", "rank 1 has no stage in one"),
    ],
)
def test_what_torch_would_run_wrongly_is_refused_on_every_rank(what: str, says: str) -> None:
    for text in launch(refused, what, n_ranks=P, show=False).results:
        assert says in text


def test_a_torch_without_the_private_names_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.pipelining import schedules

    names.torch_names.cache_clear()
    monkeypatch.delattr(schedules, "_PipelineScheduleRuntime")
    try:
        with pytest.raises(PpkitError, match=r"torch \S+ lacks .*_PipelineScheduleRuntime"):
            to_torch(gpipe(2, 2))
    finally:
        names.torch_names.cache_clear()
