"""Memory that a learner's code asks for without end: it costs points, not the session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppkit.checks import lab01, trial
from ppkit.checks.mistakes.general import KILLED, MEMORY
from ppkit.checks.reference.naive import forward_stage
from ppkit.limits import has_memory_limits, memory_limit

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(not has_memory_limits(), reason="this system does not limit the memory of a process"),
]
GREEDY: dict[str, Callable[..., Any]] = {}


def greedy(function: Callable[..., Any]) -> Callable[..., Any]:
    GREEDY[function.__name__] = function
    return function


@greedy
def allocates_ten_gigabytes(stage: Any, batch: Any, shape: Any, rank: int, n_ranks: int) -> Any:
    return torch.zeros(10**10 // 8, dtype=torch.float64)


@greedy
def makes_a_table_of_two_vectors(stage: Any, batch: Any, shape: Any, rank: int, n_ranks: int) -> Any:
    numbers = torch.arange(50_000.0)
    return numbers[:, None] * numbers


@greedy
def asks_python_for_ten_gigabytes(stage: Any, batch: Any, shape: Any, rank: int, n_ranks: int) -> Any:
    return bytearray(10**10)


@greedy
def keeps_tensors_for_ever(stage: Any, batch: Any, shape: Any, rank: int, n_ranks: int) -> Any:
    kept = []
    while True:
        kept.append(torch.empty(1_000_000))  # never touched, so that no memory is really used


@greedy
def makes_a_list_longer_for_ever(stage: Any, batch: Any, shape: Any, rank: int, n_ranks: int) -> Any:
    kept = [0]
    while True:
        kept += kept


LAST_WORDS = {
    "allocates_ten_gigabytes": "asked for 10 GB more of memory",
    "makes_a_table_of_two_vectors": "asked for 10 GB more of memory",
    "asks_python_for_ten_gigabytes": "asked for more memory",
    "keeps_tensors_for_ever": "asked for 4 MB more of memory",
    "makes_a_list_longer_for_ever": "asked for more memory",
}
LINES = {
    "allocates_ten_gigabytes": "return torch.zeros(10**10 // 8, dtype=torch.float64)",
    "makes_a_table_of_two_vectors": "return numbers[:, None] * numbers",
    "asks_python_for_ten_gigabytes": "return bytearray(10**10)",
    "keeps_tensors_for_ever": "kept.append(torch.empty(1_000_000))",
    "makes_a_list_longer_for_ever": "kept += kept",
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_asks_for_too_much_gets_a_report_with_rank_size_and_line(name: str) -> None:
    report = lab01.check_forward_stage(GREEDY[name])
    assert (report, report.done, report.hints) == (0.0, True, MEMORY.hints)
    text = str(report)
    assert f"2 ranks, 7 rows: rank 0 {LAST_WORDS[name]}, which was not to be had; " in text
    assert "in a check it may take 500 MB." in text
    assert LINES[name] in text
    assert "DefaultCPUAllocator" not in text


def one_rank_is_killed(stage: Any, batch: Any, shape: Any, rank: int, n_ranks: int) -> Any:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does to whoever has most of a full memory
    return forward_stage(stage, batch, shape, rank, n_ranks)


def test_rank_killed_by_the_system_is_reported() -> None:
    report = lab01.check_forward_stage(one_rank_is_killed)
    assert (report, report.done, report.hints) == (0.0, True, KILLED.hints)
    assert "2 ranks, 7 rows: rank 1 was ended by SIGKILL. Usually the system was out of memory." in str(report)


def test_limit_ends_with_its_block() -> None:
    with memory_limit(50_000_000):
        torch.empty(1_000_000)
        with pytest.raises(RuntimeError, match="can't allocate"):
            torch.empty(100_000_000)
    assert torch.empty(100_000_000).numel() == 100_000_000


def test_right_answer_needs_a_tenth_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MEMORY_LIMIT", trial.MEMORY_LIMIT // 10)
    report = lab01.check_forward_stage(forward_stage)
    assert report.passed, str(report)
