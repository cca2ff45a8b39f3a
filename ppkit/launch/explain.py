"""Says what went wrong in a run: which rank, how, where in the learner's code, and why."""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppkit.errors import DeadlockError, Interrupted, MismatchError, RankError
from ppkit.launch.disagree import NAMES, blamed, mismatch_text
from ppkit.launch.frames import RANK_FILE, Frame, is_internal
from ppkit.launch.remarks import remark
from ppkit.launch.wording import at, describe_call, place, sends, source_line

if TYPE_CHECKING:
    from ppkit.launch.watch import RankLog

_LOST_PEER = re.compile(
    r"Connection (closed|reset|refused)( by peer)?|Broken pipe|Socket closed|remote process exited", re.I
)
_RECEIVING = (*(name for name in NAMES if not name.endswith("send")), "wait")  # functions
_FAULT_LINE = re.compile(r'File "(.+)", line (\d+) in (.+)')
_WIDTH = 100  # characters that are said of a rank that failed afterwards
_TAIL = 8  # lines of a crashed rank's output that its error quotes


def failure(logs: Sequence[RankLog], output: tuple[str, ...], faults: tuple[str, ...]) -> RankError:
    """Return the error of the rank that failed first; the others' are mostly its consequences.

    Args:
        logs: what is known of each rank.
        output: what each rank has printed.
        faults: what `faulthandler` has written of each rank that crashed.
    """
    # The end of a process is noticed a little after the errors it causes, so that time alone would blame a victim.
    failed = sorted((_is_victim(log), log.ended or 0.0, rank) for rank, log in enumerate(logs) if log.failed)
    earliest = logs[failed[0][2]]
    # The same error on several ranks is one mistake, whichever was a millisecond ahead.
    first = min(rank for *_, rank in failed if _short(logs[rank]) == _short(earliest))
    log = logs[first]
    if log.error is not None and log.error["calls"]:
        return _mismatch_of(log.error)
    others = {rank: _short(logs[rank]) for *_, rank in sorted(failed, key=lambda f: f[2]) if rank != first}
    if log.error is not None:
        kind, text = (
            ("exit", _exit_text(first, log.error))
            if log.error["exit"]
            else ("exception", _raised_text(first, log.error))
        )
        original, traceback_text = log.error["type"], log.error["traceback"]
    else:
        kind, text = _ended_text(first, log, output[first], faults[first])
        original, traceback_text = "", ""
    if others:
        text += "\n\nAfterwards, and probably because of it:\n" + "\n".join(
            f"  rank {r}: {_aside(logs[r], log)}" for r in others
        )
    return RankError(text, rank=first, kind=kind, original_type=original, traceback_text=traceback_text, others=others)


def _mismatch_of(error: dict[str, Any]) -> MismatchError:
    """Return the error of calls that don't agree, whichever of their ranks noticed it."""
    text, calls = mismatch_text(error["calls"]), error["calls"]
    return MismatchError(
        text,
        rank=blamed(calls),
        pending=calls,
        collective=error["collective"],
        original_type=error["type"],
        traceback_text=error["traceback"],
    )


def timeout(logs: Sequence[RankLog], seconds: float) -> RankError:
    """Return the error of a run that took longer than it may."""
    working = [rank for rank, log in enumerate(logs) if not log.over]
    rest = f"not finished: {_ranks(working)}" if working else "its ranks had just returned"
    text = f"The run was ended after its time limit of {seconds:g} s; {rest}.\n{_table(logs)}"
    return RankError(text, rank=working[0] if working else None, kind="timeout", values={"timeout": seconds})


def interrupted(logs: Sequence[RankLog]) -> Interrupted:
    """Return what an interrupt shows: each rank, and what it was doing."""
    return Interrupted(f"The run was interrupted; its ranks have been ended.\n{_table(logs)}")


def deadlock(logs: Sequence[RankLog], seconds: float, lost: Mapping[int, Frame]) -> DeadlockError:
    """Return the error of a run in which every rank that has not returned waits for another.

    Args:
        logs: what is known of each rank.
        seconds: since the last progress.
        lost: by the rank that waits for it, the line of an isend that nobody waited for; see `lost_sends`.
    """
    pending = tuple(log.pending for log in logs if log.pending is not None)
    text = f"Deadlock: no rank has moved for {seconds:.1f} s.\n{_table(logs)}\n{_reason(logs, lost)}"
    return DeadlockError(text, rank=pending[0]["rank"] if pending else None, kind="timeout", pending=pending)


def cannot_move(logs: Sequence[RankLog]) -> bool:
    """Tell whether no two of the calls that the ranks wait in belong together.

    Calls that do are on their way: a large message takes seconds in which nothing else is to be seen.
    """
    calls = {rank: log.pending for rank, log in enumerate(logs) if log.pending is not None}
    if any(not log.answered or log.pending is None for log in logs if log.result is None):
        return False  # somebody computes, or was too busy to answer
    if len(calls) == len(logs) and len({(call["name"], call["peer"]) for call in calls.values()}) == 1:
        return all(call["peer"] is not None for call in calls.values())
    for sender, sent in calls.items():
        wanted = calls.get(sent["peer"])
        if wanted is None or not sends(sent) or sends(wanted):
            continue
        if wanted["peer"] in (sender, None) and wanted["tag"] == sent["tag"]:
            return False
    return True


# One rank


def _is_victim(log: RankLog) -> bool:
    """Tell whether a rank failed only because the other end of its connection was gone."""
    return log.error is not None and _LOST_PEER.search(log.error["message"]) is not None


def _raised_text(rank: int, error: dict[str, Any]) -> str:
    message = error["message"] or "(no message)"
    if error["type"] == "TypeError" and not error["frames"] and "argument" in message:
        message += "\nlaunch(fn, *args) calls fn(*args) on every rank: give it the arguments that fn takes."
    return f"rank {rank} raised {error['type']}: {message}{_where(error['frames'])}"


def _exit_text(rank: int, error: dict[str, Any]) -> str:
    text = f"rank {rank} called sys.exit({error['message']}), and so left before its function returned."
    return f"{text} Return from the function instead.{_where(error['frames'])}"


def _ended_text(rank: int, log: RankLog, output: str, fault: str) -> tuple[str, str]:
    """Describe a process that ended without a word."""
    tail = "\n".join(f"  {line}" for line in output.splitlines()[-_TAIL:])
    said = f"\nIts last output:\n{tail}" if tail else ""
    if log.code is not None and log.code < 0:
        name = signal.Signals(-log.code).name
        hint = {
            "SIGKILL": " Usually the system was out of memory.",
            "SIGABRT": " Usually the receive buffer and the message differ in size." * _receives(fault),
        }.get(name, "")
        return "signal", f"rank {rank} was ended by {name}.{hint}{_where(fault_frames(fault))}{said}"
    code = "" if log.code is None else f" with exit code {log.code}"
    return "exit", f"rank {rank} ended{code} before its function returned.{said}"


def fault_frames(fault: str) -> list[Frame]:
    """Return the learner's frames, the outermost first, from what `faulthandler` wrote of the rank's main thread."""
    return [frame for frame in _main_thread(fault)[::-1] if not is_internal(frame[0])]


def _main_thread(fault: str) -> list[Frame]:
    """Return the frames of the thread that the learner's code runs in, the innermost first."""
    for thread in fault.split("\n\n"):
        found = [(name, int(line), function) for name, line, function in _FAULT_LINE.findall(thread)]
        names = [name for name, _, _ in found]
        if RANK_FILE in names:
            return found[: names.index(RANK_FILE)]
    return []


def _receives(fault: str) -> bool:
    """Tell whether the innermost of the learner's lines was in a receive, a collective, or a wait for one."""
    inside = itertools.takewhile(lambda frame: is_internal(frame[0]), _main_thread(fault))
    return any(function in _RECEIVING for _, _, function in inside)


def _short(log: RankLog) -> str:
    if log.error is not None:
        return f"{log.error['type']}: {log.error['message']}".split("\n")[0]
    return "ended" if log.code is None else f"ended with code {log.code}"


def _aside(log: RankLog, first: RankLog) -> str:
    """Say in a few words how a rank failed after the first one."""
    text = _short(log)
    lost = _LOST_PEER.search(text) if _is_victim(log) and log.error is not None else None
    if lost is not None and log.error is not None:
        return f"{log.error['type']}: {lost.group()}"
    if text == _short(first):
        return "the same"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _where(frames: Sequence[Frame]) -> str:
    """Quote the learner's lines, the outermost first."""
    return "".join(f"\n  {place(frame)}\n    {source_line(frame)}" for frame in frames)


# All ranks


def _table(logs: Sequence[RankLog]) -> str:
    """Say, a line each, what the ranks are doing."""
    return "\n".join(f"  rank {rank}: {_state(log)}" for rank, log in enumerate(logs))


def _state(log: RankLog) -> str:
    if log.result is not None:
        return "has returned"
    if log.pending is None:
        if log.answered:
            return "is computing" + at(log.frames)
        if log.frames:
            return "is in C code, which has not let Python go on" + at(log.frames)
        return "is computing, and too busy to say what"
    seconds = time.perf_counter() - log.pending["since"]
    return f"waits in {describe_call(log.pending)} for {seconds:.1f} s{at(log.pending['frames'])}"


def _reason(logs: Sequence[RankLog], lost: Mapping[int, Frame]) -> str:
    """Say in a sentence why nothing can move any more."""
    calls = {rank: log.pending for rank, log in enumerate(logs) if log.pending is not None}
    for rank, call in calls.items():
        peer = call["peer"]
        if peer is not None and logs[peer].result is not None:
            returned = f"Rank {rank} waits for rank {peer}, which has already returned"
            if rank in lost:
                return f"{returned}, and whose message may be lost: {remark('isend never waited for', [lost[rank]])}"
            return f"{returned}: one message too many, or a wrong peer."
    cycle = _cycle(calls)
    if cycle:
        steps = ", ".join(
            f"{r} waits for {calls[r]['peer']} to {'receive' if sends(calls[r]) else 'send'}" for r in cycle
        )
        if any(str(calls[r]["name"]) == "wait for isend" for r in cycle) and all(sends(calls[r]) for r in cycle):
            return (
                f"A cycle: {steps}. An isend is done only when it is received: receive first, wait for it afterwards."
            )
        if all(sends(calls[r]) for r in cycle):
            return f"A cycle: {steps}. All of them send first; let one side receive first, or use isend."
        if not any(sends(calls[r]) for r in cycle):
            return f"A cycle: {steps}. All of them receive first; let one side send first."
        return f"A cycle: {steps}. {_mismatch(calls, cycle)}"
    collectives = {rank: call["name"] for rank, call in calls.items() if call["peer"] is None}
    if collectives:
        missing = [rank for rank in range(len(logs)) if rank not in collectives]
        where = ", ".join(f"rank {rank} is in {name}" for rank, name in collectives.items())
        return f"A collective needs every rank of its group, but {where}" + (
            f"; {_ranks(missing)} elsewhere." if missing else "."
        )
    return "Each of them waits for a message that nobody sends or receives: compare peers and tags."


def _mismatch(calls: dict[int, dict[str, Any]], cycle: list[int]) -> str:
    """Say how sends and receives that face each other differ."""
    for sender in cycle:
        receiver = calls[sender]["peer"]
        sent, wanted = calls[sender], calls[receiver]
        if sends(sent) and not sends(wanted) and wanted["peer"] == sender and sent["tag"] != wanted["tag"]:
            return (
                f"Rank {sender} sends with tag {sent['tag']}, but rank {receiver} receives with tag {wanted['tag']}: "
                "give both the same tag."
            )
    return "Their sends and receives don't pair: compare peers and tags."


def _cycle(calls: dict[int, dict[str, Any]]) -> list[int]:
    """Return ranks that wait for each other in a circle, beginning with the lowest, or an empty list."""
    for start in sorted(calls):
        path = [start]
        while (peer := calls[path[-1]]["peer"]) in calls and peer not in path:
            path.append(peer)
        if peer == start:
            return path
    return []


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) != 1)} {', '.join(map(str, ranks))}"
