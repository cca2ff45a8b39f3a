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

TWICE_THE_BYTES = Mistake(
    "",
    "This is exactly twice what a rank sends.",
    "One of three things makes it so: 8 bytes for a number, which in float32 takes 4; what a rank receives, counted "
    "with what it sends; or every rank sending the whole of its gradients to every other one, which a ring spares it.",
    "The size of a number in the task's text, and how many pieces a rank sends in the two rounds of a ring.",
)

NEVER_AVERAGED = Mistake(
    "",
    "The replicas drift apart: their steps are not taken with the same gradient.",
    "Several ranks that each run a correct training loop train several models. To be one model, all must step with "
    "the same gradient.",
    "What happens between the backward and the optimizer's step, which ranks take part in it, and on which of them its "
    "result is.",
)

ONE_STEP = Mistake(
    "",
    "The optimizer takes no step for a batch, or more than one.",
    "A batch gives one gradient, however many ranks have computed it, and one gradient is good for one step.",
    "How often the line with the optimizer's step runs for each batch, on each rank.",
)

CLEARED = Mistake(
    "",
    "The optimizer takes its steps, and nothing moves: the gradients were gone by then.",
    "Gradients are cleared so that those of the batch before do not count again. Those of this batch are still needed.",
    "The order of clearing, backward, all-reduce and step.",
)

RANK_FIXED = Mistake(
    "",
    "All ranks train on the same shard, that of rank 0, and the other rows are never seen.",
    "The same code runs in every process. A number written into it is the same everywhere; what differs has to be "
    "asked for.",
    "Where this loop gets its rank from.",
)

ONE_RANKS_GRADIENT = Mistake(
    "",
    "Every rank computes rows of its own, but all of them step with rank 0's gradient: what the others have found is "
    "lost.",
    "To be alike is not enough. The gradient of the batch is made of every rank's, each with its share.",
    "The collective that your gradients go through: does it hand one rank's numbers to all, or put all of them "
    "together?",
)

SCALED = Mistake(
    "",
    "The gradients point the right way, and are wrong by one constant factor, which the report names.",
    "The loss of the batch is a mean over its rows: each row counts one part in as many as there are. A divisor that "
    "stands in two places, or a share turned upside down, gives every row another weight.",
    "Every number by which a loss or a gradient is multiplied or divided before the step, the loss function's own mean "
    "included. What do they make together for one row?",
)

ONLY_ONE_KNOWS = Mistake(
    "",
    "Rank 0 has the right numbers, and the other ranks have not.",
    "Some collectives leave their result on one rank alone. The others go on with what they had, or with a part.",
    "Which ranks hold the result of the collective that you use.",
)

NOT_AWAITED = Mistake(
    "",
    "A tensor was used, or handed on, before its collective was over: nobody waits for it.",
    "A call with `async_op=True` returns at once, with a handle. What is in the tensor until its work is done is luck.",
    "For each of your asynchronous calls the line that waits for what it returned.",
)

NOBODYS_START = Mistake(
    "",
    "The replicas begin with parameters that are not rank 0's.",
    "Any weights would let them begin alike, but the task names those of rank 0: that is where a user, or a file, has "
    "put the right ones. What is drawn anew, or made of several ranks' weights, is another model.",
    "What your function writes into the model, and which rank it comes from.",
)

OTHER_ROOTS = Mistake(
    "",
    "The ranks do not agree on who hands out, or who collects.",
    "The source or destination of a collective is the same for all who take part: one rank gives, the others take.",
    "The `src` or `dst` of the quoted calls: what does it depend on?",
)

BATCH_LOSS = Mistake(
    "",
    "The training is right, and what is told of it is not: a returned loss is not that of the whole batch.",
    "Each replica sees a part of the batch. A log of one rank's part looks much the same with one rank or with a "
    "hundred, and tells nothing of the others. The parts must be put together, as the gradients are.",
    "What your code adds to its result, what it would take to know the other ranks' part, and for how much each part "
    "counts.",
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

NO_BACKWARD = Mistake(
    "",
    "No backward has run: the model's parameters have no gradient.",
    "A loss alone computes no gradients. They are what the backward leaves behind.",
    "What follows the loss in your function.",
)

OTHER_ORDER = Mistake(
    "",
    "The outputs are not in the order of the labels: rows were compared with the labels of others.",
    "Gather must undo what scatter did. Pieces in another order than the labels train the model on wrong answers.",
    "Which row of the batch stands where in the outputs that you put together. Print both orders for a small batch.",
)

UNASKED_STEP = Mistake(
    "",
    "The gradients are right, but the parameters have moved.",
    "Gradients are one part of a training step and the optimizer's step another, which here is the caller's. It would "
    "be taken twice.",
    "What your function does after the backward.",
)

COLLECTIVE_ALONE = Mistake(
    "",
    "A rank waits for ever in a collective, because another rank never comes to it.",
    "A collective ends when every rank of the group has called it, as often and in the same order. One that is called "
    "on some ranks only, or once more on some than on others, waits for those who never come.",
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

ADDED_TO_OWN = Mistake(
    "",
    "The mean was added to the rank's own gradient instead of taking its place.",
    "The mean already holds this rank's part.",
    "The line that hands the mean back: what becomes of what was there before?",
)

CUT_ELSEWHERE = Mistake(
    "",
    "All numbers came back, but some of them to other parameters: a bucket was unpacked in another order or at other "
    "places than it was packed.",
    "Once packed, a bucket is a row of numbers that knows nothing of parameters.",
    "The order of the parameters and their sizes, where you pack and where you unpack.",
)

LEFT_FROM_BEFORE = Mistake(
    "",
    "The first step is right. A later one is not: something of a step before is still there.",
    "What you note while a step runs, such as which gradients are complete, which buckets have started, or what to "
    "wait for, is true of that step alone.",
    "Every attribute that your hooks or `finish` change: which value must it have when the next step begins?",
)
