"""The names of `torch.distributed.pipelining` that are private, in one place."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from ppkit.errors import PpkitError

__all__ = ["TorchNames", "torch_names"]


class TorchNames(NamedTuple):
    """What the bridge takes from torch.

    Attributes:
        Action: one cell of a schedule; private.
        Runtime: runs any schedule; private, and so is its `_load_csv`.
        Single: the parent of the classes with one stage a rank.
        schedule_class: a class by its name.
    """

    Action: Any
    Runtime: Any
    Single: Any
    schedule_class: Any


@cache
def torch_names() -> TorchNames:
    """Look the names up.

    Raises:
        PpkitError: this release of torch lacks one.
    """
    import torch

    try:
        from torch.distributed.pipelining import schedules

        runtime = schedules._PipelineScheduleRuntime
        runtime._load_csv  # noqa: B018  # that it is there
        return TorchNames(schedules._Action, runtime, schedules.PipelineScheduleSingle, schedules.get_schedule_class)
    except (ImportError, AttributeError) as error:
        raise PpkitError(
            f"torch {torch.__version__} lacks what ppkit.bridge runs schedules by: {error}. They are private "
            "names of torch.distributed.pipelining.schedules. Use ppkit.runtime, or a torch that has them (2.13 has)",
            values={"torch": torch.__version__},
        ) from None
