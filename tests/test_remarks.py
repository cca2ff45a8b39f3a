"""What goes without an error, but may not next time, is remarked on with the learner's lines; correct code is not."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from ppkit.errors import RankError
from ppkit.launch import launch

pytestmark = pytest.mark.ranks


def _first() -> bool:
    return dist.get_rank() == 0


def _send(*values: float) -> None:
    for value in values:
        dist.send(torch.full((3,), value), 0)


def _remarked(fn: Callable[[], object]) -> list[str]:
    return list(launch(fn, show=False).warnings)


# An irecv's buffer, used before the wait

READS: dict[str, Callable[[torch.Tensor], object]] = {
    "a sum": lambda box: box + 1,
    "another's right side": lambda box: torch.ones(3).mul_(box),
    "a function": lambda box: torch.stack([box]),
    "a module": lambda box: nn.Linear(3, 3)(box),
    "a gradient": lambda box: nn.Linear(3, 3)(torch.ones(3)).backward(box),
    "print": lambda box: print(box),
    "a number": lambda box: box[1].item(),
    "a condition": lambda box: bool(box.view(3)[0] > 0),
    "a view": lambda box: box.reshape(3, 1).t() * 2,
    "a comparison": lambda box: torch.equal(box, torch.ones(3)),
    "a copy": lambda box: box.clone(),
    "an array": lambda box: box.numpy(),
    "a function of numpy's": lambda box: np.asarray(box).sum(),
    "a message": lambda box: dist.isend(box, 1),
    "a write": lambda box: box.zero_(),
    "an assignment": lambda box: box.__setitem__(0, 1.0),
}


@pytest.mark.parametrize("how", READS)
def test_a_buffer_used_before_the_wait_is_remarked_on(how: str) -> None:
    use = READS[how]

    def work() -> None:
        if _first():
            box = torch.zeros(3)
            request = dist.irecv(box, 1)
            later = use(box)  # too early
            request.wait()
            del later
            box + 1
        else:
            _send(1.0)

    found = [text for text in _remarked(work) if "of an irecv" in text]
    assert found
    assert found[0].startswith("rank 0: the buffer of an irecv is used at ")
    assert "request = dist.irecv(box, 1)" in found[0]
    assert "box + 1" not in "".join(found) or how == "a sum"


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a row": lambda box: box[1],
    "a column": lambda box: box[:, 2],
    "the same": lambda box: box.view(-1),
    "the same memory": lambda box: torch.from_numpy(box.numpy()),
    "an alias": lambda box: box.detach(),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_read_by_a_view_from_before_the_irecv_is_remarked_on(kind: str) -> None:
    view_of = VIEWS[kind]

    def work() -> tuple[type, ...]:
        if not _first():
            dist.send(torch.ones(4, 3), 0)
            return ()
        box = torch.zeros(4, 3)
        kept = {"here": [view_of(box)]}
        request = dist.irecv(box, 1)
        kept["here"][0].sum()  # too early
        request.wait()
        kept["here"][0].max()
        return type(box), type(kept["here"][0])

    run = launch(work, show=False)
    (text,) = run.warnings
    assert text.startswith("rank 0: the buffer of an irecv is used at ")
    assert "sum()" in text
    assert run.results[0] == (torch.Tensor, torch.Tensor)


def test_other_parts_of_the_same_memory_may_be_used() -> None:
    def work() -> float:
        if not _first():
            for _ in range(2):
                dist.send(torch.ones(3), 0)
            return 0.0
        box = torch.zeros(4, 3)
        rows, column, flat, last = list(box), box[:, 1], box.view(-1), box[3]
        total = 0.0
        for i in range(2):
            request = dist.irecv(box[i], 1)
            # Beside the buffer; and what reaches beyond it, and is changed or read where that is not.
            last += 1
            flat[6:9].add_(1)
            box[2] += column[2:].sum()
            total += rows[2].sum().item() + box[[2, 3]].sum().item() + rows[1 - i].sum().item() * i
            request.wait()
        return total + box.sum().item()

    run = launch(work, show=False)
    assert run.warnings == ()
    assert run.results[0] > 0


def test_views_of_other_buffers_and_tensors_without_memory_are_no_trouble() -> None:
    def work() -> None:
        if not _first():
            _send(1.0, 2.0)
            return
        torch.empty(0), torch.empty(3, device="meta")
        sparse, empty = torch.eye(3).to_sparse(), torch.empty(0)
        first, second = torch.zeros(3), torch.zeros(3)
        views = first[:], second[:]

        def receive(inner: torch.Tensor) -> torch.Tensor:
            requests = [dist.irecv(box, 1) for box in (first, second)]  # while `torch.func` has wrapped `inner`
            for request in requests:
                request.wait()
            return inner.sum()

        torch.func.grad(receive)(torch.ones(2))
        views[0].add_(views[1])
        del sparse, empty

    assert launch(work, show=False).warnings == ()


def test_what_looks_at_no_value_is_no_use() -> None:
    def work() -> tuple[object, ...]:
        box = torch.zeros(3)
        if not _first():
            _send(1.0)
            return ()
        request = dist.irecv(box, 1)
        view, like, rows = box[0], torch.empty_like(box), list(box.split(1))
        facts = (box.shape, box.dtype, len(box), box.is_contiguous(), box.requires_grad_(False) is box, like.shape)
        request.wait()
        total = box.sum() + view + rows[2]
        return *facts[:3], type(box), type(view), total.item()

    run = launch(work, show=False)
    assert run.warnings == ()
    assert run.results[0] == (torch.Size([3]), torch.float32, 3, torch.Tensor, torch.Tensor, 5.0)


# A tensor that is being sent, changed before the wait

CHANGES: dict[str, Callable[[torch.Tensor], object]] = {
    "in place": lambda x: x.add_(1),
    "an assignment": lambda x: x.__setitem__(0, 9.0),
    "out": lambda x: torch.add(torch.ones(3), 1, out=x),
    "a view": lambda x: x[1:].zero_(),
    "a receive": lambda x: dist.irecv(x, 1),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_tensor_changed_while_it_is_sent_is_remarked_on(how: str) -> None:
    change = CHANGES[how]

    def work() -> None:
        if _first():
            x = torch.ones(3)
            request = dist.isend(x, 1)
            change(x)  # too early
            request.wait()
            x += 1
        else:
            dist.recv(torch.empty(3), 0)

    found = [text for text in _remarked(work) if "a tensor is changed at " in text]
    assert len(found) == 1
    assert "request = dist.isend(x, 1)" in found[0]


@pytest.mark.parametrize("part", [False, True], ids=["the whole of it", "a part of it"])
def test_a_change_that_nobody_saw_is_noticed_at_the_wait(part: bool) -> None:
    def work() -> None:
        if _first():
            whole = torch.ones(6)
            x = whole[:3] if part else whole
            alias = whole.view(2, 3)
            request = dist.isend(x, 1)
            alias.mul_(2)
            request.wait()
        else:
            dist.recv(torch.empty(3 if part else 6), 0)

    (text,) = _remarked(work)
    assert "a tensor was changed between the isend at" in text
    assert "request.wait()" in text


def test_correct_code_is_not_remarked_on() -> None:
    def work() -> None:
        rank, n = dist.get_rank(), dist.get_world_size()
        left, right = (rank - 1) % n, (rank + 1) % n
        x = torch.arange(12.0)
        parts = list(x.tensor_split(n))
        for step in range(n - 1):  # a ring all-reduce: views of one tensor, read while others are sent
            request = dist.isend(parts[(rank - step) % n], right)
            box = torch.empty_like(parts[0])
            dist.recv(box, left)
            parts[(rank - step - 1) % n] += box
            request.wait()
        stage, optimizer = nn.Linear(4, 4), None
        optimizer = torch.optim.SGD(stage.parameters(), 0.1)
        for _ in range(2):
            y = stage(torch.ones(2, 4))
            requests = [dist.isend(y.detach(), right), dist.isend(y, right)]
            first, second = torch.empty(2, 4), torch.empty(2, 4)
            for box in (first, second):
                requests.append(dist.irecv(box, left))
            (y * 2).sum().backward()  # reads what is being sent
            for request in requests:
                request.wait()
            second.mul_(first)
            dist.all_reduce(stage.weight.grad, async_op=True).wait()
            dist.all_reduce(stage.bias.grad, async_op=True).get_future().wait()
            optimizer.step()
            optimizer.zero_grad()
        nan = torch.full((4,), float("nan"))
        ops = [dist.P2POp(dist.isend, nan[:2], right), dist.P2POp(dist.irecv, nan[2:], left)]
        for request in dist.batch_isend_irecv(ops):
            request.wait()

    assert launch(work, n_ranks=3, show=False).warnings == ()


# What nobody waits for, and how it is shown


def test_what_nobody_waited_for_is_remarked_on_with_its_line() -> None:
    def work() -> None:
        if _first():
            kept = dist.isend(torch.ones(3), 1)  # forgotten
            dist.barrier()
        else:
            box = torch.empty(3)
            kept = dist.irecv(box, 0)
            dist.barrier()
        sums = dist.all_reduce(torch.ones(1), async_op=True)
        time.sleep(0.2)
        del kept, sums

    texts = _remarked(work)
    assert [text.split(" returned: ")[0].split(", in work")[0].split(" at ")[0] for text in texts] == [
        "rank 0: nobody called wait() on what the isend",
        "rank 0: nobody called wait() on what the collective",
        "rank 1: nobody called wait() on what the irecv",
    ]
    assert texts[1].endswith("So on ranks 0, 1.")
    assert "(kept = dist.isend(torch.ones(3), 1)  # forgotten)" in texts[0]


def test_warnings_stand_below_what_their_rank_printed_once_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        if _first():
            for _ in range(3):
                box = torch.zeros(3)
                request = dist.irecv(box, 1)
                box.sum()
                request.wait()
            print("done")
        else:
            _send(1.0, 2.0, 3.0)
            print("sent")

    run = launch(work)
    first, warning, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("rank 0 | done", "rank 1 | sent")
    assert warning == "rank 0 | " + run.warnings[0].replace("rank 0: ", "warning: ")
    assert run.output == ("done\n", "sent\n")
    assert len(run.warnings) == 1


def test_a_run_that_fails_keeps_its_warnings() -> None:
    def work() -> None:
        if _first():
            box = torch.zeros(3)
            dist.irecv(box, 1).wait() if box.sum() else dist.recv(box, 1)
            request = dist.irecv(box, 1)
            box.sum()
            request.wait()
            raise ValueError("no")
        _send(1.0, 2.0)

    with pytest.raises(RankError) as caught:
        launch(work, show=False)
    assert len(caught.value.warnings) == 1


def test_a_lent_buffer_that_is_returned_is_a_plain_tensor() -> None:
    def work() -> torch.Tensor:
        box = torch.zeros(3)
        if _first():
            work.request = dist.irecv(box, 1)  # type: ignore[attr-defined]
        else:
            dist.isend(torch.ones(3), 0).wait()
        return box

    assert type(launch(work, show=False).results[0]) is torch.Tensor
