"""Hints for what can go wrong with replicas' rows, and with a metric over all of them."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

OTHER_SHUFFLES = Mistake(
    "",
    "Together the ranks' shares are not the data set: some rows come twice, others never.",
    "Shares fit together only if all ranks cut the same list. If each one shuffles by itself, with its own random "
    "numbers, they cut different lists.",
    "Where your shuffle gets its random numbers from. What would make them the same on all ranks?",
)

REMAINDER = Mistake(
    "",
    "Where the rows don't divide by the ranks, some are never seen.",
    "Rounding down leaves a remainder, and the rows in it are lost: in the worst case the same ones in every epoch.",
    "How many rows each rank gets. Try ten rows on four ranks.",
)

UNEQUAL_SHARES = Mistake(
    "",
    "The ranks get different numbers of rows.",
    "Every step has a collective in which all ranks take part. A rank with fewer rows makes fewer steps, and the "
    "others wait for it for ever.",
    "How many rows each rank gets if they don't divide. Which rows could stand in for the missing ones?",
)

TOO_MANY_ROWS = Mistake(
    "",
    "The ranks get more rows than it takes: rows are repeated for nothing.",
    "Repeats make the shares equal, and nothing else. Every further one costs time, and lets a row count twice.",
    "How long the list is that you cut in shares. What is the smallest length that divides by the ranks?",
)

D56_SAME_SHARE = Mistake(
    "D56",
    "The order changes from epoch to epoch, but a rank always gets the same rows, and never sees the others.",
    "To shuffle the share of a rank is not to shuffle the data set. Each replica's gradients would always be those of "
    "the same few rows.",
    "What comes first in your function: the shuffle, or the cut into shares?",
)

MEAN_OF_SHARES = Mistake(
    "",
    "This is the mean of the ranks' accuracies, and the ranks have different numbers of rows.",
    "The mean of means is the mean of all only if every group has the same size.",
    "Which numbers go over the ranks. Which two would let you compute the accuracy exactly?",
)

OWN_METRIC = Mistake(
    "",
    "This is the accuracy of the rank's own rows.",
    "A rank knows nothing of what the model did with the other ranks' rows, as long as nobody tells it.",
    "What of your function's numbers goes over the ranks, and when.",
)

OTHER_PLACES = Mistake(
    "",
    "Where nothing is repeated the accuracy is right. Where rows are, the wrong entries are left out or counted.",
    "The repeats stand at the end of the padded list, which was dealt out like cards: its last entries are on several "
    "ranks, one on each.",
    "For each entry of this rank, the place in the padded list that the task's text gives it. Try ten rows on four "
    "ranks on paper.",
)

SCALED_METRIC = Mistake(
    "",
    "The accuracy is wrong by one constant factor.",
    "It is the number of right rows divided by the number of rows: a part of 1, divided once.",
    "Every number by which you divide or multiply, what the collective itself divides by included.",
)

ADDED_AS_BOOL = Mistake(
    "",
    "Ranks that are right at the same place count as one: True and True, added up, are True.",
    "An all-reduce adds up place by place, in the tensor's own dtype. Among booleans a sum is an `or`.",
    "The dtype and the shape of the tensor that goes over the ranks.",
)
