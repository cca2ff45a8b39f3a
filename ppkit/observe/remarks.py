"""Notes what a rank does that may go wrong without an error, once per kind and line; the notebook shows it."""

from __future__ import annotations

import json
from contextlib import suppress

from ppkit.launch.board import Board
from ppkit.launch.frames import Frame


class Remarks:
    """One rank's remarks; they lie beside the board, so that they outlive the rank.

    Args:
        rank: this rank.
        board: of the run.
    """

    def __init__(self, rank: int, board: Board) -> None:
        self._rank = rank
        self._board = board
        self._made: set[tuple[str, tuple[Frame, ...]]] = set()
        self._reached: set[Frame] = set()

    def is_first(self, line: Frame) -> bool:
        """Tell whether a line is asked for the first time."""
        first = line not in self._reached
        self._reached.add(line)
        return first

    def add(self, kind: str, *lines: Frame) -> None:
        """Note something about some of the learner's lines.

        Args:
            kind: a key of `ppkit.launch.remarks.TEXTS`.
            lines: in the order of its text.
        """
        if (kind, lines) not in self._made:
            self._made.add((kind, lines))
            with suppress(OSError), self._board.beside(f"remarks.{self._rank}").open("a") as file:
                file.write(json.dumps([kind, lines]) + "\n")
