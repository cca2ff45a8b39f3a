"""Runs a learner's function on the ranks of a mesh, and explains how it failed there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ppkit.checks.judge import Wrong
from ppkit.checks.messages import Expected
from ppkit.checks.mistakes.general import EXCEPTION, UNPAIRED
from ppkit.checks.mistakes.hybrid import H60_WORLD, H62, LEFT_ALONE, UNLIKE
from ppkit.checks.mistakes.naive import N05, N06
from ppkit.checks.trial import Trial, on_ranks
from ppkit.mesh import Mesh

__all__ = ["on_mesh"]

_NOBODY = Expected(())


def on_mesh(
    driver: Callable[..., Any], *args: Any, mesh: Mesh, where: str, expected: Expected = _NOBODY, **options: Any
) -> Trial:
    """Call `driver(*args)` on the ranks of a mesh: `on_ranks`, with the mistakes that a mesh adds.

    Raises:
        Unfinished: the function still raises NotImplementedError.
        Wrong: a rank raised, exited, crashed, waited for ever or took too long.
    """
    try:
        return on_ranks(driver, *args, n_ranks=mesh.n_ranks, where=where, expected=expected, **options)
    except Wrong as verdict:
        text = "\n".join(verdict.facts)
        if "is not part of group" in text or (verdict.mistake is N05 and _between_rows(verdict, mesh)):
            verdict.mistake = H62
        elif verdict.mistake is UNPAIRED and any(f"waits in {name}" in text for name in ("all_", "broadcast")):
            verdict.mistake = LEFT_ALONE
        elif "with different tensors" in text:
            verdict.mistake = UNLIKE
        elif "name different roots" in text:  # a number inside a group, or no group at all
            everybody = len(re.findall(r"^  rank \d+:", text, re.MULTILINE)) == mesh.n_ranks
            verdict.mistake = H60_WORLD if everybody else H62
        elif verdict.mistake is N06 and not expected.messages:
            verdict.mistake = EXCEPTION  # shapes of its own: no message of this task has one
        raise


def _between_rows(verdict: Wrong, mesh: Mesh) -> bool:
    """Whether a rank waits for one of another replica that is not simply the next: it has counted inside a group."""
    for event in verdict.timeline or ():
        peer = event.peer
        if peer is None or not 0 <= peer < mesh.n_ranks or abs(event.rank - peer) <= 1:
            continue
        if mesh.place_of(event.rank)[0] != mesh.place_of(peer)[0]:
            return True
    return False
