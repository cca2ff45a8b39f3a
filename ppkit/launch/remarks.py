"""Words for what went without an error, but may not next time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ppkit.launch.frames import Frame
from ppkit.launch.wording import place, source_line

# What {0} and {1} stand for are lines of the learner's code. The same words every time: outputs are compared.
TEXTS = {
    "read": "the buffer of an irecv is used at {0} before wait() is called on what the irecv at {1} returned. "
    "Until then nobody knows what is in it: call wait() first.",
    "changed": "a tensor is changed at {0} while it is being sent: wait() has not been called on what the isend at {1} "
    "returned. Either value may arrive: call wait() first, or send a copy.",
    "changed unseen": "a tensor was changed between the isend at {1} and the wait() for it at {0}. Either value may "
    "arrive: change it after wait(), or send a copy.",
    "isend never waited for": "nobody called wait() on what the isend at {0} returned: the function may end before the "
    "message is handed over. Keep what isend returns, and call its wait().",
    "irecv never waited for": "nobody called wait() on what the irecv at {0} returned: nobody knows whether the "
    "message has come. Keep what irecv returns, and call its wait().",
    "collective never waited for": "nobody called wait() on what the collective at {0} returned: nobody knows whether "
    "its result is there. Keep what it returns, and call its wait().",
}


def read_remarks(run_dir: Path, n_ranks: int) -> dict[int, list[str]]:
    """Return the warnings of a run by rank; one that several ranks share is the first one's.

    Args:
        run_dir: where the ranks have left their remarks.
        n_ranks: of the run.
    """
    ranks: dict[tuple[str, tuple[Frame, ...]], list[int]] = {}
    for rank in range(n_ranks):
        with suppress(OSError):
            for line in (run_dir / f"remarks.{rank}").read_text().splitlines():
                kind, frames = json.loads(line)
                ranks.setdefault((kind, tuple((f, n, name) for f, n, name in frames)), []).append(rank)
    found: dict[int, list[str]] = {}
    for (kind, frames), who in sorted(ranks.items(), key=lambda item: item[1][0]):  # stable: each rank's own order
        also = f" So on ranks {', '.join(map(str, who))}." if len(who) > 1 else ""
        found.setdefault(who[0], []).append(remark(kind, frames) + also)
    return found


def remark(kind: str, frames: Sequence[Frame]) -> str:
    """Return a remark's text, with the learner's lines that it is about."""
    return TEXTS[kind].format(*map(_quoted, frames))


def _quoted(frame: Frame) -> str:
    source = source_line(frame)
    return place(frame) + (f" ({source})" if source else "")
