"""The ranks of a run on engines, as the watcher sees a team: control channels, ends of processes, files."""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppkit.launch.board import Board
from ppkit.launch.clocks import Reading, on_first_clock
from ppkit.launch.seat import News
from ppkit.launch.starter import Exit

_PAUSE = 1.0  # seconds between two questions about a rank that has said all that is expected of it
_AGAIN = ("KeyboardInterrupt", "TaskAborted")  # the engine was interrupted, and the rank does not care


class Remote:
    """A rank's control channel: what is sent goes with the next question, what is received came with an answer.

    Args:
        ask: asks the rank's engine what is new; returns the future of a `News`.
        answer: returns what such a future holds.
        ahead: seconds by which the clock of the engine's machine is ahead of this one's, and that of rank 0's engine.
    """

    def __init__(
        self, ask: Callable[..., Any], answer: Callable[[Any], News], ahead: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self._ask = ask
        self._answer = answer
        self._clock, self._first_ahead = Reading(0.0, ahead[0]), ahead[1]
        self._orders: list[Any] = []
        self._sent: list[Any] = []
        self._inbox: deque[Any] = deque()
        self._n_heard = self._n_output = 0
        self._asked = 0.0
        self._quiet = False  # whether it has said all that is expected of it
        self.reply: Any = None  # of the question that is on its way
        self.exit: tuple[int, float] | None = None  # code and time

    def send(self, order: object) -> None:
        """Send an order with the next question, which is due at once; something is expected then."""
        self._quiet = False
        self._orders.append(order)

    def recv(self) -> Any:
        """Return the next message.

        Raises:
            EOFError: if there will be none.
        """
        if not self._inbox:
            raise EOFError
        return self._inbox.popleft()

    def close(self) -> None:
        """Nothing is open here."""

    def has_news(self) -> bool:
        """Tell whether `recv` has something to say."""
        return bool(self._inbox) or self.exit is not None

    def ask(self) -> None:
        """Ask the engine, unless that has been done, or nothing is to be expected yet."""
        now = time.monotonic()
        if self.reply is not None or self.exit is not None:
            return
        if self._orders or not self._quiet or now - self._asked > _PAUSE:
            self._asked, self._sent, self._orders = now, self._orders, []
            try:
                self.reply = self._ask(self._sent, self._n_heard, self._n_output)
            except Exception as error:  # the cluster knows by now that the engine is gone
                self._lose(error)

    def hear(self) -> News | None:
        """Take the engine's answer; None if there is none."""
        reply, self.reply = self.reply, None
        try:
            news = self._answer(reply)
        except Exception as error:
            if getattr(error, "ename", "") in _AGAIN:
                self._orders = self._sent + self._orders
            else:
                self._lose(error)
            return None
        self._n_heard += len(news.said)
        self._n_output += len(news.output)
        for kind, *content in news.said:
            if kind == "control":
                self._take(content[0])
            elif kind == "exited":
                code, when = content
                self.exit = (code, when - self._clock.ahead)
        return news

    def _take(self, message: tuple[Any, ...]) -> None:
        """Keep a message for the watcher, its times on this machine's clock."""
        kind, *content = message
        if kind == "clock":  # of the rank, against rank 0's, which is more exact than any question from here
            (reading,) = content
            self._clock = Reading(reading.at, reading.ahead + self._first_ahead)
            return
        content[-1] = on_first_clock(content[-1], self._clock)
        if kind == "report" and content[0] is not None:
            content[0]["since"] -= self._clock.ahead
        elif kind == "error":
            content[0]["time"] -= self._clock.ahead
        self._quiet = self._quiet or kind != "report"
        self._inbox.append((kind, *content))

    def _lose(self, error: Exception) -> None:
        """Let the rank have failed by what became of its engine."""
        name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
        if isinstance(error, IndexError):  # the client knows already that there is no such engine any more
            name = "EngineError"
        now = time.perf_counter()
        failure: dict[str, Any] = {
            "time": now, "type": name, "exit": False, "message": f"its engine is lost: {text}", "frames": [],
            "calls": (), "collective": None, "traceback": "",
        }  # fmt: skip
        self._inbox.append(("error", failure, []))
        self.exit = (1, now)


class EngineTeam:
    """Ranks on engines, as `Team` describes them.

    Args:
        remotes: of each rank.
        run_dir: where the watcher looks for what ranks have printed.
        board: that the watcher reads and no rank writes; None where they do.
    """

    def __init__(self, remotes: list[Remote], run_dir: Path, board: Board | None) -> None:
        self.controls: list[Any] = remotes
        self._run_dir = run_dir
        self._board = board
        self._told: set[int] = set()

    def wait(self, controls: list[Any], seconds: float) -> list[Any]:
        """Return which of `controls` have something; wait for the first, so many seconds at most."""
        for remote in self.controls:
            remote.ask()
        asked = [remote.reply for remote in self.controls if remote.reply is not None]
        if asked:
            concurrent.futures.wait(asked, seconds, concurrent.futures.FIRST_COMPLETED)
        elif not any(remote.has_news() for remote in controls):
            time.sleep(seconds)
        for rank, remote in enumerate(self.controls):
            if remote.reply is not None and remote.reply.done():
                news = remote.hear()
                if news is not None:
                    self._note(rank, news)
        return [remote for remote in controls if remote.has_news()]

    def _note(self, rank: int, news: News) -> None:
        if news.output:
            with (self._run_dir / f"output.{rank}").open("ab") as file:
                file.write(news.output)
        for name, text in (("fault", news.fault), ("remarks", news.remarks)):
            if text:
                (self._run_dir / f"{name}.{rank}").write_text(text)
        if self._board is not None:
            self._board.tell(rank, news.state, news.steps)

    def watched(self) -> Sequence[Any]:
        """Nothing can be waited on besides the control channels."""
        return ()

    def exits(self) -> list[Exit]:
        """Return the ends of ranks since the last call."""
        ended = {rank: remote.exit for rank, remote in enumerate(self.controls) if remote.exit is not None}
        fresh = [Exit(rank, *ended[rank]) for rank in ended.keys() - self._told]
        self._told |= ended.keys()
        return fresh

    def kill(self) -> None:
        """End every rank at once."""
        for remote in self.controls:
            remote.send("kill")
