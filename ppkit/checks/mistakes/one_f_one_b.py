"""Hints for the mistakes of 1F1B: F33 to F41 of the catalogue."""

from __future__ import annotations

from dataclasses import replace

from ppkit.checks.mistakes import Mistake

F33 = Mistake(
    "F33",
    "A rank runs too many forwards, or too few, before its first backward.",
    "The warm-up fills the ranks that come after this one. The last rank has nobody after it, and can begin its first "
    "backward as soon as its first forward is done.",
    "Your number of warm-up forwards, for the last rank and for the first. How many ranks come after each of them?",
)

F34 = Mistake(
    "F34",
    "With fewer micro-batches than ranks it goes wrong, with enough of them it is right.",
    "A rank far from the end would like more warm-up forwards than there are micro-batches.",
    "Your number of warm-up forwards, for the first of four ranks and two micro-batches.",
)

BEYOND_THE_LAST = Mistake(
    "",
    "A rank's row goes beyond the last micro-batch.",
    "Warm-up and steady state share the forwards: those that ran in the warm-up are not there for the pairs any more.",
    "The number of pairs in your steady state. How many forwards are left when it begins?",
)

F35 = Mistake(
    "F35",
    "All ranks run the same number of forwards before their first backward.",
    "The warm-up differs from rank to rank: it is long at the front of the pipeline and gets shorter towards its end. "
    "Only so do the ranks meet in the steady state.",
    "Your number of warm-up forwards: does the rank occur in it?",
)

F36 = Mistake(
    "F36",
    "A rank's backwards and the gradients that arrive for them belong to different micro-batches. "
    "Equal shapes hide it.",
    "The last rank works through the micro-batches in their order, and its gradients come back in that order. "
    "Messages carry no names: whoever receives must know whose turn it is.",
    "The place where a stored micro-batch is taken out again. From which end?",
)

F37 = Mistake(
    "F37",
    "Some forwards never get their backward: the end of the schedule is missing or too short.",
    "In the steady state each forward comes with one backward. Those that were ahead after the warm-up are still owed "
    "when the forwards are over.",
    "What comes after your steady state. How many backwards are left, on this rank?",
)

F38 = Mistake(
    "F38",
    "A deadlock in the steady state: two neighbours send to each other at the same time, and both wait.",
    "A blocking send returns when the other side has received. In the steady state one neighbour sends an activation "
    "while the other sends a gradient, and each waits for the other to receive.",
    "The sends of your steady state: what could a rank do between beginning to send and being done with it?",
)

F39 = Mistake(
    "F39",
    "The order is 1F1B's, but the activations stay: a rank holds more micro-batches than its warm-up and one.",
    "What a schedule saves in memory is saved only if nothing refers to a micro-batch's output after its backward. "
    "A list that still holds it keeps its whole graph alive.",
    "Everything that holds stage inputs, outputs or losses. What of it is still needed after the backward?",
)

F40 = Mistake(
    "F40",
    "The simulation of both schedules shows something else. Many texts are wrong here, too.",
    "Ranks are idle while the pipeline fills and while it drains. When can the last rank begin, and how long after its "
    "end does the first rank end?",
    "The two grids, side by side: count the idle cells of one rank in each.",
)

F41 = Mistake(
    "F41",
    "Numbers are right, but sends were begun that nobody waited for.",
    "A send in flight reads its tensor until it is done, and its error reaches only those who wait. Code that does not "
    "wait may free or change the tensor too early; that it went well once is luck.",
    "What your asynchronous sends return: where is it kept, and where is it waited for?",
)

F41_SPOILT = replace(
    F41,
    see="What arrived is not what the sender's tensor held when your function was called, but what its owner wrote "
    "into it afterwards.",
    why="A send in flight reads its tensor until it is done, and its error reaches only those who wait. Code that does "
    "not wait may free or change the tensor too early.",
)

F41_LOST = Mistake(
    "F41",
    "A send was begun and dropped: nobody waited for it, and the message never arrived.",
    "A send that does not block is under way for as long as somebody keeps what it has returned. "
    "Dropped, or left alone by a function that returns, it ends before the other side has received.",
    F41.look,
)

F41_RECEIVE = Mistake(
    "F41",
    "A receive was begun, and nobody waited for it: its message was not there when it was needed.",
    "A receive that does not block is under way for as long as somebody keeps what it has returned. "
    "Dropped, it may end before the message is there, and then the other side's send has nobody to meet.",
    "What your asynchronous receives return: where is it kept, and where is it waited for?",
)

G21_BETWEEN = Mistake(
    "G21",
    "Some micro-batches go through rank 0 with other weights than the rest of their batch.",
    "The micro-batches are one batch, and their gradients belong to the same weights. In 1F1B forwards and backwards "
    "take turns: what happens between two of them happens while other micro-batches are under way.",
    "Everything in the loop that is neither a forward, nor a backward, nor a message.",
)

NOT_ONE_F_ONE_B = Mistake(
    "",
    "The schedule can run, but it is not 1F1B: after the warm-up, forwards and backwards do not alternate.",
    "After the warm-up each rank runs one forward, then one backward, in turn, until the forwards are over. "
    "That is what bounds the activations that it holds.",
    "The row that the report names, after its first backward.",
)
