"""One measured line of the table."""

from __future__ import annotations

from typing import NamedTuple


class Result(NamedTuple):
    """What was measured, against which budget.

    Attributes:
        what: the two things compared, with their own values.
        value: the measurement.
        budget: what it may be.
        kept: whether it is; None: it was not measured.
        remark: anything else.
    """

    what: str
    value: str
    budget: str
    kept: bool | None
    remark: str = ""
