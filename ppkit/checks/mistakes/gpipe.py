"""Hints for the mistakes of a training step over micro-batches: G18 to G32 of the catalogue."""

from __future__ import annotations

from dataclasses import replace

from ppkit.checks.mistakes import Mistake

G18 = Mistake(
    "G18",
    "The gradients point the right way, and are too large: with micro-batches of equal size by exactly their number.",
    "Backwards add their gradients up. If each micro-batch contributes as much as a whole batch would, "
    "the sum is that many times too large.",
    "The loss of one micro-batch. How much of the batch's loss is its share?",
)

G19 = Mistake(
    "G19",
    "The gradients point the right way, and are too small: by exactly the number of micro-batches.",
    "The share of a micro-batch is taken twice: once where its loss is made, and once more somewhere else.",
    "Every division in your step, and what the losses have been divided by before they get there.",
)

G20 = Mistake(
    "G20",
    "With micro-batches of equal size all is right. With a smaller last one, its rows count more than the others.",
    "The mean of means is the mean of all only if every group has the same size. "
    "A micro-batch of few rows must weigh less than one of many.",
    "What the sum over a micro-batch's rows is divided by. Which number makes every row of the batch count the same?",
)

G21 = Mistake(
    "G21",
    "The optimizer takes more than one step for a batch.",
    "The micro-batches are one batch: their gradients belong to the same weights. A step in between changes the "
    "weights, and the backwards that follow are those of a model that no longer exists.",
    "How often the line with the optimizer's step runs for each call of your function.",
)

G22 = Mistake(
    "G22",
    "The first step is right. From the second on, the parameters are those that come out when gradients of earlier "
    "steps are still counted.",
    "A backward adds to the gradients that are there. Nothing takes them away by itself.",
    "The beginning, or the end, of your step: what must hold for the gradients before the first backward?",
)

G22_BETWEEN = Mistake(
    "G22",
    "The parameters have learned from one micro-batch alone, the last one.",
    "Gradients of the micro-batches must add up over the step. What clears them in between throws the others away.",
    "Where your step clears the gradients: how often does that line run for one batch?",
)

G23 = Mistake(
    "G23",
    "All micro-batches were received into one and the same piece of memory.",
    "A backward needs the input that its forward saw. If the next message overwrites it, "
    "the numbers of all but the last micro-batch are gone, and autograd cannot know.",
    "The line that makes the receive buffer. How often does it run, and how many inputs must be alive at once?",
)

G24 = Mistake(
    "G24",
    "A backward goes through the same graph a second time: that of one micro-batch, while another's is never used.",
    "Each forward makes a graph of its own, and each backward uses one up. "
    "A name that is set in a loop holds the last one alone.",
    "What your forwards leave for the backwards: is there something for every micro-batch?",
)

G24_LIST = Mistake(
    "G24",
    "What you return does not have one pair for every micro-batch.",
    "Each micro-batch has a graph of its own, from its stage input to its output, and each gets a backward of its own "
    "later. What is not in the list cannot have one.",
    "What each round of your loop adds to the list, and in which round your function returns.",
)

G19_LOSS = Mistake(
    "G19",
    "The gradients point the right way, and are too small. The report says by which factor.",
    "Unless it is told otherwise, `cross_entropy` takes the mean over the rows it is given, and every division "
    "after it makes the gradients smaller once more.",
    "Every division and every mean in your loss. Each micro-batch has its own number of rows: "
    "which number of rows does the task divide by, and how often?",
)

LOSS_WITHOUT_GRAPH = Mistake(
    "",
    "The loss that you return has no history, so no backward can start from it.",
    "Autograd records what happens to tensors. A plain Python number, or a detached copy, carries the value alone.",
    "What happens to the loss between `cross_entropy` and the end of your function.",
)

LOSS_USED_UP = Mistake(
    "",
    "A backward from the loss that you return fails: its graph has been used up.",
    "A backward frees its graph as it goes, unless it is told to keep it. Whoever gets a loss wants to start from it.",
    "What your function does with the loss before it returns it. Which part of that does the task ask for?",
)

G25 = Mistake(
    "G25",
    "The gradients of the micro-batches are swapped: each backward runs with the gradient of another micro-batch.",
    "Messages between two ranks arrive in the order in which they were sent, and say nothing of what they are. "
    "Both ends must go through the micro-batches in the same order; equal shapes hide it if they don't.",
    "The order of your backwards, beside the order in which the neighbour sends the gradients.",
)

G26 = Mistake(
    "G26",
    "The numbers are right, and a backward was told to keep its graph, so that memory fills with what nobody needs.",
    "A graph must be kept only if a second backward goes through it. In a pipeline each micro-batch has a graph of its "
    "own, which one backward uses up.",
    "The arguments of your backwards. If an error made you write one of them: which graph was gone through twice, "
    "and why?",
)

G27 = Mistake(
    "G27",
    "The numbers are right, but on the last rank one backward goes through all micro-batches at once.",
    "As long as that one backward runs, no gradient can leave, and the ranks before wait. "
    "A pipeline lives from handing on each micro-batch's gradient as soon as it is there.",
    "The last rank's loop: when does the first gradient travel back, and how many backwards have run by then?",
)

G29 = Mistake(
    "G29",
    "This is the idle time measured against the busy time, not against the whole.",
    "Two numbers are called bubble: idle time divided by ideal time, and idle time divided by all the time there is. "
    "They come close to each other only if there are many micro-batches.",
    "The task's text: of which time is the part asked? Count the columns of the grid, and how many of them are idle on "
    "a rank.",
)

G32 = Mistake(
    "G32",
    "The weights are right, and the loss that is returned is not that of the batch.",
    "For training, each micro-batch's loss is scaled to its share. What is told to a reader is the loss of the whole "
    "batch: neither one share of it, nor the shares scaled again.",
    "What your step adds up for its return value, and in what units those numbers are.",
)

NOT_GPIPE = Mistake(
    "",
    "The schedule can run, but it is not GPipe's: on some rank a backward stands before a forward.",
    "In GPipe the ranks work through all micro-batches forward, and then through all of them backward. "
    "That is what makes it simple, and what it pays for with memory.",
    "The row that the report names: which actions belong to its first half?",
)

FORWARDS_OUT_OF_ORDER = Mistake(
    "",
    "The forwards of a rank are not in the order that the task asks for.",
    "Messages carry no names: the second rank takes the first message for the micro-batch that it expects.",
    "The numbers through which your forwards go, on the rank that the report names.",
)

ONE_BY_ONE = Mistake(
    "",
    "The numbers are right, but the micro-batches go through one after the other: a backward ran before the last "
    "forward.",
    "If the next micro-batch starts only when this one has come back, the other ranks are idle meanwhile, "
    "and cutting the batch has gained nothing.",
    "The loops of your step: which of them runs over all micro-batches, and what stands inside it?",
)

EARLY_BACKWARD = replace(
    ONE_BY_ONE,
    see="The numbers are right, but on some rank a backward ran before the last forward: that is not GPipe's order.",
    why="GPipe runs all forwards first. If each micro-batch even waits until the one before has come back, cutting the "
    "batch has gained nothing.",
)
