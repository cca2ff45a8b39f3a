"""Compares the messages of a run with those that a right answer sends, and explains a run that got stuck."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ppkit.checks.judge import Wrong
from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.general import CRASH, EXCEPTION, FORGOTTEN_RECEIVE, MISSING_MESSAGE, UNPAIRED
from ppkit.checks.mistakes.naive import N03, N04, N05, N05_DIRECTION, N06, N06_SENT, N07, N11, N16, PASSED_ON
from ppkit.checks.mistakes.one_f_one_b import F41_LOST
from ppkit.checks.oracle import Pass
from ppkit.errors import DeadlockError, MismatchError, RankError
from ppkit.event import Event
from ppkit.launch.wording import describe_call, place, sends, source_line
from ppkit.observe.fields import NEVER_WAITED
from ppkit.timeline import Timeline

__all__ = [
    "Expected",
    "Message",
    "backward_messages",
    "explain_deadlock",
    "explain_mismatch",
    "explain_signal",
    "forward_messages",
    "never_waited",
    "require_messages",
]

Link = tuple[int, int]  # sender, receiver
_SIZES = re.compile(r"op\.nbytes\. (\d+) vs (\d+)")  # gloo: the message's bytes, the buffer's


class Message(NamedTuple):
    """One message between two ranks; `nbytes` is its size in bytes."""

    sender: int
    receiver: int
    nbytes: int


@dataclass(frozen=True)
class Expected:
    """The messages of a right answer.

    Args:
        messages: each of them once; others may be sent beside them, as long as they are received.
        parameter_bytes: for each rank the sizes in bytes of its parameters, by which a gradient sent by mistake
            is recognised.
        elsewhere: the mistake of a message between two ranks that have nothing to send to each other.
    """

    messages: tuple[Message, ...]
    parameter_bytes: tuple[frozenset[int], ...] = ()
    elsewhere: Mistake = N05

    @property
    def links(self) -> Counter[Link]:
        """How many messages each sender sends to each receiver."""
        return Counter((m.sender, m.receiver) for m in self.messages)

    @property
    def sends_back(self) -> bool:
        """Whether gradients travel in it: messages from a rank to one before it."""
        return any(m.receiver < m.sender for m in self.messages)

    def wrong_size(self, nbytes: int, right: Message) -> Mistake:
        """The mistake by which a message of `nbytes` bytes is sent instead of the `right` one."""
        sender = right.sender
        if sender < len(self.parameter_bytes) and nbytes in self.parameter_bytes[sender]:
            return N11
        came = {m.nbytes for m in self.messages if m.receiver == sender < m.sender}
        if right.receiver < sender and nbytes in came:
            return PASSED_ON
        return N07 if nbytes in (right.nbytes * 2, right.nbytes / 2) else N06_SENT

    def wrong_way(self, links: Iterable[Link]) -> Mistake:
        """The mistake by which messages travel on links of which one at least is none of the task's."""
        back = all(link not in self.links and link[::-1] in self.links for link in links)
        return N05_DIRECTION if back else self.elsewhere


def forward_messages(stages: Sequence[nn.Module], passes: Sequence[Pass]) -> Expected:
    """Each rank's output, to the next rank."""
    sizes = [_nbytes(part.output) for part in passes[:-1]]
    return Expected(tuple(Message(r, r + 1, nbytes) for r, nbytes in enumerate(sizes)), _parameter_bytes(stages))


def backward_messages(stages: Sequence[nn.Module], passes: Sequence[Pass]) -> Expected:
    """The gradient of each rank's input, to the rank before."""
    sizes = [_nbytes(part.output) for part in passes[:-1]]
    return Expected(tuple(Message(r + 1, r, nbytes) for r, nbytes in enumerate(sizes)), _parameter_bytes(stages))


def _parameter_bytes(stages: Sequence[nn.Module]) -> tuple[frozenset[int], ...]:
    return tuple(frozenset(_nbytes(parameter) for parameter in stage.parameters()) for stage in stages)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def never_waited(events: Iterable[Event], kind: str = "SEND") -> Iterator[Event]:
    """The sends, or events of another kind, that nobody has waited for."""
    return (event for event in events if event.kind == kind and event.note == NEVER_WAITED)


# A run that came to its end


def require_messages(timeline: Timeline, expected: Expected, where: str) -> None:
    """Refuse a run in which a message is missing, has another size, or was never received.

    Raises:
        Wrong: the first thing that differs, with the mistake that explains it.
    """
    sends = [event for event in timeline if event.kind == "SEND"]
    for event in sends:
        if event.message is None:
            fact = f"{where}: a message of {event.nbytes} bytes from {_link(_of(event))} was never received."
            raise Wrong(fact, mistake=N16 if _of(event) in expected.links else expected.wrong_way(map(_of, sends)))
    left = Counter(Message(*_of(event), event.nbytes) for event in sends)
    for message in expected.messages:
        if not left[message]:
            raise _not_sent(message, list(left.elements()), expected, where)
        left[message] -= 1


def _not_sent(message: Message, sent: Sequence[Message], expected: Expected, where: str) -> Wrong:
    same_link = [m for m in sent if m[:2] == message[:2]]
    task = f"{where}: {_link(message[:2])} should carry a message of {message.nbytes} bytes"
    if same_link:
        nbytes = same_link[0].nbytes
        return Wrong(f"{task}; it carried {nbytes}.", mistake=expected.wrong_size(nbytes, message))
    stray = [m for m in sent if m[:2] not in expected.links]
    if stray:
        mistake = expected.wrong_way(m[:2] for m in sent)
        return Wrong(f"{task}. Instead one went from {_link(stray[0][:2])}.", mistake=mistake)
    return Wrong(f"{task}; there was none.", mistake=MISSING_MESSAGE)


def explain_mismatch(error: MismatchError, expected: Expected, where: str) -> Wrong:
    """The verdict on a message that is not what its receiver has made room for."""
    if error.pending[0]["peer"] is None:
        return Wrong(f"{where}: {error.message}", mistake=EXCEPTION, timeline=error.timeline, output=error.output)
    sent, wanted = sorted(error.pending, key=sends, reverse=True)
    nbytes, room = sent["nbytes"] or 0, wanted["nbytes"] or 0
    on_link = [m for m in expected.messages if m[:2] == (sent["rank"], wanted["rank"])]
    right = min(on_link, key=lambda m: abs(m.nbytes - nbytes), default=None)
    if right is not None and nbytes != right.nbytes:
        return _not_sent(right, [right._replace(nbytes=nbytes)], expected, where)
    mistake = N06 if sent["dtype"] == wanted["dtype"] else N07
    fact = f"{where}: "
    if nbytes != room:
        fact += f"rank {wanted['rank']} got a message of {nbytes} bytes for a receive buffer of {room} bytes.\n"
    said = error.message.split("\nA message carries only bytes")[0]  # what to write instead is the learner's to find
    return Wrong(fact + said, mistake=mistake, timeline=error.timeline, output=error.output)


# A run that got stuck


def explain_deadlock(error: DeadlockError, expected: Expected, where: str) -> Wrong:
    """The verdict on ranks that wait for each other.

    Args:
        error: with the calls in which the ranks wait, and the timeline up to there.
        expected: messages of a right answer.
        where: on how many ranks it was, in words.
    """
    calls = [f"  rank {call['rank']} waits in {describe_call(call)}{_at(call)}" for call in error.pending]
    waiting = {call["rank"] for call in error.pending}
    n_ranks = error.timeline.n_ranks if error.timeline else len(expected.parameter_bytes)
    returned = [f"  rank {rank} has returned" for rank in range(n_ranks) if rank not in waiting]
    facts = "\n".join([f"{where}: a deadlock, no rank can go on.", *calls, *returned])
    mistake, note = _why_stuck(error, expected, set(range(n_ranks)) - waiting)
    return Wrong(facts, *filter(None, [note]), mistake=mistake, timeline=error.timeline, output=error.output)


def _why_stuck(error: DeadlockError, expected: Expected, returned: set[int]) -> tuple[Mistake, str]:
    calls = [call for call in error.pending if call["peer"] is not None]
    sent = [event for event in error.timeline or () if event.kind == "SEND"]
    links = [_link_of(call) for call in calls] + [_of(event) for event in sent]
    for link in links if expected.messages else ():
        if link not in expected.links:
            return expected.wrong_way(links), f"No message of this task goes from {_link(link)}."
    if lost := next((event for call in calls for event in sent if _was_lost(event, call)), None):
        return F41_LOST, f"Rank {lost.rank}'s {lost.label} was never waited for, and never arrived."
    for call in calls:
        for other in calls:
            if call["peer"] == other["rank"] and other["peer"] == call["rank"] and call is not other:
                if _sends(call) and _sends(other):
                    return N03, ""
                if not _sends(call) and not _sends(other):
                    return N04, ""
                if call["tag"] != other["tag"]:
                    return UNPAIRED, f"The tags differ: {call['tag']} and {other['tag']}."
    arrived = Counter(_of(event) for event in sent if event.message is not None)
    for call in calls:
        sender, receiver = link = _link_of(call)
        if not _sends(call):
            continue
        if expected.messages and arrived[link] >= expected.links[link]:
            return N16, f"Rank {receiver} has already got from rank {sender} what it needs."
        if receiver in returned:
            look = FORGOTTEN_RECEIVE.look.replace("the receiving rank", f"rank {receiver}")
            fact = f"Rank {receiver} has returned without receiving the message from rank {sender}."
            return replace(FORGOTTEN_RECEIVE, look=look), fact
    return UNPAIRED, ""


def _was_lost(event: Event, call: dict[str, Any]) -> bool:
    """Whether a call waits for a message whose send nobody holds any more: one that is held would arrive."""
    matches = not _sends(call) and (_of(event), event.tag) == (_link_of(call), call["tag"])
    return matches and event.message is None and event.note == NEVER_WAITED


def _at(call: dict[str, Any]) -> str:
    frames = call["frames"]
    return f",\n    at {place(frames[-1])}: {source_line(frames[-1])}" if frames else ""


def _sends(call: dict[str, Any]) -> bool:
    return str(call["name"]).endswith("send")


def _link_of(call: dict[str, Any]) -> Link:
    rank, peer = call["rank"], call["peer"]
    return (rank, peer) if _sends(call) else (peer, rank)


def _of(event: Event) -> Link:
    return event.rank, -1 if event.peer is None else event.peer


def _link(link: Sequence[int]) -> str:
    return f"rank {link[0]} to rank {link[1]}"


# A rank that the system ended


def explain_signal(error: RankError, expected: Expected, where: str) -> Wrong:
    """The verdict on a rank that gloo took down: a buffer that does not fit, or a peer that does not exist."""
    rank = error.rank or 0
    said = error.output[rank] if rank < len(error.output) else ""
    sizes = _SIZES.search(said)
    mistake = CRASH
    if sizes:
        message, buffer = int(sizes[1]), int(sizes[2])
        fact = f"{where}: rank {rank} got a message of {message} bytes for a receive buffer of {buffer} bytes."
        inbound = [m for m in expected.messages if m.receiver == rank]
        right = min(inbound, key=lambda m: abs(m.nbytes - message), default=None)
        if right is not None and message == right.nbytes:
            mistake = N07 if buffer * 2 == message else N06
        elif right is not None:
            mistake = expected.wrong_size(message, right)
    elif "SIGSEGV" in error.message:
        fact = f"{where}: rank {rank} crashed inside torch (SIGSEGV), as when it is asked for a rank that isn't there."
        mistake = N05
    else:
        fact = f"{where}: {error.message}"
    return Wrong(fact, mistake=mistake, timeline=error.timeline)
