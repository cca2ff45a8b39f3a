"""What a plain PyTorch function did is what its timeline says: F, B, messages, steps, activations held."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ppkit.errors import RankError
from ppkit.launch import launch
from ppkit.scatter_gather import DataParallel, parallel_apply
from ppkit.timeline import Event, Timeline

pytestmark = pytest.mark.ranks

BATCH = 4
WIDTH = 8
BYTES = BATCH * WIDTH * 4


def _stage() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


def _observe(fn: Callable[..., Any], *args: Any, n_ranks: int = 1) -> Timeline:
    return launch(fn, *args, n_ranks=n_ranks, show=False).timeline


def _labels(events: tuple[Event, ...] | Timeline, lane: str = "compute") -> str:
    return " ".join(
        event.kind + ("" if event.microbatch is None else str(event.microbatch))
        for event in events
        if event.lane == lane
    )


def _run_schedule(rows: list[str]) -> None:
    """Run a pipeline whose rank r does `rows[r]`, in plain PyTorch."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    stage = _stage()
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    held = {}
    sends = []
    for action in rows[rank].split():
        kind, i = action[0], int(action[1:])
        if kind == "F":
            x = torch.ones(BATCH, WIDTH)
            if rank > 0:
                dist.recv(x, rank - 1)
                x.requires_grad_()
            y = stage(x)
            held[i] = x, y
            if rank < last:
                sends.append(dist.isend(y.detach(), rank + 1))
        else:
            x, y = held.pop(i)
            if rank < last:
                gradient = torch.empty(BATCH, WIDTH)
                dist.recv(gradient, rank + 1)
                y.backward(gradient)
            else:
                nn.functional.mse_loss(y, torch.zeros_like(y)).backward()
            if rank > 0:
                sends.append(dist.isend(x.grad, rank - 1))
    for work in sends:
        work.wait()
    optimizer.step()


GPIPE = ["F0 F1 F2 F3 B0 B1 B2 B3", "F0 F1 F2 F3 B0 B1 B2 B3", "F0 F1 F2 F3 B0 B1 B2 B3"]
GPIPE_LIFO = ["F0 F1 F2 F3 B3 B2 B1 B0"] * 3
ONE_F_ONE_B = ["F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]
NAIVE = ["F0 B0 F1 B1 F2 B2 F3 B3"] * 3


@pytest.mark.parametrize(
    ("rows", "peaks"),
    [(NAIVE, (1, 1, 1)), (GPIPE, (4, 4, 4)), (GPIPE_LIFO, (4, 4, 4)), (ONE_F_ONE_B, (3, 2, 1))],
    ids=["naive", "GPipe", "GPipe, last in first out", "1F1B"],
)
def test_a_pipelines_order_peaks_and_bytes_are_what_was_run(rows: list[str], peaks: tuple[int, ...]) -> None:
    timeline = _observe(_run_schedule, rows, n_ranks=3)
    for rank, row in enumerate(rows):
        assert _labels(timeline.of_rank(rank)) == row + " OPTIM"
        assert {event.stage for event in timeline.of_rank(rank) if event.kind in "FB"} == {rank}
    assert timeline.peak_in_flight == peaks
    assert timeline.bytes_sent == (4 * BYTES, 8 * BYTES, 4 * BYTES)


def test_every_message_is_paired_with_its_receipt_and_none_arrives_before_it_was_sent() -> None:
    timeline = _observe(_run_schedule, GPIPE, n_ranks=3)
    messages = timeline.messages
    assert len(messages) == 16
    for sent, received in messages:
        assert (sent.peer, received.peer) == (received.rank, sent.rank)
        assert sent.start < received.end
        assert sent.nbytes == received.nbytes == BYTES
    assert sorted((s.rank, r.rank) for s, r in messages) == sorted([(0, 1), (1, 0), (1, 2), (2, 1)] * 4)


def test_messages_pair_in_order_for_each_tag() -> None:
    def exchange() -> list[float]:
        if dist.get_rank() == 0:
            works = [dist.isend(torch.full((1,), v), 1, tag=tag) for v, tag in ((1.0, 7), (2.0, 5), (3.0, 7))]
            for work in works:
                work.wait()
            return []
        received = []
        for tag in (7, 7, 5):
            x = torch.empty(1)
            dist.recv(x, 0, tag=tag)
            received.append(x.item())
        return received

    run = launch(exchange)
    assert run.results[1] == [1.0, 3.0, 2.0]
    sends = [event for event in run.timeline.of_rank(0) if event.kind == "SEND"]
    pairs = {sent.message: received for sent, received in run.timeline.messages}
    receipts = [event for event in run.timeline.of_rank(1) if event.kind == "RECV"]
    assert [pairs[event.message] for event in sends] == [receipts[0], receipts[2], receipts[1]]


def test_receiving_from_anyone_names_the_sender() -> None:
    def gather() -> None:
        if dist.get_rank() == 0:
            for _ in range(2):
                dist.recv(torch.empty(1))
        else:
            dist.send(torch.ones(1), 0)

    timeline = _observe(gather, n_ranks=3)
    assert sorted(event.peer for event in timeline.of_rank(0)) == [1, 2]  # type: ignore[type-var]
    assert len(timeline.messages) == 2


def test_a_send_is_one_event_although_torch_makes_it_of_two_calls() -> None:
    def ping() -> None:
        (dist.send if dist.get_rank() == 0 else dist.recv)(torch.ones(3), 1 - dist.get_rank())

    timeline = _observe(ping, n_ranks=2)
    assert [(event.rank, event.kind, event.name) for event in sorted(timeline, key=lambda e: e.rank)] == [
        (0, "SEND", "send"),
        (1, "RECV", "recv"),
    ]


def test_batched_messages_are_seen_too() -> None:
    def swap() -> float:
        peer = 1 - dist.get_rank()
        mine, theirs = torch.full((2,), float(dist.get_rank())), torch.empty(2)
        works = dist.batch_isend_irecv([dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, theirs, peer)])
        for work in works:
            work.wait()
        return theirs[0].item()

    run = launch(swap)
    assert run.results == (1.0, 0.0)
    assert len(run.timeline.messages) == 2


COLLECTIVES: dict[str, tuple[Callable[[torch.Tensor], Any], float]] = {
    # name: (call, bytes that a rank sends on a ring as a multiple of the tensor's, for three ranks)
    "all_reduce": (dist.all_reduce, 4 / 3),
    "broadcast": (lambda x: dist.broadcast(x, 0), 2 / 3),
    "reduce": (lambda x: dist.reduce(x, 0), 2 / 3),
    "all_gather": (lambda x: dist.all_gather([torch.empty_like(x) for _ in range(3)], x), 2),
    "all_gather_into_tensor": (lambda x: dist.all_gather_into_tensor(x.new_empty(3 * len(x)), x), 2),
    "reduce_scatter_tensor": (lambda x: dist.reduce_scatter_tensor(x, x.repeat(3)), 2),
    "all_to_all_single": (lambda x: dist.all_to_all_single(torch.empty_like(x), x), 2 / 3),
    "barrier": (lambda x: dist.barrier(), 0),
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_collective_is_one_event_with_the_bytes_of_a_ring(name: str) -> None:
    call, factor = COLLECTIVES[name]
    timeline = _observe(lambda: call(torch.ones(30)), n_ranks=3)
    for rank in range(3):
        (event,) = timeline.of_rank(rank)
        assert (event.kind, event.name, event.nbytes) == ("COLLECTIVE", name, round(120 * factor))


def test_what_is_never_waited_for_is_marked() -> None:
    def forget() -> None:
        if dist.get_rank() == 0:
            works = [dist.isend(torch.ones(1), 1) for _ in range(2)]
            works[1].wait()
            dist.barrier()
        else:
            works = [dist.irecv(torch.empty(1), 0) for _ in range(2)]
            works[0].wait()
            dist.barrier()

    timeline = _observe(forget, n_ranks=2)
    sends = [event.note for event in timeline.of_rank(0) if event.kind == "SEND"]
    receipts = sorted(event.note for event in timeline.of_rank(1) if event.kind == "RECV")
    assert sends == ["never waited for", ""]
    assert receipts == ["", "never waited for"]


@pytest.mark.parametrize("peer", [-1, 2])
def test_a_peer_that_does_not_exist_is_an_error_on_the_line(peer: int) -> None:
    for call, verb in ((dist.send, "sends to"), (dist.recv, "receives from"), (dist.isend, "sends to")):
        with pytest.raises(RankError, match=rf"rank 0 {verb} rank {peer}, but there is no such rank: .* 0 to 1"):
            launch(call, torch.ones(1), peer)


def test_an_asynchronous_collective_and_the_wait_for_it_are_two_events() -> None:
    def reduce() -> float:
        x = torch.ones(30)
        work = dist.all_reduce(x, async_op=True)
        work.wait()
        return x[0].item()

    run = launch(reduce)
    assert run.results == (2.0, 2.0)
    assert [(e.kind, e.name) for e in run.timeline.of_rank(0)] == [
        ("COLLECTIVE", "all_reduce"),
        ("WAIT", "wait for all_reduce"),
    ]


def test_a_subgroups_peers_are_named_by_their_global_ranks() -> None:
    def work() -> None:
        group = dist.new_group([1, 2])
        if dist.get_rank() == 1:
            dist.send(torch.ones(1), group=group, group_dst=1)
        elif dist.get_rank() == 2:
            dist.recv(torch.empty(1), group=group, group_src=0)
            dist.all_reduce(torch.ones(3), group=group)
        if dist.get_rank() == 1:
            dist.all_reduce(torch.ones(3), group=group)

    timeline = _observe(work, n_ranks=3)
    ((sent, received),) = timeline.messages
    assert (sent.rank, sent.peer, received.rank, received.peer) == (1, 2, 2, 1)
    assert [event.nbytes for event in timeline.of_rank(1) if event.kind == "COLLECTIVE"] == [12]


# Modules, backwards, steps


def test_a_model_is_one_forward_however_many_modules_it_has() -> None:
    def work() -> None:
        model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(20)])
        loss = nn.CrossEntropyLoss()(model(torch.ones(3, 2)), torch.zeros(3, dtype=torch.int64))
        loss.backward()

    assert _labels(_observe(work)) == "F0 B0"


def test_the_second_module_of_a_rank_is_a_stage_of_its_own() -> None:
    def work() -> None:
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        second(first(torch.ones(3, 2))).sum().backward()

    events = _observe(work, n_ranks=1).of_rank(0)
    assert [(event.kind, event.stage, event.microbatch) for event in events] == [("F", 0, 0), ("F", 1, 0), ("B", 1, 0)]
    assert all(event.held_until == events[2].end for event in events[:2])


def test_an_evaluation_without_gradients_holds_nothing() -> None:
    def work() -> None:
        model = nn.Linear(2, 2)
        with torch.no_grad():
            for _ in range(3):
                model(torch.ones(1, 2))

    timeline = _observe(work)
    assert _labels(timeline) == "F0 F1 F2"
    assert timeline.peak_in_flight == (1,)
    assert all(event.held_until == event.end for event in timeline)


def test_micro_batches_count_anew_after_each_step() -> None:
    def work() -> None:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):
            for _ in range(2):
                model(torch.ones(1, 2)).sum().backward()
            optimizer.step()

    timeline = _observe(work)
    assert _labels(timeline) == "F0 B0 F1 B1 OPTIM F0 B0 F1 B1 OPTIM"
    assert timeline.n_steps == 2
    assert _labels(timeline.step(1)) == "F0 B0 F1 B1 OPTIM"


def test_one_backward_for_summed_losses_names_all_its_micro_batches() -> None:
    def work() -> None:
        model = nn.Linear(2, 2)
        (model(torch.ones(1, 2)).sum() + model(torch.ones(1, 2)).sum()).backward()

    timeline = _observe(work)
    assert _labels(timeline) == "F0 F1 B"
    assert timeline.events[-1].name == "backward of micro-batches 0, 1"
    assert timeline.peak_in_flight == (2,)


@pytest.mark.parametrize("kept", [False, True])
def test_a_kept_graph_keeps_its_activations(kept: bool) -> None:
    def work() -> None:
        model = nn.Linear(2, 2)
        outputs = []
        for _ in range(3):
            outputs.append(model(torch.ones(1, 2)))
            outputs[-1].sum().backward(retain_graph=kept)
        time.sleep(0)

    assert _observe(work).peak_in_flight == ((3,) if kept else (1,))


def test_a_graph_that_is_dropped_without_a_backward_holds_no_longer() -> None:
    def work() -> None:
        model = nn.Linear(2, 2)
        for _ in range(3):
            y = model(torch.ones(1, 2))
            del y

    assert _observe(work).peak_in_flight == (1,)


class InThreads(nn.Module):
    """Calls its layer, or a replica of it, in a thread for each half of the batch."""

    def __init__(self, replicas: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.parallel = DataParallel(self.layer, ["cpu", "cpu"]) if replicas else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.parallel is not None:
            return self.parallel(x)  # type: ignore[no-any-return]
        calls = parallel_apply([self.layer, self.layer], [((half,), {}) for half in x.chunk(2)])
        return torch.cat([call.output for call in calls])


@pytest.mark.parametrize("replicas", [False, True])
def test_what_a_module_calls_in_threads_is_a_part_of_its_forward(replicas: bool) -> None:
    def work() -> None:
        model = InThreads(replicas)
        for _ in range(2):
            model(torch.ones(4, 2)).sum().backward()

    assert _labels(_observe(work)) == "F0 B0 F1 B1"


def test_modules_in_threads_of_their_own_are_all_seen() -> None:
    def work() -> None:
        layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
        parallel_apply(layers, [((torch.ones(1, 2),), {})] * 2)

    assert _labels(_observe(work)) == "F0 F0"


def test_gradients_for_inputs_and_for_weights_are_told_apart() -> None:
    def work() -> None:
        model = nn.Linear(2, 2)
        x = torch.ones(1, 2, requires_grad=True)
        y = model(x)
        torch.autograd.grad(y.sum(), x, retain_graph=True)
        torch.autograd.grad(y.sum(), list(model.parameters()))
        model(x).sum().backward(inputs=list(model.parameters()))

    assert _labels(_observe(work)) == "F0 I0 W0 F1 W1"


def test_tensors_that_can_be_read_only_once_reach_autograd_whole() -> None:
    def work() -> None:
        model = nn.Linear(2, 2)
        y = model(torch.ones(1, 2))
        weight, bias = torch.autograd.grad(iter([y.sum()]), model.parameters(), retain_graph=True)
        torch.autograd.backward((y.sum(),))
        pairs = zip((weight, bias), model.parameters(), strict=True)
        assert all(torch.equal(grad, parameter.grad) for grad, parameter in pairs if parameter.grad is not None)

    assert _labels(_observe(work)) == "F0 W0 B0"


def test_recomputation_is_part_of_its_backward() -> None:
    def work() -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        x = torch.ones(1, 2, requires_grad=True)
        torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()

    assert _labels(_observe(work)) == "F0 B0"


def test_a_tuple_of_outputs_is_one_forward() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, memory: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return memory, self.linear(hidden)

    def work() -> None:
        memory, hidden = Two()(torch.ones(1, 2, requires_grad=True), torch.ones(1, 2))
        torch.autograd.backward([memory, hidden], [torch.ones(1, 2), torch.ones(1, 2)])

    assert _labels(_observe(work)) == "F0 B0"


def test_an_exception_in_a_forward_or_backward_leaves_the_recorder_whole() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError

    def work() -> None:
        model = nn.Linear(2, 2)
        for attempt in (lambda: Fails()(torch.ones(1, 2)), lambda: model(torch.ones(1, 2)).backward()):
            with pytest.raises((ValueError, RuntimeError)):
                attempt()
        model(torch.ones(1, 2)).sum().backward()

    assert _labels(_observe(work)).endswith("F1 B1")


def test_without_observation_nothing_is_wrapped_and_nothing_recorded() -> None:
    def work() -> tuple[str, str]:
        stage = _stage()
        stage(torch.ones(BATCH, WIDTH)).sum().backward()
        torch.optim.SGD(stage.parameters(), lr=0.1).step()
        return nn.Module.__call__.__module__, dist.send.__code__.co_filename

    run = launch(work, observe=False)
    assert len(run.timeline) == 0
    assert "ppkit" not in "".join(run.results[0])


def test_the_notebooks_own_torch_is_left_alone() -> None:
    launch(_stage)
    assert "ppkit" not in nn.Module.__call__.__module__ + torch.autograd.backward.__code__.co_filename
