"""Errors carry their values, pickle whole, and show themselves in a notebook cell without ppkit's frames."""

from __future__ import annotations

import multiprocessing
import pickle
from multiprocessing.connection import Connection

import pytest

from ppkit import errors
from ppkit.errors import (
    CheckFailed,
    CostsError,
    DeadlockError,
    LaunchError,
    MismatchError,
    PpkitError,
    RankError,
    ScheduleError,
    TimelineError,
)

PARENTS = {
    PpkitError: Exception,
    ScheduleError: ValueError,
    CostsError: ValueError,
    TimelineError: ValueError,
    LaunchError: ValueError,
    RankError: RuntimeError,
    DeadlockError: RankError,
    MismatchError: RankError,
    CheckFailed: AssertionError,
}


class NeedsMore(ScheduleError):
    """A subclass whose constructor cannot be called with a message alone."""

    def __init__(self, message: str, extra: int, *, colour: str) -> None:
        super().__init__(message, stage=extra)
        self.colour = colour


EXAMPLES = [
    PpkitError("plain", rank=1, stage=2, action="2F0", values={"n": 3}),
    ScheduleError("grid\n 0F0 [0F0]", rank=0, action="0F0"),
    CostsError("forward", values={"forward": (1.0, float("inf"))}),
    TimelineError("bad event"),
    LaunchError("n_ranks", values={"n_ranks": 0}),
    RankError(
        "rank 2 failed",
        rank=2,
        kind="signal",
        traceback_text="Traceback ...",
        original_type="ZeroDivisionError",
        others={0: "Connection closed by peer"},
        stage=1,
        values={"signal": 6},
    ),
    MismatchError("no fit", rank=1, pending=[{"rank": 0, "name": "send"}], collective=((0, 1), 0, 3)),
    DeadlockError("all wait", pending=[{"rank": 0, "call": "recv", "peer": 1}], others={1: "send"}),
    CheckFailed("no gradient", mistake="N01", stage=1),
    NeedsMore("own constructor", 4, colour="blue"),
]


def test_every_error_is_listed_here() -> None:
    assert {cls.__name__ for cls in PARENTS} | {"Interrupted"} == set(errors.__all__)


def test_an_interrupt_is_no_error_that_code_would_catch_by_chance() -> None:
    interrupted = errors.Interrupted("stopped\n  rank 0: is computing")
    assert isinstance(interrupted, KeyboardInterrupt)
    assert not isinstance(interrupted, Exception)
    assert interrupted._render_traceback_() == ["Interrupted: stopped", "  rank 0: is computing"]


@pytest.mark.parametrize("cls", PARENTS)
def test_family(cls: type[PpkitError]) -> None:
    assert issubclass(cls, PpkitError)
    assert issubclass(cls, PARENTS[cls])
    with pytest.raises(PARENTS[cls], match="something happened"):
        raise cls("something happened")


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_everything(error: PpkitError, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert str(again) == str(error) == error.message == again.message
    assert again.args == error.args
    assert vars(again) == vars(error)


def _raise_in_a_rank(pipe: Connection) -> None:
    try:
        raise DeadlockError("all wait", rank=3, pending=[{"rank": 3}], others={0: "recv"})
    except PpkitError as error:
        pipe.send(error)


def test_crosses_processes() -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_raise_in_a_rank, args=(theirs,))
    process.start()
    assert ours.poll(30), "the child sent nothing"
    error = ours.recv()
    process.join(30)
    assert isinstance(error, DeadlockError)
    assert (error.rank, error.pending, error.others) == (3, ({"rank": 3},), {0: "recv"})


def test_defaults() -> None:
    plain = PpkitError("x")
    assert (plain.rank, plain.stage, plain.action, plain.values) == (None, None, None, {})
    failed = RankError("x", rank=0)
    assert (failed.kind, failed.traceback_text, failed.original_type, failed.others) == (
        "exception",
        "",
        "",
        {},
    )
    assert (DeadlockError("x").kind, DeadlockError("x").pending) == ("timeout", ())
    assert CheckFailed("x").mistake == ""


def test_values_are_copied() -> None:
    values: dict[str, object] = {"n": 1}
    error = PpkitError("x", values=values)
    values["n"] = 2
    assert error.values == {"n": 1}


def test_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError):
        RankError("x", stge=1)


def test_notebook_rendering_is_the_message() -> None:
    assert ScheduleError("bad\n  grid")._render_traceback_() == ["ScheduleError: bad", "  grid"]
