"""Watches the ranks of a run to their end, and turns whatever goes wrong into one error."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ppkit.errors import RankError
from ppkit.launch import explain
from ppkit.launch.board import Board
from ppkit.launch.disagree import collective_calls
from ppkit.launch.faults import ask_for_stack
from ppkit.launch.frames import Frame
from ppkit.launch.lost import lost_sends
from ppkit.launch.output import LiveLine, read_output
from ppkit.launch.remarks import read_remarks
from ppkit.launch.starter import Team
from ppkit.observe.fields import Row

_TICK = 0.05
_MOMENT = 0.01  # seconds after a failure in which the others come to the call that they will be stuck in
_GRACE = 0.5  # seconds after a failure in which the other ranks may report theirs
_STUCK = 1.5  # seconds without progress, every living rank waiting for another, that make a deadlock
_PATIENCE = 60.0  # the same where the calls match, as they do while a large message is on its way
_ANSWER = 0.5  # seconds in which a rank answers what it is doing; one that holds Python's lock does not


@dataclass
class RankLog:
    """What is known of one rank.

    Attributes:
        result: its packed return value, once there.
        error: what `describe_error` said, once it failed.
        code: exit code, once its process has ended.
        ended: time of the failure or of the process's end.
        rows: its events.
        pending: the call it is waiting in, as it answered last.
        frames: where in the learner's code it was then.
        answered: whether it has answered the last question.
    """

    result: bytes | None = None
    error: dict[str, Any] | None = None
    code: int | None = None
    ended: float | None = None
    rows: list[Row] = field(default_factory=list)
    pending: dict[str, Any] | None = None
    frames: list[Frame] = field(default_factory=list)
    answered: bool = False

    @property
    def failed(self) -> bool:
        """Whether it raised, or ended without having returned."""
        return self.error is not None or (self.ended is not None and self.result is None)

    @property
    def over(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.result is not None or self.failed


class Watcher:
    """The notebook's end of a run.

    Args:
        team: the ranks.
        controls: control channel of each rank.
        run_dir: where the ranks' output is.
        board: what each rank is waiting for.
        timeout: seconds the run may take, or None.
    """

    def __init__(
        self, team: Team, controls: list[Connection], run_dir: Path, board: Board, timeout: float | None
    ) -> None:
        self._team = team
        self._controls: dict[Any, int] = {control: rank for rank, control in enumerate(controls)}
        self._by_rank = dict(enumerate(controls))
        self._paths = [run_dir / f"output.{rank}" for rank in range(len(controls))]
        self._faults = [run_dir / f"fault.{rank}" for rank in range(len(controls))]
        self._board = board
        self._run_dir = run_dir
        self._timeout = timeout
        self.logs = [RankLog() for _ in controls]
        self._begun = self._progressed = self._asked = time.perf_counter()
        self._progress: list[int] = []

    def run(self) -> None:
        """Return when every rank has returned its result.

        Raises:
            RankError: when a rank failed, or the time is over. By then every rank has ended.
            DeadlockError: when every rank that has not returned waits for another, and nothing moves.
            Interrupted: at an interrupt, with what each rank was doing.
        """
        live = LiveLine(self._paths, self._board.steps)
        try:
            self._watch(live)
        except KeyboardInterrupt:
            self._ask_all()
            raise explain.interrupted(self.logs) from None
        finally:
            live.close()

    def _watch(self, live: LiveLine) -> None:
        while not all(log.over for log in self.logs):
            self._listen(_TICK)
            if any(log.failed for log in self.logs):
                self._hear_out()
                raise self._failure()
            self._check_time()
            if self._is_stuck():
                self._ask()
                seconds = time.perf_counter() - self._progressed
                if explain.cannot_move(self.logs) or seconds > _PATIENCE:
                    raise explain.deadlock(self.logs, seconds, lost_sends(self.logs, self._board))
                self._asked = time.perf_counter()
            live.update(self._doing())
        if any(log.failed for log in self.logs):
            raise self._failure()

    def _hear_out(self) -> None:
        """After a failure: let the others report theirs; and ask who is at work what it has done, for the picture."""
        self._listen_until(time.perf_counter() + _MOMENT, lambda: all(log.over for log in self.logs))
        self._question()
        self._listen_until(time.perf_counter() + _GRACE, lambda: all(log.over for log in self.logs))

    def sign_off(self) -> None:
        """Let the ranks go, and return when they are gone."""
        for control in self._controls:
            with suppress(OSError):
                control.send(("finish",))
        self._listen_until(time.perf_counter() + 1.0, self._all_gone)

    def end(self) -> None:
        """End every rank that is left, whatever it is doing; return when they are gone."""
        if not self._all_gone():
            self._team.kill()
            self._listen_until(time.perf_counter() + 5.0, self._all_gone)
        for control in self._by_rank.values():
            control.close()

    def _all_gone(self) -> bool:
        return all(log.code is not None for log in self.logs)

    def warnings(self) -> tuple[str, ...]:
        """Return what the ranks have remarked on their own code, in an order that does not depend on timing."""
        remarks = read_remarks(self._run_dir, len(self.logs))
        return tuple(f"rank {rank}: {text}" for rank, texts in sorted(remarks.items()) for text in texts)

    def shown(self) -> tuple[str, ...]:
        """Return what is to be shown of each rank: what it has printed, and its warnings."""
        remarks = read_remarks(self._run_dir, len(self.logs))
        return tuple(
            "\n".join([*text.splitlines(), *(f"warning: {remark}" for remark in remarks.get(rank, []))])
            for rank, text in enumerate(self.output())
        )

    def output(self) -> tuple[str, ...]:
        """Return what each rank has printed so far."""
        return tuple(read_output(path) for path in self._paths)

    # Listening

    def _listen_until(self, deadline: float, done: Callable[[], bool]) -> None:
        while not done() and (remaining := deadline - time.perf_counter()) > 0:
            self._listen(min(_TICK, remaining))

    def _listen(self, seconds: float) -> None:
        for ready in self._team.wait(list(self._controls), seconds):
            if ready in self._controls:
                self._hear(ready, self._controls[ready])
        for rank, code, when in self._team.exits():
            log = self.logs[rank]
            log.code = code
            log.ended = log.ended or when

    def _hear(self, control: Any, rank: int) -> None:
        log = self.logs[rank]
        try:
            kind, *content = control.recv()
        except (EOFError, OSError):
            del self._controls[control]
            log.ended = log.ended or time.perf_counter()
            return
        if kind == "result":
            log.result, log.rows = content
        elif kind == "error":
            log.error, log.rows = content
            log.ended = log.error["time"]
        else:
            log.pending, log.frames, log.rows = content
            log.answered = True

    def _ask(self) -> None:
        """Ask every rank that is still at work what it is doing."""
        asked = self._question()
        self._listen_until(time.perf_counter() + _ANSWER, lambda: all(self.logs[rank].answered for rank in asked))

    def _question(self) -> list[int]:
        """Put the question, and return whom; the answers come while one listens."""
        asked = [rank for rank, log in enumerate(self.logs) if not log.over]
        for rank in asked:
            self.logs[rank].answered = False
            with suppress(OSError):
                self._by_rank[rank].send(("report",))
        return asked

    def _ask_all(self) -> None:
        """Ask every rank what it is doing; look into those that hold Python's lock, and so cannot answer."""
        self._ask()
        silent = {rank for rank, log in enumerate(self.logs) if not log.over and not log.answered}
        silent = {rank for rank in silent if ask_for_stack(self._faults[rank])}
        deadline = time.perf_counter() + _ANSWER / 2
        while silent and time.perf_counter() < deadline:
            time.sleep(0.01)
            for rank in silent:
                self.logs[rank].frames = explain.fault_frames(read_output(self._faults[rank]))
            silent = {rank for rank in silent if not self.logs[rank].frames}

    # Judging

    def _is_stuck(self) -> bool:
        """Tell whether every rank that has not returned waits for another, and none has moved for a while."""
        states = [self._board.state(rank) for rank, log in enumerate(self.logs) if not log.over]
        progress = [state.progress for state in states]
        now = time.perf_counter()
        if progress != self._progress or any(state.waiting_since is None for state in states):
            self._progress = progress
            self._progressed = now
        return bool(states) and now - max(self._progressed, self._asked) > _STUCK

    def _check_time(self) -> None:
        if self._timeout is not None and time.perf_counter() - self._begun > self._timeout:
            self._ask_all()
            raise explain.timeout(self.logs, self._timeout)

    def _failure(self) -> RankError:
        for log in self.logs:
            if log.failed and log.error is None and log.code is None:
                self._listen_until(time.perf_counter() + _GRACE, lambda log=log: log.code is not None)  # type: ignore[misc]
        for log in self.logs:
            if log.error is not None and log.error["collective"]:  # by now more ranks have come to it
                log.error["calls"] = collective_calls(self._board, *log.error["collective"])
        return explain.failure(self.logs, self.output(), tuple(map(read_output, self._faults)))

    def _doing(self) -> str:
        waiting = sum(
            self._board.state(rank).waiting_since is not None for rank, log in enumerate(self.logs) if not log.over
        )
        working = sum(not log.over for log in self.logs)
        return f"{working} of {len(self.logs)} ranks not finished" + (
            f", {waiting} waiting for another" if waiting else ""
        )
