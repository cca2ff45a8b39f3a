"""Skip connections that cross stages: a value put aside in one, and used in a later one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from torch import Tensor, nn

from ppkit.errors import PpkitError

__all__ = ["Pop", "Skip", "SkipError", "Stash", "carrying", "match_skips", "skips_of"]


class SkipError(PpkitError, ValueError):
    """A skip connection does not lead from one stage to the same or a later one."""


class _Carried(threading.local):
    """What was stashed in this thread and not popped yet; a pipeline gives every forward of a stage its own."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}


_carried = _Carried()


class Stash(nn.Module):
    """Hands its input on, and puts it aside for the `Pop` of the same name.

    In one process the two work as they stand, in any module; in a `Pipeline` the value goes straight from the stage
    that has the `Stash` to the stage that has the `Pop`, and its gradient straight back.

    Args:
        name: of the skip connection; each is stashed once and popped once in a forward.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Give x."""
        _carried.values[self.name] = x
        return x

    def extra_repr(self) -> str:
        """The name."""
        return repr(self.name)


class Pop(nn.Module):
    """Takes what the `Stash` of the same name put aside, and combines it with its input.

    Args:
        name: of the skip connection.
        combine: of ``(x, skip)``, such as ``torch.add``; left out, the two are handed on as a tuple.
    """

    def __init__(self, name: str, combine: Callable[[Tensor, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.name = name
        self.combine = combine

    def forward(self, x: Tensor) -> Any:
        """Give ``combine(x, skip)``, or ``(x, skip)``.

        Raises:
            SkipError: nothing of this name has been stashed.
        """
        if self.name not in _carried.values:
            there = ", ".join(map(repr, _carried.values)) or "nothing"
            raise SkipError(f"Pop({self.name!r}): not stashed, or popped already; stashed is {there}")
        skip = _carried.values.pop(self.name)
        return (x, skip) if self.combine is None else self.combine(x, skip)

    def extra_repr(self) -> str:
        """The name."""
        return repr(self.name)


@contextmanager
def carrying(values: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Let forwards in this thread stash into, and pop from, `values` alone."""
    outside = _carried.values
    _carried.values = values
    try:
        yield values
    finally:
        _carried.values = outside


class Skip(NamedTuple):
    """One skip connection.

    Attributes:
        name: of its `Stash` and `Pop`.
        source: the stage that stashes.
        target: the stage that pops.
    """

    name: str
    source: int
    target: int


Use = tuple[str, str]  # "Stash" or "Pop", and the name


def skips_of(module: nn.Module) -> tuple[Use, ...]:
    """What a stage stashes and pops, in the order of its modules."""
    every = (part for _, part in module.named_modules(remove_duplicate=False))
    return tuple((type(part).__name__, part.name) for part in every if isinstance(part, (Stash, Pop)))


def match_skips(stages: Sequence[nn.Module] | Mapping[int, Sequence[Use]]) -> tuple[Skip, ...]:
    """Check that each skip connection is stashed once, and popped once, later.

    Args:
        stages: all stages in order; or for each stage what `skips_of` says of it.

    Returns:
        the skips, sorted by name.

    Raises:
        SkipError: naming the stage and the skip that are wrong.
    """
    uses = stages if isinstance(stages, Mapping) else {number: skips_of(stage) for number, stage in enumerate(stages)}
    stashed: dict[str, int] = {}
    popped: dict[str, int] = {}
    stashes = {name: stage for stage in sorted(uses) for what, name in uses[stage] if what == "Stash"}
    for stage in sorted(uses):
        for what, name in uses[stage]:
            if what == "Stash" and name in stashed:
                _fail(name, stage, f"stage {stage} stashes it, but stage {stashed[name]} has stashed it already")
            if what == "Pop" and name in popped:
                _fail(name, stage, f"stage {stage} pops it, but stage {popped[name]} has popped it already")
            if what == "Pop" and name not in stashed:
                later = f"only stage {stashes[name]} stashes it, later" if name in stashes else "no stage stashes it"
                _fail(name, stage, f"stage {stage} pops it, but {later}")
            (stashed if what == "Stash" else popped)[name] = stage
    for name, stage in stashed.items():
        if name not in popped:
            _fail(name, stage, f"stage {stage} stashes it, but no stage pops it")
    return tuple(Skip(name, stashed[name], popped[name]) for name in sorted(stashed))


def _fail(name: str, stage: int, what: str) -> NoReturn:
    raise SkipError(
        f"skip {name!r}: {what}. Each skip needs one Stash and, after it, one Pop",
        stage=stage,
        values={"skip": name},
    )
