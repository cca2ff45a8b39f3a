"""Hints for a schedule, written as data, that cannot run as it stands."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

REPEATED = Mistake(
    "",
    "A rank's row holds an action twice. The report says where.",
    "Each rank computes each action of its stages once. Where one stands twice, mostly another is missing: "
    "numbers begin at the wrong place, or the same list was extended for several ranks.",
    "The line of yours that writes the second one: through which numbers does it go, and which of them has the row "
    "by then?",
)

ABSENT = Mistake(
    "",
    "An action is missing. The report says which, and on which rank it belongs.",
    "Every micro-batch goes forward and backward through every stage. What a rank leaves out, nobody else can do.",
    "The numbers through which your loops go, on this rank: where does each of them begin, and where does it end?",
)

MISPLACED = Mistake(
    "",
    "A rank has an action of a stage that lives on another rank. In the report it stands in brackets.",
    "The first number of an action is its stage, the last one its micro-batch. A rank computes its own stages and "
    "no other, and each rank has a row of its own.",
    "How the first number of the marked action comes about, and which row you put it in. "
    "Are the rows lists of their own?",
)
