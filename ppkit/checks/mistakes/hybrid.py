"""Hints for the mistakes of hybrid training: H60 to H67 of the catalogue, and what goes with them."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

# The mesh and its groups

H60 = Mistake(
    "H60",
    "Rows and columns of the mesh are mixed up.",
    "Neighbours in a pipeline have neighbouring ranks, so the ranks fill the mesh row by row. Along a row lie "
    "different layers; only along a column lie copies of the same weights.",
    "The mesh that the task draws. Put the ranks of your groups into it: which of them hold the same stage?",
)

H60_WORLD = Mistake(
    "H60",
    "Ranks of all stages took part in what concerns the copies of one stage alone.",
    "A collective that is not told its group runs over the world, all ranks. It then mixes different layers, and "
    "where their shapes happen to be equal nobody complains.",
    "Every collective of your function: which ranks should take part in it, and which does it name?",
)

H61 = Mistake(
    "H61",
    "Not all ranks asked for the same groups in the same order.",
    "To make a group is itself something that all ranks of the world do together, also those that will not be in it. "
    "If they don't, the ranks no longer agree on which group is which, and wait for each other in different places.",
    "Each line that makes a group: on which ranks does it run, and with what, if you count through the ranks?",
)

H62 = Mistake(
    "H62",
    "A rank's number inside a group was used where its number in the world is meant. In the first row and the first "
    "column the two can be the same, elsewhere they are not.",
    "Inside a group ranks are counted from 0 again. Most calls expect the global number of a source or a destination, "
    "even if they are given a group.",
    "The source or destination of the call that the report names, on a rank of the last replica and the last stage. "
    "Whose number is it?",
)

LEFT_ALONE = Mistake(
    "",
    "A rank waits in a collective for ranks that never come to it.",
    "All ranks of a group must make the same collectives of that group, also those that have nothing of their own to "
    "tell. A rank that has returned, or waits elsewhere, leaves the others alone.",
    "The conditions around the waiting call: is each of them true on every rank of the group that the call is for?",
)

UNLIKE = Mistake(
    "",
    "Ranks came to one and the same collective with tensors that do not fit each other.",
    "Copies of a stage have weights of the same shapes, in the same order; ranks of different stages have not. "
    "Collectives carry no names: the first call of each rank belongs to the first call of the others, and so on.",
    "The calls that the report quotes: which ranks are in the group of each, and has every one of them made the same "
    "calls before?",
)

NOT_FROM_REPLICA_0 = Mistake(
    "",
    "A stage does not start with the weights of its copy in replica 0.",
    "One copy hands its weights out, all of them, and the others take them. A mean of the copies, the weights of "
    "another one, or numbers drawn anew let them start alike as well, but with other weights than the task names.",
    "For each of the stage's parameters: which rank hands it out in your function, and where do the others put it?",
)

NOT_IN_PLACE = Mistake(
    "",
    "The stage has other parameters than before, though with the right values.",
    "An optimizer holds the parameters that it was given. If others take their place in the stage, it goes on changing "
    "the old ones, which nobody computes with.",
    "What your function writes into: the parameter that is there, or a new one?",
)

# Data and the scale of gradients

H65 = Mistake(
    "H65",
    "The stages of one replica do not work on the same rows: the batch was divided over all ranks, or over the stages.",
    "A pipeline is one model. Its first stage needs the images of the very rows whose labels its last stage has.",
    "What your division counts: how many parts are there, and which of the two coordinates of a rank says which "
    "part is its own?",
)

NOT_DIVIDED = Mistake(
    "",
    "A replica works on the whole batch.",
    "Replicas that all do the same rows do the same work several times. Each should do its share of them.",
    "Where a replica takes its rows from the batch, before they are cut into micro-batches.",
)

LOST_ROWS = Mistake(
    "",
    "Together the replicas do not have every row of the batch exactly once.",
    "Each row must count once. A division that drops the remainder, or overlaps, changes what is learned.",
    "A batch whose rows the replicas cannot divide evenly: who gets those that are left over?",
)

UNEVEN = Mistake(
    "",
    "Every row is there once, but some replica has far more rows than another.",
    "All replicas wait for the slowest. Shares whose sizes differ by more than one row waste the others' time.",
    "How you divide a number of rows that is no multiple of the number of replicas.",
)

D44 = Mistake(
    "D44",
    "The gradients point the right way, and are too large: by exactly the number of replicas.",
    "An all-reduce adds. If each replica's loss is the mean over its own rows, the sum of their gradients is that of "
    "several batches.",
    "How much of the batch's loss a row stands for, in your loss and after the sum over the replicas.",
)

D45 = Mistake(
    "D45",
    "With shares of equal size all is right. Where a replica has a row less, its rows count more than the others.",
    "The mean of means is the mean of all only if every replica has the same number of rows. The same holds of "
    "micro-batches.",
    "What each replica's loss is divided by. Which number makes every row of the batch count the same?",
)

H64 = Mistake(
    "H64",
    "The gradients point the right way, and are too small: the number of all ranks is in them as a divisor.",
    "Only the replicas' gradients were added up. The ranks of other stages have added nothing to them, so they are not "
    "to be counted. Optimizers that divide a gradient by its own size, such as Adam, hide it.",
    "The number by which gradients or losses are divided. How many gradients does the sum hold?",
)

DIVIDED_TWICE = Mistake(
    "",
    "The gradients point the right way, and are too small: by exactly the number of replicas.",
    "If a row already counts with its share of the whole batch, the sum over the replicas is the gradient, and needs "
    "no divisor. If it counts with its share of the replica's rows, one is needed, once.",
    "Every division between a row's loss and the optimizer's step. Which of them accounts for the replicas?",
)

SCALE = Mistake(
    "",
    "The gradients point the right way, and are wrong by one constant factor, which the report names.",
    "The loss of the batch is a mean over its rows. Each row has one weight in it, whichever replica and micro-batch "
    "it is in.",
    "Every number by which a loss or a gradient is multiplied or divided. Which of them makes this factor?",
)

# When gradients are synchronised

H63 = Mistake(
    "H63",
    "The gradients were summed over the replicas before the last backward had run. What the later ones added stayed "
    "on its own rank, and the replicas drift apart.",
    "The gradients of micro-batches add up. They are complete when the last of the backwards has run, and that need "
    "not be the one of the last micro-batch.",
    "The condition under which your function sums: in which order do the backwards run, and which one is the last?",
)

H63_EVERY = Mistake(
    "H63",
    "The gradients were summed over the replicas more than once in a step.",
    "Gradients that were summed already and stay where they are take part in the next sum. If they are averaged the "
    "numbers can come out right, but the links carry everything once for each micro-batch.",
    "Where your sum over the replicas stands: how often does that line run for one batch?",
)

NOT_REDUCED = Mistake(
    "",
    "No gradients went from replica to replica, so that each replica has learned from its own rows alone.",
    "The replicas are one model. They stay equal only if each takes its step with the gradient of the whole batch.",
    "What stands between the backwards and the optimizer's step.",
)

NOT_CUT = Mistake(
    "",
    "A stage was not called once for each micro-batch.",
    "Without micro-batches the ranks of a pipeline take turns, and all but one are idle.",
    "What your loop over the forwards goes through, beside the number of micro-batches that the task names.",
)

# What crosses the stages

H66 = Mistake(
    "H66",
    "Each of the two copies of the tied weight has its own part of the gradient only.",
    "The tied weight is one parameter that is used twice. In one process autograd adds the two parts; on two ranks "
    "nobody does, and the copies drift apart.",
    "The gradient of the tied weight: which two ranks have something to tell each other, and does your function let "
    "them, before the norm is taken?",
)

H66_MEAN = Mistake(
    "H66",
    "Both copies of the tied weight have the same gradient, and it is half of the right one.",
    "What the first and the last stage have are two parts of one gradient, not two estimates of the same.",
    "What happens to the tied weight's gradient after the two ranks have exchanged it.",
)

H66_LATE = Mistake(
    "H66",
    "The norm was taken before the two parts of the tied weight's gradient were added up.",
    "The norm is that of the gradient that the optimizer uses. The parts of a sum have another norm than the sum.",
    "The order of what your function does: which gradients are complete when the squares are taken?",
)

H67 = Mistake(
    "H67",
    "A stage goes by its own norm.",
    "The norm that the limit is for is that of the gradient of the whole model. If each stage is scaled by its own, "
    "the direction of the step changes.",
    "The number that your scale is made of: what does this rank know of the other stages' gradients?",
)

H60_NORM = Mistake(
    "H60",
    "The norm counts every replica: it is too large by the square root of their number.",
    "After the sum over the replicas all of them hold the same gradients. The model has them once.",
    "The group over which you add up what the ranks know of the norm.",
)

TIED_TWICE = Mistake(
    "",
    "The norm counts the tied weight twice.",
    "It is one parameter of the model, although two stages hold a copy of it.",
    "The parameters that go into this rank's part of the norm, on the first and on the last stage.",
)

NORMS_ADDED = Mistake(
    "",
    "The norms of the stages were added up.",
    "A norm is the root of a sum of squares. What can be added up over the stages is what stands below the root.",
    "What each rank contributes, and what is done with the sum.",
)

PARAMETERS_ADDED = Mistake(
    "",
    "The norms of the parameters were added up.",
    "A norm is the root of a sum of squares. What can be added up, over parameters as over stages, is what stands "
    "below the root.",
    "What each parameter contributes, and what is done with the sum.",
)

TIED_NEVER = Mistake(
    "",
    "The norm leaves the tied weight out, on both stages that hold it.",
    "It is one parameter of the model: two copies must not count twice, and not at all is wrong, too.",
    "The parameters that go into this rank's part of the norm, on the first and on the last stage.",
)

SQUARES_AVERAGED = Mistake(
    "",
    "The sum of the squares was divided by the number of stages.",
    "Each stage knows a part of the sum below the root. Parts of a sum are added up, not averaged.",
    "What is done with the squares after they went over the row.",
)

NORM_AFTERWARDS = Mistake(
    "",
    "This is the norm after clipping, which is the limit.",
    "Whoever clips wants to know how large the gradient really was: it shows whether a training is in trouble.",
    "The line of the task's text that begins with *Returns*.",
)

COPY_UNSCALED = Mistake(
    "",
    "One copy of the tied weight was not scaled with the others.",
    "A tied weight counts once in the norm, but the optimizer steps both of its copies. If they differ in their "
    "gradients they are one weight no more.",
    "The loop that scales: which parameters does it leave out?",
)

EACH_BY_ITSELF = Mistake(
    "",
    "Each parameter was clipped by a norm of its own.",
    "There is one norm, that of all gradients together, and one factor for all of them. With several factors the "
    "direction of the step changes.",
    "The number that your scale is made of.",
)

SCALED_UP = Mistake(
    "",
    "Gradients were scaled although their norm is below the limit.",
    "Clipping only makes gradients smaller. Where the norm is below the limit they stay as they are.",
    "Your scale, if the norm is a tenth of the limit.",
)

# Predictions

H61_COUNT = Mistake(
    "H61",
    "This is not how many groups a rank helps to make.",
    "A rank takes part in making every group of the mesh, its own and all the others.",
    "The mesh: how many rows does it have, and how many columns?",
)

OTHER_RING = Mistake(
    "",
    "These are the bytes of a ring of other ranks.",
    "Gradients are summed over the ranks that hold the same stage. That ring has as many ranks as there are copies of "
    "the stage.",
    "The task's formula: what is the number of ranks in it?",
)

OTHER_TIMES = Mistake(
    "",
    "These are the bytes of more all-reduces, or of more gradients, than a rank needs.",
    "A rank sums the gradients of its own stage, once a step, however many micro-batches there are.",
    "What your number is a multiple of.",
)

OTHER_PIPELINE = Mistake(
    "",
    "This is the idle part of another pipeline, with more ranks or more micro-batches than one replica has.",
    "Each replica is a pipeline of its own. It has its stages, and its share of the micro-batches.",
    "One row of the mesh: how many ranks does it have, and how many micro-batches go through it in a step?",
)
