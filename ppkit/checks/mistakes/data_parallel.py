"""Hints for the mistakes of data parallelism: D42 to D59 of the catalogue, and some beside it."""

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
    "The gradients point the right way, and are too large: they are the sum over the ranks.",
    "An all-reduce adds up, if it is told nothing else. Each rank's loss is already a mean over its own rows, and the "
    "sum of several means is no mean.",
    "What happens to a gradient beside its all-reduce, and the number of ranks in it.",
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
    "Averaging the parameters instead of their gradients looks the same only with the simplest optimizers. Any other "
    "one has then already made something different of each rank's gradient.",
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
    "The hook of a parameter that is not used never runs, and its bucket is never full. The other ranks know nothing "
    "of that, and wait.",
    "What becomes of a bucket that is still incomplete when the backward is over, and what a missing gradient counts "
    "as.",
)

D53 = Mistake(
    "D53",
    "A weight that two layers share is treated as two.",
    "Tied weights are one parameter with one gradient, to which both uses have already been added. Who goes through "
    "the layers meets it twice.",
    "How you collect the parameters: how many do you get, and how many different ones are among them?",
)

D54 = Mistake(
    "D54",
    "Losses went over the ranks, and no gradient did: every replica learns from its own shard.",
    "A backward starts from this rank's graph. What an all-reduce writes into a loss is no part of that graph, so the "
    "gradients know nothing of it.",
    "The tensors that you reduce: which of them does the optimizer use?",
)

D55 = Mistake(
    "D55",
    "The model was wrapped, but the loop calls the model inside: the wrapper never hears of the forward, and averages "
    "nothing.",
    "The wrapper prepares the averaging when it is called itself. Who calls what is inside, or the model by its old "
    "name, goes past it, without an error.",
    "The name that is called with the images: what does it stand for?",
)

D56_NO_SHARDS = Mistake(
    "D56",
    "Every rank gets the same rows.",
    "If all replicas see the same data they compute the same gradients: the machine does one rank's work, several "
    "times over.",
    "Which rows your function returns: does the rank occur in that?",
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

# Beside the catalogue

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
    "A replica was given the whole batch, or there was only one call of the model.",
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

LAST_BUCKET = Mistake(
    "",
    "Some gradients were never averaged, though all the others were.",
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
