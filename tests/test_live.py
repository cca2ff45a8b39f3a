"""The live line of a long run: rank, step and rate, wiped at the end, and nothing of it in a stored notebook."""

from __future__ import annotations

import re
import time

import pytest
import torch
import torch.distributed as dist

from ppkit.launch import launch, output
from ppkit.launch.output import LiveLine


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPKIT_LIVE", "1")
    monkeypatch.delenv("PYTEST_VERSION")


class Clock:
    """Stands for time.perf_counter."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(output.time, "perf_counter", clock)
    return clock


@pytest.mark.usefixtures("live")
def test_the_rank_that_is_behind_its_step_and_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [0, 0]
    line = LiveLine([], lambda: steps)

    def shown(seconds: float, new: list[int]) -> str:
        clock.now += seconds
        steps[:] = new
        line.update("2 of 2 ranks not finished")
        return capsys.readouterr().out.rstrip()

    assert shown(0.9, [0, 0]) == ""  # short runs are not worth a line
    assert shown(0.1, [0, 0]) == "\r  1.0 s, 2 of 2 ranks not finished"
    assert shown(0.1, [5, 5]) == ""  # not more often than five times a second
    assert shown(0.9, [8, 8]) == "\r  2.0 s, 2 of 2 ranks not finished; rank 0 at step 8, 4 steps/s"
    assert shown(2.0, [20, 18]).endswith("; rank 1 at step 18 (rank 0: 20), 5 steps/s")
    assert shown(2.0, [20, 20]).endswith("; rank 0 at step 20, 3 steps/s")
    assert shown(4.0, [20, 20]).endswith("; rank 0 at step 20, 0 steps/s")  # what was before the last seconds is past
    line.close()
    assert re.fullmatch("\r +\r", capsys.readouterr().out)


@pytest.mark.usefixtures("clock")
def test_no_line_where_it_is_not_wanted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPKIT_LIVE", "0")
    monkeypatch.delenv("PYTEST_VERSION")
    line = LiveLine([], lambda: [3])
    output.time.perf_counter.now += 5  # type: ignore[attr-defined]
    line.update("1 of 1 ranks not finished")
    line.close()
    assert capsys.readouterr().out == ""


def _train(seconds: float) -> int:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    end, n_steps = time.perf_counter() + seconds, 0
    while True:
        on = torch.tensor(float(time.perf_counter() < end))
        dist.all_reduce(on, op=dist.ReduceOp.MIN)
        if not on:
            return n_steps
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        n_steps += 1
        time.sleep(0.01)


@pytest.mark.ranks
@pytest.mark.usefixtures("live")
def test_the_steps_of_a_run_are_counted_as_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    run = launch(_train, 1.8)
    *lines, last = capsys.readouterr().out.split("\r")
    assert last == ""  # wiped, and nothing was printed
    found = [
        int(match[1]) for line in lines if (match := re.search(r"; rank [01] at step (\d+).*[\d.]+ steps/s", line))
    ]
    assert found == sorted(found)
    assert 0 < found[-1] <= run.results[0]
