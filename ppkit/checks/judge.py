"""Turns a function that judges an answer into a check that always ends with a `Report`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

import torch

from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import NOT_A_FUNCTION, SIGNATURE
from ppkit.checks.report import Report

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = ["Passed", "Unfinished", "Verdict", "Wrong", "graded", "is_blank", "require_function"]

P = ParamSpec("P")


class Verdict(Exception):
    """How a task was judged; raised as soon as that is clear.

    Args:
        facts: what was seen, a sentence each, with ranks and numbers.
        mistake: the mistake that explains it.
        points: earned all the same.
        timeline: what the ranks did.
        output: what they printed.
    """

    done = True

    def __init__(
        self,
        *facts: str,
        mistake: Mistake | None = None,
        points: float = 0.0,
        timeline: Timeline | None = None,
        output: Sequence[str] = (),
    ) -> None:
        super().__init__(*facts)
        self.facts = facts
        self.mistake = mistake
        self.points = points
        self.timeline = timeline
        self.output = output

    def report(self, task: str, out_of: float) -> Report:
        """The report of the task."""
        return Report(
            self.points,
            task=task,
            out_of=out_of,
            done=self.done,
            facts=self.facts,
            mistake=self.mistake,
            output=self.output,
            timeline=self.timeline,
        )

    def text(self, subject: str) -> str:
        """What there is to say where no points are at stake, such as in place of a picture."""
        state = "does not work yet" if self.done else "not done yet"
        return "\n".join([f"{subject}: {state}.", *self.facts])


class Wrong(Verdict):
    """The answer is wrong."""


class Unfinished(Verdict):
    """There is no answer yet, or only a part of one."""

    done = False


class Passed(Verdict):
    """The answer is right: returned, not raised."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """What one process computes for comparison is tiny: several threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def graded(task: str, points: float) -> Callable[[Callable[P, Passed]], Callable[P, Report]]:
    """Make a check of a function that returns `Passed`, or raises `Wrong` or `Unfinished`.

    Args:
        task: what the report calls the task.
        points: for a right answer.

    Returns:
        a decorator; the check that it makes holds both, as attributes.
    """

    def decorate(judge: Callable[P, Passed]) -> Callable[P, Report]:
        @functools.wraps(judge)
        def check(*args: P.args, **kwargs: P.kwargs) -> Report:
            try:
                with _one_thread():
                    verdict: Verdict = judge(*args, **kwargs)
                verdict.points = points
            except Verdict as raised:
                verdict = raised
            except Exception as error:
                # A learner's values can be anything; what no check foresaw must not become an error trace.
                kind = type(error).__name__
                verdict = Wrong(f"This check could not judge your answer; please report that. {kind}: {error}")
            return verdict.report(task, points)

        vars(check).update(task=task, points=points)
        return check

    return decorate


def is_blank(value: Any) -> bool:
    """Whether a value is what stands in an exercise before the learner's: None or an ellipsis."""
    return value is None or value is Ellipsis


def require_function(value: Any, name: str, parameters: Sequence[str]) -> None:
    """Refuse what cannot be called with `parameters`.

    Raises:
        Unfinished: there is nothing yet.
        Wrong: it is no function, or it takes other arguments.
    """
    if is_blank(value):
        raise Unfinished(f"`{name}` is {value!r}.")
    if not callable(value):
        raise Wrong(f"`{name}` is of type {type(value).__name__}, not a function.", mistake=NOT_A_FUNCTION)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*parameters)
    except TypeError:
        raise Wrong(
            f"It is called as `{name}({', '.join(parameters)})`, but yours takes `{signature}`.", mistake=SIGNATURE
        ) from None
