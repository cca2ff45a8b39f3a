"""A team of ranks that is kept from run to run: told of its runs, renewed between them, ended."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import AbstractContextManager, suppress
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path

from ppkit.errors import LaunchError
from ppkit.launch.starter import Starter, Team, starter

_RENEW_SECONDS = 5.0  # in which a rank puts itself back; where it can't, another takes its place
_END_SECONDS = 1.0  # in which a rank ends by itself
_FROZEN = ("TORCH", "GLOO", "NCCL", "CUDA", "OMP", "MKL", "PYTORCH")  # variables that are read once


class KeptTeam:
    """A team and its folder, from the first of its runs to the last."""

    def __init__(self, n_ranks: int) -> None:
        self.starter: Starter = starter()
        self.environment = _frozen()
        self._context: AbstractContextManager[Path] = self.starter.folder()
        self.folder = self._context.__enter__()
        self.n_ranks = n_ranks
        self.team: Team | None = None
        self._numbers = count(1)
        self.run_dir = self.folder / "run.0"
        self.store = self.folder / "store.0"
        self.run_dir.mkdir(mode=0o700)

    def begin(self) -> Team:
        """Tell the ranks that their next run is in `run_dir`; start them at the first."""
        if self.team is None:
            self.team = self.starter.start(self.run_dir, self.n_ranks)
        else:
            _tell(self.team, ("run",))
        return self.team

    def renew(self, keep_group: bool) -> None:
        """Let the ranks put themselves back, with a new process group unless it may be kept; returns at once.

        They make the folder of the next run, too, and remove the last one's.
        """
        assert self.team is not None  # a run has just ended
        number = next(self._numbers)
        self.run_dir = self.folder / f"run.{number}"
        self.store = self.folder / f"store.{number}"
        _tell(self.team, ("renew", str(self.run_dir), str(self.store), keep_group))

    def is_ready(self) -> bool:
        """Tell whether every rank is there and as new; waits for it."""
        usable = self.starter is starter() and self.environment == _frozen() and self.folder.is_dir()
        if self.team is None or not usable:
            return False
        missing = list(self.team.controls)
        deadline = time.perf_counter() + _RENEW_SECONDS
        while missing and (remaining := deadline - time.perf_counter()) > 0:
            heard = wait(missing, remaining)
            for control in [control for control in missing if control in heard]:
                try:
                    message = control.recv()
                except (EOFError, OSError):
                    return False
                if message[0] == "renewed":
                    missing.remove(control)
                    if message[1]:
                        return False
        return not missing

    def end(self, *, at_once: bool = False) -> None:
        """End the ranks, whatever they are doing where `at_once`; return when they and their folder are gone."""
        team, self.team = self.team, None
        try:
            if team is not None:
                _end(team, 0.0 if at_once else _END_SECONDS)
        finally:
            self._context.__exit__(None, None, None)


def _frozen() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_FROZEN)}


def _tell(team: Team, message: tuple[object, ...]) -> None:
    for control in team.controls:
        with suppress(OSError):  # whoever listens for its answer will see that it is gone
            control.send(message)


def _end(team: Team, patience: float) -> None:
    if all(control.closed for control in team.controls):
        return  # a run failed, and whoever watched it has ended them
    _tell(team, ("finish",))
    try:
        ended = _wait_for_ends(team, set(), patience)
        if len(ended) < len(team.controls):
            team.kill()
            _wait_for_ends(team, ended, 5 * _END_SECONDS)
    except LaunchError:
        pass  # the server is gone; the ranks follow when their channels are closed
    finally:
        for control in team.controls:
            control.close()


def _wait_for_ends(team: Team, ended: set[int], seconds: float) -> set[int]:
    deadline = time.perf_counter() + seconds
    ended |= {exit.rank for exit in team.exits()}
    while len(ended) < len(team.controls) and (remaining := deadline - time.perf_counter()) > 0:
        wait(team.watched(), min(0.05, remaining))
        ended |= {exit.rank for exit in team.exits()}
    return ended


def abandon(holder: list[KeptTeam]) -> None:
    """End what nobody holds any more: ranks whose channels are closed end by themselves.

    The garbage collector may call this in the middle of a message to the server, so that it sends none.
    """
    for kept in holder:
        if kept.team is not None:
            for control in kept.team.controls:
                control.close()
        shutil.rmtree(kept.folder, ignore_errors=True)
