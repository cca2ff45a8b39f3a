"""Hints for the mistakes of data parallelism: D42 to D59 of the catalogue."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

D42 = Mistake(
    "D42",
    "The replicas do not begin with the same parameters: a rank still has those that it was built with.",
    "Replicas stay alike only because equal weights take equal steps. Equal gradients cannot bring together what began "
    "apart, and an average over different models means little.",
    "What your function does before the first step: for whose parameters, and on which ranks does it run?",
)

D43 = Mistake(
    "D43",
    "The parameters are the first rank's everywhere, but a buffer is still each rank's own.",
    "Not everything that a model computes with is a parameter. Buffers, such as running means, have no gradient, so "
    "nothing will ever bring them together later.",
    "What your function goes through: does that hold everything that belongs to the state of a model?",
)

D44 = Mistake(
    "D44",
    "The gradients point the right way, and are too large: they are the sum of the replicas' gradients.",
    "Gradients add up, in an all-reduce as in a backward, if nothing else is said. Each replica's loss is already a "
    "mean over its own rows, and the sum of several means is no mean.",
    "By what each replica's loss or gradient is scaled before or after it is added. Which number belongs there?",
)

D45 = Mistake(
    "D45",
    "With equal shards all is right. With shards of different sizes, the rows of a small one count more than the "
    "others.",
    "The mean of means is the mean of all only if every group has the same size. A replica with few rows must weigh "
    "less than one with many.",
    "The number by which you scale a replica's gradient or loss. How many rows does this replica have, and how many "
    "are there in all?",
)

D46 = Mistake(
    "D46",
    "Numbers of the parameters' size went over the ranks, but each step was taken with the gradient of the rank's own "
    "shard.",
    "Averaging the parameters comes to the same only where a step is linear in the gradient, as in SGD. Adam, for one, "
    "has by then made something else of each rank's gradient; and the task asks for equal gradients at the step.",
    "The tensor that your all-reduce is given, and where it stands: before the optimizer's step or after it?",
)

D47 = Mistake(
    "D47",
    "Gradients were used, or handed on, before they were there.",
    "A gradient is complete when the backward has computed it, and averaged when its all-reduce is over. An "
    "asynchronous call returns before that, and what is in the tensor until then is luck.",
    "The order of backward, all-reduce, wait and step; and for each all-reduce the line that waits for it.",
)

D48 = Mistake(
    "D48",
    "The gradients are those of the last micro-batch alone; what the others had accumulated is lost.",
    "A hook on a tensor is handed the gradient of the running backward, before it is added to what is there. "
    "Another kind of hook runs when the addition is done.",
    "What your hook takes its numbers from, and when it runs: before or after they are accumulated?",
)

D49 = Mistake(
    "D49",
    "All-reduces ran for micro-batches before the last one.",
    "Gradients accumulate over the micro-batches, and need to be averaged once, when they are complete. Every earlier "
    "all-reduce costs the same bytes again, and with sums instead of means it also counts the first ones several "
    "times.",
    "What your hook does in a backward that is not the last one of its step, and how it can know that.",
)

D49_COUNTED = Mistake(
    "D49",
    "So many there would be if gradients travelled in the backward of every micro-batch, or for all four ranks "
    "together.",
    "Gradients accumulate over the micro-batches, and need to be averaged once, when they are complete. And what is "
    "asked for is one rank's part.",
    "The task's text: in which backwards do gradients travel, and for how many ranks is the number?",
)

D50 = Mistake(
    "D50",
    "The gradients of two buckets are mixed: on one rank this bucket was reduced together with that one of another "
    "rank.",
    "All-reduces carry no names: the first one of a rank meets the first one of the others. The gradients need not "
    "become complete in the same order on every rank.",
    "What decides which bucket goes next. Is that the same on all ranks, also where their backwards run in another "
    "order?",
)

D51 = Mistake(
    "D51",
    "The ranks came to the same collective with tensors of different shapes.",
    "A collective adds up place by place, so it needs the same shape on every rank. What depends on a rank's own rows, "
    "or on which parameters it happened to use, has another shape elsewhere.",
    "The tensor in the quoted line: what decides how many numbers it has, and is that the same on all ranks?",
)

D52 = Mistake(
    "D52",
    "A rank waits for ever for an all-reduce that another one never begins: there, a parameter took no part in the "
    "loss.",
    "The hook of a parameter that is not used never runs, and its bucket is never complete. The other ranks know "
    "nothing of that, and wait.",
    "What becomes of a bucket that is still incomplete when the backward is over, and what a missing gradient counts "
    "as.",
)

D52_UNUSED = Mistake(
    "D52",
    "A parameter that this rank did not use has no gradient afterwards, while other ranks have the mean.",
    "The replicas must step alike, also where one of them did not use a parameter: it takes part with nothing, and "
    "gets the mean all the same.",
    "The place where the means are handed back: for which parameters does it do nothing?",
)

D53 = Mistake(
    "D53",
    "A weight that two layers share is treated as two.",
    "Tied weights are one parameter with one gradient, to which both uses have already been added. A walk through "
    "the layers meets it twice.",
    "How you collect the parameters: how many do you get, and how many different ones are among them?",
)

D54 = Mistake(
    "D54",
    "Only single numbers went over the ranks, such as losses, and no gradient did: every replica learns from its own "
    "shard.",
    "A backward starts from this rank's graph. What an all-reduce writes into a loss is no part of that graph, so the "
    "gradients know nothing of it.",
    "The tensors that you reduce: which of them does the optimizer use?",
)

D55 = Mistake(
    "D55",
    "The model was wrapped, but the loop calls the model inside: the wrapper never hears of the forward, and averages "
    "nothing.",
    "The wrapper prepares the averaging when it is called itself. A call to what is inside, or to the model by its old "
    "name, goes past it, without an error.",
    "The name that is called with the images: what does it stand for?",
)

D56_NO_SHARDS = Mistake(
    "D56",
    "Every rank gets the same rows.",
    "If all replicas see the same data they compute the same gradients: the machine does one rank's work, several "
    "times over.",
    "Which rows a rank takes: does the rank occur in that?",
)

D56_EPOCH = Mistake(
    "D56",
    "Every epoch has the same rows in the same order.",
    "A shuffle that always starts from the same seed always gives the same order, and then a rank never sees the "
    "other ranks' rows at all. Something must tell it that a new epoch has begun.",
    "What your shuffle depends on: is the epoch part of it?",
)

D57 = Mistake(
    "D57",
    "Rows that were repeated to make the shares equal are counted in the metric.",
    "Padding keeps the ranks in step, but it is no data: with it, the same model has another score on another number "
    "of ranks.",
    "Which of this rank's entries stand for a row of the data set, and which are repeats? Where in the padded list do "
    "the repeats begin?",
)

D58 = Mistake(
    "D58",
    "The rule of thumb for the learning rate is another one. The check compared: several small steps in one process "
    "against one step with each of the rates.",
    "With more rows for each step there are fewer steps for each epoch. A mean over more rows is no larger than one "
    "over few, so with the same rate the weights move less.",
    "How far several small steps go along nearly the same direction, and how far one step must go to get there.",
)

D59 = Mistake(
    "D59",
    "The two are not the same here. The check ran both, with two replicas and unequal shards.",
    "One of them computes the loss from all outputs, in one place. The other one has a loss on each rank, over that "
    "rank's rows, and averages what comes of it.",
    "Write down for both what a row of the small shard and a row of the large one contribute to the gradient.",
)
