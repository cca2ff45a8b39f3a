"""What ppkit raises: errors that say what, where and with which values, and can be pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = [
    "CheckFailed",
    "CostsError",
    "DeadlockError",
    "Interrupted",
    "LaunchError",
    "MismatchError",
    "PpkitError",
    "RankError",
    "ScheduleError",
    "TimelineError",
]


def _rebuild(cls: type[PpkitError], message: str, state: dict[str, Any]) -> PpkitError:
    """Make an error again from its pickle, without calling a subclass's own ``__init__``."""
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class PpkitError(Exception):
    """Whatever ppkit tells its user went wrong; every other error of ppkit is a child of it.

    Args:
        message: what was wrong, where, with which values, and what to do.
        rank: the process concerned, if it is one.
        stage: the slice of the model concerned, if it is one.
        action: text of the schedule's action concerned, such as ``"2F0"``.
        values: the offending values by name.
    """

    message: str
    rank: int | None
    stage: int | None
    action: str | None
    values: dict[str, object]

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        stage: int | None = None,
        action: str | None = None,
        values: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rank = rank
        self.stage = stage
        self.action = action
        self.values = dict(values or {})

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # A rank's error reaches the notebook as a pickle; the default one calls the class with `args` alone
        # and fails on a subclass that needs more.
        return _rebuild, (type(self), self.message, self.__dict__.copy())

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython shows in place of a traceback through ppkit's own frames."""
        return f"{type(self).__name__}: {self.message}".split("\n")


class ScheduleError(PpkitError, ValueError):
    """A schedule, or the counts it is built from, cannot work."""


class CostsError(PpkitError, ValueError):
    """A duration, latency, bandwidth or size cannot be used to simulate."""


class TimelineError(PpkitError, ValueError):
    """A timeline, or the text it is read from, does not make sense."""


class LaunchError(PpkitError, ValueError):
    """``launch`` was called with arguments it cannot start ranks with."""


class RankError(PpkitError, RuntimeError):
    """A rank failed while it ran the learner's function.

    Args:
        message: what happened, where in the learner's code, and what to do.
        rank: the rank that failed first.
        kind: how it ended: ``"exception"``, ``"exit"``, ``"signal"`` or ``"timeout"``.
        traceback_text: the traceback inside that rank, as text.
        original_type: name of the exception's type in that rank, such as ``"ZeroDivisionError"``.
        others: what the other ranks reported, by rank; mostly consequences of the first failure.
        details: ``stage``, ``action`` and ``values``, as for `PpkitError`.

    Its ``timeline`` holds what the ranks did up to the failure, its ``output`` what each of them printed, and its
    ``warnings`` what ``Run.warnings`` would.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        kind: str = "exception",
        traceback_text: str = "",
        original_type: str = "",
        others: Mapping[int, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message, rank=rank, **details)
        self.kind = kind
        self.traceback_text = traceback_text
        self.original_type = original_type
        self.others = dict(others or {})
        self.timeline: Timeline | None = None
        self.output: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()

    def _render_traceback_(self) -> list[str]:
        """The message; in a notebook what the ranks did up to the failure is drawn below it."""
        if self.timeline is not None:
            from ppkit.launch.picture import show_below

            show_below(self.timeline)
        return super()._render_traceback_()


class DeadlockError(RankError):
    """Every rank that still runs waits for another one.

    Args:
        message: who waits for whom, and where in the learner's code.
        pending: one mapping per waiting rank: its call, its peer, its line, as the watcher recorded them.
        details: whatever `RankError` takes.
    """

    def __init__(self, message: str, *, pending: Iterable[Mapping[str, Any]] = (), **details: Any) -> None:
        super().__init__(message, **{"kind": "timeout", **details})
        self.pending = tuple(dict(call) for call in pending)


class MismatchError(RankError):
    """The two ends of a message, or the ranks of a collective, don't agree on shape, dtype, root or call.

    Args:
        message: the calls that belong together, and how they differ.
        pending: one mapping per call, as `DeadlockError` has them.
        collective: ranks, group and number by which the collective is found on the run's board, if it is one.
        details: whatever `RankError` takes.
    """

    def __init__(
        self,
        message: str,
        *,
        pending: Iterable[Mapping[str, Any]] = (),
        collective: tuple[Any, ...] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message, **details)
        self.pending = tuple(dict(call) for call in pending)
        self.collective = collective


class Interrupted(KeyboardInterrupt):
    """A run was interrupted, by Jupyter's stop button or Ctrl-C; says what each rank was doing."""

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython shows in place of a traceback through ppkit's own frames."""
        return f"{type(self).__name__}: {self}".split("\n")


class CheckFailed(PpkitError, AssertionError):
    """A lab's check recognised a mistake.

    Args:
        message: what was seen, and the hint.
        mistake: the mistake's number in the course's catalogue, such as ``"N01"``.
        details: ``rank``, ``stage``, ``action`` and ``values``, as for `PpkitError`.
    """

    def __init__(self, message: str, *, mistake: str = "", **details: Any) -> None:
        super().__init__(message, **details)
        self.mistake = mistake
