"""What a check found: the points as a float, and a card that says why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ppkit.checks.mistakes import LEVELS, Mistake
from ppkit.errors import CheckFailed

if TYPE_CHECKING:
    from ppkit.timeline import Timeline

__all__ = ["Report"]

# After Okabe and Ito, as the timelines; every state is said in words too.
_COLOURS = {"passed": "#009E73", "not done yet": "#7A7A7A", "not right yet": "#D55E00"}
_COLUMNS = re.compile(r"\S {2,}\S")  # in a grid or a table, which no line break may spoil
_LAST_PRINTS = 20  # lines of the ranks' output that a report quotes


class Report(float):
    """The points earned in one task, and what the check saw.

    It is a float, and its plain text is that float's: as the last line of a cell, nbgrader reads it as the points
    of the cell. Jupyter shows a card; ``print(report)`` shows the same as text.

    Args:
        points: earned.
        task: what the task is called.
        out_of: points of the task.
        done: False where there is nothing to judge yet.
        facts: what was seen, a sentence each; lines after the first are shown as they are.
        mistake: the mistake that was recognised, with its hints.
        output: what each rank printed.
        timeline: what the ranks did in the run that decided.
    """

    def __new__(cls, points: float = 0.0, **_: Any) -> Report:
        """Make the float."""
        return super().__new__(cls, points)

    def __init__(
        self,
        points: float = 0.0,
        *,
        task: str = "",
        out_of: float = 0.0,
        done: bool = True,
        facts: Sequence[str] = (),
        mistake: Mistake | None = None,
        output: Sequence[str] = (),
        timeline: Timeline | None = None,
    ) -> None:
        self.task = task
        self.out_of = out_of
        self.done = done
        self.facts = tuple(facts)
        self.output = tuple(output)
        self.timeline = timeline
        self._mistake = mistake
        self._hints_shown = 0

    @property
    def passed(self) -> bool:
        """Whether it earned every point."""
        return self.done and float(self) == self.out_of

    @property
    def state(self) -> str:
        """In words: passed, not done yet, or not right yet."""
        return "passed" if self.passed else "not right yet" if self.done else "not done yet"

    @property
    def mistake(self) -> str | None:
        """The recognised mistake's number in the course's catalogue, such as ``"N01"``; None for any other."""
        return self._mistake.code or None if self._mistake else None

    @property
    def hints(self) -> tuple[str, ...]:
        """The hints, from the symptom to the place; empty where there is nothing to mend."""
        return self._mistake.hints if self._mistake else ()

    def hint(self) -> None:
        """Print the next hint; after the last, that one again."""
        if not self.hints:
            print("There is no hint: " + ("this task is passed." if self.passed else "first fill in the cell above."))
            return
        level = min(self._hints_shown, len(self.hints) - 1)
        self._hints_shown += 1
        print(f"Hint {level + 1} of {len(self.hints)}, {LEVELS[level]}: {self.hints[level]}")

    def require(self) -> Report:
        """Return the report itself.

        Raises:
            CheckFailed: the task is not passed.
        """
        if not self.passed:
            raise CheckFailed(str(self), mistake=self.mistake or "")
        return self

    def __str__(self) -> str:
        lines = [self._headline(), *(f"- {fact}" for fact in self.facts)]
        if self.hints:
            lines.append(f"{len(self.hints)} hints, one at a time: .hint() on this report; `_.hint()` below its cell.")
        if prints := self._prints():
            lines += ["Your ranks printed:", *prints]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return float.__repr__(self)  # what nbgrader reads

    def _repr_html_(self) -> str:
        """The card. It reads well without its style, which some viewers take away."""
        prints = "\n".join(self._prints())
        return "".join(
            [
                f'<div style="border-left: 5px solid {_COLOURS[self.state]}; padding: 2px 0 2px 14px; margin: 4px 0">',
                f"<div><b>{escape(self._headline())}</b></div>",
                "<ul>" + "".join(f"<li>{_html(fact)}</li>" for fact in self.facts) + "</ul>" if self.facts else "",
                _folded(self.hints, 0),
                _details("What your ranks printed", _verbatim(prints)) if prints else "",
                "</div>",
            ]
        )

    def _headline(self) -> str:
        return f"{self.task}: {self.state}. {float(self):g} of {self.out_of:g} points."

    def _prints(self) -> list[str]:
        lines = [f"rank {rank} | {line}" for rank, text in enumerate(self.output) for line in text.splitlines()]
        left_out = [f"… {len(lines) - _LAST_PRINTS} lines before these"] if len(lines) > _LAST_PRINTS else []
        return left_out + lines[-_LAST_PRINTS:]


def _folded(hints: Sequence[str], level: int) -> str:
    """Each hint inside the one before it, so that they are opened one at a time."""
    if level == len(hints):
        return ""
    body = f"<p>{_html(hints[level])}</p>{_folded(hints, level + 1)}"
    return _details(f"Hint {level + 1} of {len(hints)}: {LEVELS[level]}", body)


def _details(summary: str, body: str) -> str:
    return f'<details style="margin: 4px 0 4px 4px"><summary>{escape(summary)}</summary>{body}</details>'


def _html(text: str) -> str:
    """Text with `code` in it; all but the first line keep their spaces."""
    first, _, rest = text.partition("\n")
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(first))
    return marked + (_verbatim(rest, wraps=not _COLUMNS.search(rest)) if rest else "")


def _verbatim(text: str, *, wraps: bool = False) -> str:
    """Text that keeps its spaces; where it does not wrap, columns stay below each other, however narrow the page is."""
    style = "white-space: pre-wrap" if wraps else "white-space: pre; overflow-x: auto"
    return f'<pre style="{style}">{escape(text)}</pre>'
