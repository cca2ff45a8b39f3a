"""Hints for what else can go wrong with replicas, beside the catalogue."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

WRONG_NUMBERS = Mistake(
    "",
    "The numbers are not those of one process, and no usual mistake gives them.",
    "Several replicas together must come to what one process computes with the whole batch. If they don't, one of "
    "them uses something else than its own part, or the parts are put together by other weights.",
    "What goes into your collectives on each rank, and what comes out. Print both: a report shows what your ranks "
    "print.",
)

RING_BYTES = Mistake(
    "",
    "This is not what a rank sends in an all-reduce that goes around a ring.",
    "A ring goes around twice: once to add the pieces up, once to hand the sums on. In each round a rank sends all "
    "pieces but one.",
    "How many bytes the gradients have, in how many pieces they are cut, and how many pieces a rank sends in both "
    "rounds.",
)

BUCKET_COUNT = Mistake(
    "",
    "This is not how many buckets there are.",
    "A bucket is closed as soon as it holds enough bytes, and what comes last may be larger than the whole rest. So "
    "neither the number of parameters nor a division of bytes by bytes gives their number.",
    "Write down the sizes of the parameters from the last to the first, and add them up. Where is the first bucket "
    "closed?",
)

NEVER_AVERAGED = Mistake(
    "",
    "The replicas drift apart: their steps are not taken with the same gradient.",
    "Several ranks that each run a correct training loop train several models. To be one model, all must step with "
    "the same gradient.",
    "What happens between the backward and the optimizer's step, and which other ranks take part in it.",
)

ONE_STEP = Mistake(
    "",
    "The optimizer takes no step for a batch, or more than one.",
    "A batch gives one gradient, however many ranks have computed it, and one gradient is good for one step.",
    "How often the line with the optimizer's step runs for each batch, on each rank.",
)

RANK_FIXED = Mistake(
    "",
    "All ranks train on the same shard, that of rank 0, and the other rows are never seen.",
    "The same code runs in every process. A number written into it is the same everywhere; what differs has to be "
    "asked for.",
    "Where this loop gets its rank from.",
)

BATCH_LOSS = Mistake(
    "",
    "The training is right, and what is told of it is not: a returned loss is not that of the whole batch.",
    "Each replica sees a part of the batch. A log of one rank's part looks much the same with one rank or with a "
    "hundred, and tells nothing of the others. The parts must be put together, as the gradients are.",
    "What your code adds to its result, what it would take to know the other ranks' part, and for how much each part "
    "counts.",
)

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
    "Rounding down leaves a remainder. To leave it away loses data, and always from the same place in the list.",
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

NOT_SCATTERED = Mistake(
    "",
    "The pieces are not those of DataParallel: every row in one piece, and one piece for each device that has "
    "something to do.",
    "What makes it fast is that every device computes a part of the rows. If each one, or a single one, computes all "
    "of them, nothing is gained.",
    "The pieces of the batch: how many are there, and which of them does each replica get?",
)

NOT_REPLICATED = Mistake(
    "",
    "Several calls computed with the very same parameters in the same memory.",
    "A device computes with what is in its own memory, so each one needs a copy. With devices that are all the same "
    "processor a move does nothing, and the check looks for real copies.",
    "The parameters with which each piece is computed: where do they come from?",
)

STAYS_ON_COPIES = Mistake(
    "",
    "The model's parameters have no gradient, or only that of one replica's rows.",
    "A backward leaves gradients where the graph ends. If a replica has leaves of its own, its gradients stay there, "
    "and the optimizer, which knows only the model's, never sees them.",
    "What connects a replica's parameters with the model's: the graph itself, or something that you do after the "
    "backward?",
)

COLLECTIVE_ALONE = Mistake(
    "",
    "A rank waits for ever in a collective, because another rank never comes to it.",
    "A collective ends when every rank of the group has called it, as often and in the same order. One that is called "
    "on some ranks only, or one time more on some than on others, waits for those who never come.",
    "The condition or the loop around the quoted call: is it the same on all ranks?",
)

OTHER_COLLECTIVES = Mistake(
    "",
    "The ranks are in different collectives at the same time.",
    "Collectives carry no names, and are matched by their order. Every rank must make the same ones in the same order.",
    "Your conditions with the rank in them: does each branch come to the same collectives?",
)

BLOCKS = Mistake(
    "",
    "A rank's backward waits for the other ranks: it cannot come to its end before they have begun theirs.",
    "To hide an all-reduce under the backward is to begin it and go on. A call that returns when it is over, or a wait "
    "in the hook, stops the backward, and nothing is hidden.",
    "The quoted line, which runs inside the backward: does it begin something, or end it?",
)

LAST_BUCKET = Mistake(
    "",
    "Some gradients were never averaged: they are still those of the rank's own shard.",
    "What is left over at the end of a loop is easily forgotten: a bucket that never came to its full size still "
    "holds gradients.",
    "What your code does with the parameters that are left when there are no more to fill a bucket.",
)

NOT_HANDED_BACK = Mistake(
    "",
    "Gradients went over the ranks, and every parameter still has the gradient of its own shard.",
    "What is packed into a bucket is a copy. The optimizer looks at the parameters, and knows nothing of the bucket.",
    "What your code does with a bucket when its all-reduce is over.",
)

OTHER_BUCKETS = Mistake(
    "",
    "The numbers are right, but they travelled in other pieces than the task asks for.",
    "Each all-reduce pays the latency of the links. One for each parameter pays it too often, and a single one for all "
    "can only start when the backward is over.",
    "When you close a bucket and begin the next one. Compare the sizes in the report with the task's rule.",
)

NO_OVERLAP = Mistake(
    "",
    "The numbers are right, but nothing is hidden: no all-reduce had begun when the backward came to the first layer.",
    "A backward goes from the last layer to the first. A bucket of the last layers is complete long before the end, "
    "and the time until then is what it could travel in.",
    "Which parameters your first bucket holds, what begins its all-reduce, and whether that happens inside the "
    "backward.",
)
