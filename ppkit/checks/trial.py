"""Runs a learner's function on real ranks, with an end in sight, and explains how it failed."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ppkit.checks.drivers.limited import call_limited
from ppkit.checks.judge import Unfinished, Verdict, Wrong
from ppkit.checks.messages import (
    Expected,
    explain_deadlock,
    explain_mismatch,
    explain_signal,
    never_waited,
    require_messages,
)
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import (
    CANNOT_TRAVEL,
    ENDLESS,
    EXCEPTION,
    EXCEPTION_HERE,
    EXIT,
    FORGOTTEN_RECEIVE,
    KILLED,
    MEMORY,
    MISSING_MESSAGE,
    NO_BUFFER,
    NOT_RECEIVED,
    UNKNOWN_NAME,
    UNPAIRED,
    WRONG_HERE,
    WRONG_VALUES,
)
from ppkit.checks.mistakes.gpipe import G21, G23, G24
from ppkit.checks.mistakes.naive import N02_SENT, N05, N06, N07, N08, N12
from ppkit.checks.mistakes.one_f_one_b import F41_LOST, F41_RECEIVE
from ppkit.emulate import Emulation
from ppkit.errors import DeadlockError, LaunchError, MismatchError, RankError
from ppkit.launch import launch
from ppkit.limits import has_memory_limits
from ppkit.observe.fields import NEVER_FINISHED
from ppkit.timeline import Timeline
from ppkit.units import bytes_text

__all__ = ["MEMORY_LIMIT", "TIME_LIMIT", "Trial", "on_ranks"]

V = TypeVar("V", bound=Verdict)
TIME_LIMIT = 10.0  # seconds; a right answer takes 0.2, and a busy server is slower than that
MEMORY_LIMIT = 500_000_000  # bytes that a rank may take for an answer; a right one takes a few million

_NO_MEMORY = r"can't allocate memory|not enough memory|bad_alloc|raised MemoryError"
_ASKED = re.compile(r"(?:tried to allocate|buy new) (\d+) bytes|Unable to allocate (.+?) for")  # torch; numpy
# What torch says -> the mistake behind it. The first that matches counts.
_RAISED = (
    (r"Expected parameter `tensor` of type torch\.Tensor\s+but got .*NoneType", N02_SENT),
    (r"'NoneType' object has no attribute '(detach|clone|contiguous)'(?s:.*)\.grad\b", N02_SENT),
    (r"raised NameError: name ", UNKNOWN_NAME),
    (r"Invalid (destination|source) rank|no such rank|rank -?\d+ (does not exist|is not one of)", N05),
    (_NO_MEMORY, MEMORY),
    (r"must be Tensor, not int", NOT_RECEIVED),
    (r"contiguous", N08),
    (r"backward through the graph a second time", G24),
    (r"modified by an inplace operation", G23),
    (r"grad can be implicitly created only for scalar outputs", N12),
    (r"(same|different) dtype|expected scalar type|but got (Float|Double)|same type", N07),
    (r"shapes cannot be multiplied|[Mm]ismatch in shape|size mismatch|must match the size", N06),
)


@dataclass(frozen=True)
class Trial:
    """A run that came to its end.

    Attributes:
        results: what the driver returned on each rank.
        timeline: what the ranks did.
        output: what they printed.
        where: on how many ranks it was, in words; begins a report's sentence.
        expected: messages of a right answer.
    """

    results: tuple[Any, ...]
    timeline: Timeline
    output: tuple[str, ...]
    where: str
    expected: Expected

    def wrong(self, fact: str, mistake: Mistake | None = None, *, rank: int | None = None) -> Wrong:
        """The verdict that `fact`, seen on `rank` or on all, makes the answer wrong."""
        if mistake is WRONG_VALUES and self.timeline.n_ranks == 1:
            mistake = WRONG_HERE  # no messages, and no ranks to compare
        return self._with_run(Wrong(self._sentence(fact, rank), mistake=mistake))

    def unfinished(self, fact: str, mistake: Mistake | None = None, *, rank: int | None = None) -> Unfinished:
        """The verdict that something is still missing."""
        return self._with_run(Unfinished(self._sentence(fact, rank), mistake=mistake))

    def _sentence(self, fact: str, rank: int | None) -> str:
        return f"{self.where}{'' if rank is None else f', rank {rank}'}: {fact}"

    def require_messages(self) -> None:
        """Refuse messages other than the expected ones; see `ppkit.checks.messages.require_messages`."""
        try:
            require_messages(self.timeline, self.expected, self.where)
        except Wrong as verdict:
            raise self._with_run(verdict) from None

    def _with_run(self, verdict: V) -> V:
        verdict.timeline, verdict.output = self.timeline, self.output
        return verdict


def on_ranks(
    driver: Callable[..., Any],
    *args: Any,
    n_ranks: int,
    where: str,
    expected: Expected,
    emulate: Emulation | None = None,
) -> Trial:
    """Call `driver(*args)`, which calls the learner's function, on ranks of its own.

    Args:
        driver: a function of an importable module, so that its frames are not taken for the learner's.
        *args: travel to every rank.
        n_ranks: how many.
        where: the same in words, such as ``"2 ranks, 7 rows"``.
        expected: messages of a right answer; a deadlock is explained by them.
        emulate: durations of an emulated device.

    Raises:
        Unfinished: the function still raises NotImplementedError.
        Wrong: a rank raised, exited, crashed, waited for ever, took too long or (on Linux, which can limit it) too much
            memory.
    """
    try:
        # A word on stderr would cost the points of a graded cell, and a line that tells the time its stable output.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            run = launch(
                *(call_limited, MEMORY_LIMIT, driver, *args),
                n_ranks=n_ranks,
                device="cpu",
                timeout=TIME_LIMIT,
                threads=1,
                emulate=emulate,
                show=False,
            )
    except LaunchError as error:
        raise Wrong(error.message, mistake=CANNOT_TRAVEL) from None
    except RankError as error:
        verdict = _explain(error, expected, where)
        _explain_dropped(verdict)
        if n_ranks == 1:
            _without_ranks(verdict)
        raise verdict from None
    trial = Trial(run.results, replace(run.timeline, name=where), run.output, where, expected)
    for event in never_waited(trial.timeline, "RECV"):
        raise trial.wrong(f"its {event.label} was never waited for.", F41_RECEIVE, rank=event.rank)
    return trial


def _explain(error: RankError, expected: Expected, where: str) -> Verdict:
    if error.original_type == "NotImplementedError":
        return Unfinished(f"{where}: {error.message.splitlines()[0]}.")
    if isinstance(error, DeadlockError):
        return explain_deadlock(error, expected, where)
    if isinstance(error, MismatchError):
        return explain_mismatch(error, expected, where)
    if error.kind == "signal" and "SIGKILL" in error.message:
        fact = f"{where}: {_first_part(error)}"
        return Wrong(fact, mistake=KILLED, timeline=error.timeline, output=error.output)
    if error.kind == "signal" and not re.search(_NO_MEMORY, error.message):
        return explain_signal(error, expected, where)
    message = _first_part(error)
    fact, mistake = f"{where}: {message}", EXIT
    if error.kind == "timeout":
        fact = f"{where}: it had not come to its end after {TIME_LIMIT:g} s, and was ended."
        mistake = ENDLESS
    elif error.kind in ("exception", "signal"):
        mistake = next((m for pattern, m in _RAISED if re.search(pattern, message)), EXCEPTION)
        if mistake is G23 and any(event.kind == "OPTIM" for event in error.timeline or ()):
            mistake = G21  # the weights were changed between a forward and its backward
        if mistake is N02_SENT and "recv" in message:
            mistake = NO_BUFFER
        if mistake is N02_SENT and not expected.sends_back:
            mistake = EXCEPTION  # no gradient is sent there
        if mistake is MEMORY:
            fact = f"{where}: {_out_of_memory(error.rank, message)}"
    return Wrong(fact, mistake=mistake, timeline=error.timeline, output=error.output)


# What a receive looks like from outside that nobody has waited for
_STUCK = {mistake.see for mistake in (ENDLESS, UNPAIRED, FORGOTTEN_RECEIVE, MISSING_MESSAGE, F41_LOST)}


def _explain_dropped(verdict: Verdict) -> None:
    """Find a receive behind a run that got stuck for which nobody will wait any more: its rank has gone on."""
    if verdict.timeline is None or verdict.mistake is None or verdict.mistake.see not in _STUCK:
        return
    waiting = {event.rank for event in verdict.timeline if event.note == NEVER_FINISHED}
    steps = {event.rank: event.start for event in verdict.timeline if event.kind == "OPTIM"}  # the last of each rank
    for event in never_waited(verdict.timeline, "RECV"):
        returned = event.rank not in waiting and verdict.mistake is not ENDLESS
        if returned or event.start < steps.get(event.rank, 0.0):
            text = f"Rank {event.rank}'s {event.label} was never waited for."
            facts = [fact for fact in verdict.facts if "never arrived" not in fact]  # a send that it left alone
            verdict.mistake, verdict.facts = F41_RECEIVE, (*facts, text)
            return


def _without_ranks(verdict: Verdict) -> None:
    """Say of one process what is said of one of several: nobody has asked for ranks there, or sent a message."""
    verdict.facts = tuple(fact.replace("rank 0 raised ", "") for fact in verdict.facts)
    if verdict.mistake in (EXCEPTION, N02_SENT, N05, N06, N07, N08):
        verdict.mistake = EXCEPTION_HERE


def _first_part(error: RankError) -> str:
    """What the rank that failed first has to say."""
    return error.message.split("\n\nAfterwards")[0]


def _out_of_memory(rank: int | None, message: str) -> str:
    """What a rank asked for, where, and what there was."""
    said, _, lines = message.partition("\n")
    asked = _ASKED.search(said)
    size = "more memory" if asked is None else asked[2] or f"{bytes_text(float(asked[1]))} more of memory"
    limit = f"; in a check it may take {bytes_text(MEMORY_LIMIT)}" if has_memory_limits() else ""
    return f"rank {rank} asked for {size}, which was not to be had{limit}.\n{lines}"
