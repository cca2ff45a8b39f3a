"""Hints for the mistakes of interleaved and zero-bubble schedules: Z70 to Z91 of the catalogue."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

Z70 = Mistake(
    "Z70",
    "Neighbouring stages lie on one rank: that is one thick slice again, cut for nothing.",
    "Interleaving shortens the way through the ranks because a micro-batch leaves a rank after one thin chunk. "
    "Chunks of one rank that follow each other give back what was won.",
    "The drawing in the task, along the arrows: on which rank does the stage after stage 0 lie?",
)

NOT_PLACED = Mistake(
    "",
    "Some stages lie on another rank than the task says.",
    "Everybody must agree on where a stage lies: a rank sends its output to the rank that holds the next stage.",
    "The drawing in the task, beside the ranks that the report lists for stage 0, stage 1, and so on.",
)

Z71 = Mistake(
    "Z71",
    "The stages lie where the other placement would put them.",
    "In a V a micro-batch turns round at the last rank, and comes back through the ranks in the other order.",
    "What your function does with `placement`. Try the last stage with both values.",
)

Z72 = Mistake(
    "Z72",
    "The way down the V is right, the way up is not.",
    "The turn lies inside the last rank: there a micro-batch goes on to the next stage without a message, and then "
    "visits the other ranks once more.",
    "Your ranks of the stages next to the turn, and of the last one, for two ranks. Count the stages from zero.",
)

Z73 = Mistake(
    "Z73",
    "All forwards come before the first backward, so a rank holds all micro-batches of all its chunks at once.",
    "That is GPipe with thin stages. Its idle time is as short, but the activations that the warm-up piles up are "
    "what 1F1B was made to avoid.",
    "The place where your warm-up ends. Does its length depend on the rank?",
)

Z74 = Mistake(
    "Z74",
    "A rank takes its forwards through the chunks in another order than the one asked for.",
    "A round of micro-batches, one for each rank, goes through a chunk, and then the same round through the next. "
    "With longer rounds the next chunk starves, with shorter ones a rank waits for its own micro-batch to come round.",
    "The row of rank 0: when does it leave its first chunk, and when does it come back to it?",
)

Z75 = Mistake(
    "Z75",
    "The forwards go through the chunks in the right order, the backwards do not.",
    "A gradient travels the model from its end to its beginning, so of a rank's chunks one can begin long before "
    "the others.",
    "Write down the backwards of the last rank alone: which of its chunks has the loss right behind it, for how many "
    "micro-batches does it stay there, and where does it go then?",
)

Z76 = Mistake(
    "Z76",
    "A rank runs too many or too few forwards before its first backward.",
    "Before a rank's first backward a round must have been through every chunk but its last. Then each rank fills "
    "the ranks after it, and here it has to fill the way back as well.",
    "Your warm-up of the last rank, and of the one before it. By how much do they differ?",
)

TOO_FEW = Mistake(
    "",
    "With as many micro-batches as ranks it goes wrong, with more of them it is right.",
    "A rank far from the end would like more forwards in its warm-up than it has.",
    "Your warm-up of the first of four ranks, for four micro-batches and two chunks. How many has it?",
)

NOT_INTERLEAVED = Mistake(
    "",
    "The schedule can run, but it takes longer, or holds more, than interleaved 1F1B.",
    "After the warm-up each rank runs one forward, then one full backward, in turn, until the forwards are over.",
    "The row of the rank that waits, after its first backward.",
)

Z77 = Mistake(
    "Z77",
    "Some boundary between stages was forgotten.",
    "Every boundary of the model that lies between two ranks carries a message there and one back, for each "
    "micro-batch. With chunks there are also boundaries where the model goes from the last rank to the first.",
    "Write all stages in a row, with their ranks. How many neighbours lie on different ranks?",
)

ONE_WAY = Mistake(
    "",
    "Half of the messages are missing.",
    "A micro-batch crosses the model twice in a step, and every crossing of a boundary between ranks is a message.",
    "What you counted for one micro-batch over one boundary, in a whole step.",
)

Z78 = Mistake(
    "Z78",
    "This is what plain 1F1B holds, as if chunks changed nothing or only the unit.",
    "Before the first backward can come to rank 0, a whole round has to pass all chunks, and more forwards fill the "
    "ranks until the first gradient is back.",
    "The warm-up of rank 0 in your schedule of the second task: how many forwards has it run when its first backward "
    "begins?",
)

Z79 = Mistake(
    "Z79",
    "The idle time of thin stages is not that of thick ones.",
    "The idle time is what it takes to fill and to drain the ranks, and both are made of single chunks.",
    "The beginning of the last rank's row: how long does it wait for its first chunk, if a chunk is half a stage?",
)

Z80 = Mistake(
    "Z80",
    "The second half fails: PyTorch says that the graph is no longer there.",
    "A walk through the graph frees what it was built from as it goes, because mostly nobody walks it again. "
    "Here somebody does.",
    "The first of your two walks. What must it be told about what comes after it?",
)

Z81 = Mistake(
    "Z81",
    "The first half does the work of the second half, too: the rank before waits for all of it.",
    "A split backward is quicker for the rank before because the gradients of the weights are not computed yet. "
    "A full backward computes both, whatever is returned of it.",
    "The call in your first half: for which tensors does it compute gradients?",
)

Z82 = Mistake(
    "Z82",
    "The second half computes the gradient of the input again.",
    "Together the two halves should cost what one full backward costs. A full backward in the second half repeats "
    "the first one's matrix product.",
    "The call in your second half: which gradients are asked of it, and does it compute others beside them?",
)

Z83 = Mistake(
    "Z83",
    "The numbers are right, but they are in each other's place.",
    "The caller sends the one result to the rank before and adds the others to the weights, in the order in which "
    "the stage lists them.",
    "What each function returns, and in what order, beside the lines of the task's text that begin with *Returns*.",
)

Z84 = Mistake(
    "Z84",
    "The first micro-batch is right, and later ones also hold the gradients of those before them.",
    "A full backward adds to what a parameter already holds. Here every micro-batch's share is asked for by itself; "
    "the caller adds them up.",
    "Where your result comes from: is it new for each call?",
)

Z85 = Mistake(
    "Z85",
    "There is still a full backward in the schedule, which cannot be put off.",
    "As long as a backward is one action, the rank before waits for all of it, and that is 1F1B's idle time. "
    "Only halves can be put in different places.",
    "The actions that you write for a backward: how many are there for each micro-batch?",
)

Z86 = Mistake(
    "Z86",
    "A weight gradient comes before the input gradient of the same micro-batch.",
    "The second half uses what the first leaves behind: the gradients of the layers' outputs.",
    "The marked cell, or the first W of each rank: has its I been there?",
)

Z87 = Mistake(
    "Z87",
    "All weight gradients wait until the last input gradient is done, and their leftovers fill the memory.",
    "A W that is put off keeps something for every micro-batch. ZB-H1 puts off only as many as later fill what would "
    "be idle time, so that no rank holds more than 1F1B's first.",
    "The steady state of the first rank. Does it ever have to wait, and so anything to put off?",
)

Z88 = Mistake(
    "Z88",
    "Every weight gradient follows its input gradient at once, so the split wins nothing at the end.",
    "While the last gradients travel back to the first rank, the ranks behind it wait. Work that was put off could be "
    "done then, but here none is left.",
    "The end of the last rank's row in the grid: what could be done there if it had not been done before?",
)

Z89 = Mistake(
    "Z89",
    "The weight gradients are put off, but on the wrong ranks.",
    "A rank has room for work that was put off where it waits at the end: the later ranks are done first. And the "
    "earlier ones already hold the most activations.",
    "How many weight gradients the first rank has put off, and how many the last. Which of them should have more?",
)

Z90 = Mistake(
    "Z90",
    "The forwards before the first input gradient are too many or too few.",
    "Forwards and input gradients go in 1F1B's order. The halves change nothing in the warm-up.",
    "Your warm-up, for the last rank and for the first, and with fewer micro-batches than ranks.",
)

Z91 = Mistake(
    "Z91",
    "Some micro-batches never get their weight gradients: the end of the schedule is missing or too short.",
    "What was put off is still owed when the last input gradient is done.",
    "What comes after your last input gradient. How many weight gradients are left, on this rank?",
)

NOT_ZB_H1 = Mistake(
    "",
    "The schedule can run, but it takes longer, or holds more, than ZB-H1.",
    "Input gradients are urgent, because the rank before waits for them. Weight gradients are not, but each one that "
    "is put off takes memory until it is done.",
    "The row that the report names: where does it wait, and where does it hold the most?",
)

N12_HALF = Mistake(
    "N12",
    "The gradients are those of the sum of the stage's outputs: as if each output mattered as much as any other.",
    "The chain rule multiplies by the gradient of the loss with respect to the outputs. "
    "A walk that is started without it takes ones instead.",
    "The line that starts the walk through the graph. Where does the task's `output_grad` enter it?",
)
