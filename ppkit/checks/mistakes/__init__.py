"""The catalogue of mistakes: what each looks like, why it happens, and where to look."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEVELS", "Mistake"]

LEVELS = ("what you see", "why", "where to look")


@dataclass(frozen=True)
class Mistake:
    """A mistake that a check can recognise, with its hints; none of them says the answer.

    Args:
        code: its number in the course's catalogue, such as ``"N01"``; empty for one that is not in it.
        see: the symptom, in words that connect it to the task.
        why: the mechanism behind the symptom.
        look: the part of the code to read again, or the question to ask of it.
    """

    code: str
    see: str
    why: str
    look: str

    @property
    def hints(self) -> tuple[str, str, str]:
        """The three levels, in the order of `LEVELS`."""
        return self.see, self.why, self.look
