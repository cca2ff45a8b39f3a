"""Hints for the mistakes of choosing a strategy: P100 to P139, and G28 of the catalogue."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

# Memory of a device

P100 = Mistake(
    "P100",
    "Even on one device, without any activations, the number of bytes is not what training holds.",
    "While it trains, a device holds more than the parameters: what the backward writes for each of them, and "
    "what the optimizer remembers of each of them from step to step.",
    "The bytes that you count for one parameter in float32. List the tensors that have one number for each parameter.",
)

ACTIVATIONS = Mistake(
    "",
    "Without activations the number is right, with those of one micro-batch it is not.",
    "While a backward runs, what the forward kept for it is in memory beside all that belongs to the parameters.",
    "What your function gives for one stage and one micro-batch, without activations and with them. By how many bytes "
    "should the two differ?",
)

P101 = Mistake(
    "P101",
    "In float32 the number is right, in mixed precision it is not.",
    "Mixed precision makes the parameters that compute, and their gradients, half as long. Updates are often too "
    "small for 16 bits, so the optimizer works on numbers of its own.",
    "The optimizer's bytes for one parameter in mixed precision, beside the list in the task's text.",
)

P102 = Mistake(
    "P102",
    "With one replica the number is right, with several it is not.",
    "A replica is a whole copy of the model. More replicas share the work on the batch, and by that alone nobody "
    "holds less of the model.",
    "Every place where your function uses the number of replicas. What of a device's memory depends on it, if nothing "
    "is cut over the replicas?",
)

P103 = Mistake(
    "P103",
    "With one stage the number is right, with several it is not.",
    "A stage is a part of the layers, and all that belongs to a layer goes with it: its parameters, what is made of "
    "them, and its activations.",
    "Which of your terms are divided by the number of stages, and which are not?",
)

P104 = Mistake(
    "P104",
    "The number is right without ZeRO, and wrong with ZeRO.",
    "ZeRO cuts what all replicas hold alike, in three stages, one kind of tensor more in each. Here it is the first "
    "stage, and it cuts among those who hold the same.",
    "What your function divides where ZeRO is on, and by which number of devices.",
)

P105 = Mistake(
    "P105",
    "The number of micro-batches whose activations are held is not the schedule's.",
    "Activations of a micro-batch are there from its forward to its backward. A schedule decides how many forwards "
    "run before the first backward.",
    "The two schedules of the task, drawn for four stages and eight micro-batches: how many forwards does the first "
    "stage run before its first backward, in each?",
)

P106 = Mistake(
    "P106",
    "For the first stage and many micro-batches 1F1B's number is right, for another stage or few of them it is not.",
    "In 1F1B the stages do not hold the same: the closer a stage is to the loss, the sooner a gradient comes back. "
    "And nobody holds a micro-batch that there is not.",
    "Your number of held micro-batches: what is it for the last of four stages, and what for two micro-batches?",
)

# Time of a step

P107 = Mistake(
    "P107",
    "With free messages the pipeline's time is not the one that comes out.",
    "The last stage can begin only when a micro-batch has been through all others, and the first is done only when "
    "the last gradient has come back through all of them. In between each stage works through its micro-batches.",
    "The grid of a pipeline of three stages and four micro-batches. How many columns of a forward has the first row, "
    "idle ones included?",
)

P108 = Mistake(
    "P108",
    "With free messages the pipeline's time is right, with messages that take time it is not.",
    "In this schedule a stage does not wait for its messages to arrive: it goes on with the next micro-batch "
    "while they travel. Only when the pipeline fills and drains does everybody wait for them.",
    "Follow the first micro-batch to the last stage, and the last gradient back to the first. How many messages does "
    "each wait for?",
)

P109 = Mistake(
    "P109",
    "The all-reduce's time is wrong even if a message costs nothing but its bytes.",
    "Around a ring nobody sends the whole tensor at once. It is cut into as many parts as there are replicas; the "
    "parts are summed on one way around the ring, and handed out on a second one.",
    "The bytes that one replica sends, for 2, 4, and very many replicas. And what does a replica have to send if it is "
    "the only one?",
)

P110 = Mistake(
    "P110",
    "If a message costs nothing but its bytes the all-reduce's time is right; with a latency it is not.",
    "A ring takes its parts from neighbour to neighbour, and each such hop is a message of its own.",
    "How often your time holds the latency, beside the number of hops.",
)

# Claims

P111 = Mistake(
    "P111",
    "The collectives of a data-parallel step were counted, and they are not what this answer expects.",
    "Overviews mix up two strategies here. In one of them every rank has all of each layer, and only parts of the "
    "batch; in the other every rank has a part of each layer. Only one of them needs the others in the middle of a "
    "forward.",
    "Section 6 of lesson 08, where all-reduces are counted. What exactly do the replicas have to agree on, and when?",
)

P112 = Mistake(
    "P112",
    "The time from a sample's start to its end, and the samples finished in a second, are two numbers. This "
    "answer does not fit both.",
    "In a pipeline a sample is worked on by one stage at a time, in order.",
    "A Gantt of forwards alone: follow one micro-batch from the first row to the last. Then count how many leave the "
    "last row.",
)

P113 = Mistake(
    "P113",
    "The memory of the fullest device was computed, with more and more of what this answer trusts in, and it does not "
    "go where the answer says.",
    "A pipeline's cut lies between two layers. What does a device hold when there is a stage for each layer?",
    "The layer's own share in the numbers of the report: parameters and what is made of them, and activations.",
)

G28 = Mistake(
    "G28",
    "More micro-batches are not always faster: with fewer and larger ones a step is shorter here.",
    "Each micro-batch brings a fixed cost in every layer, however few samples are in it. What the bubble loses, "
    "these costs can win.",
    "The time of one stage for a micro-batch of one sample, and of eight. How much of it is the fixed part?",
)

G28_CLAIM = Mistake(
    "G28",
    "Steps of one batch were simulated with more and more micro-batches, and they do not go where this answer says.",
    "Two things change with the number of micro-batches: for how long the pipeline fills and drains, and how often "
    "each layer is started.",
    "What the overhead does in lesson 08's planner, and the step times over micro-batches in lesson 02.",
)

P117 = Mistake(
    "P117",
    "Both schedules were simulated, and they do not differ in what this answer names.",
    "Two schedules may have the same operations, in another order on each rank. What an order changes can be the time "
    "for which ranks wait, or what they hold meanwhile.",
    "The two grids, side by side: idle cells of one rank, and forwards whose backward is still to come.",
)

# The bug

P114 = Mistake(
    "P114",
    "The step is too long, and the more so the more micro-batches there are.",
    "Something that happens once in a step is counted for every micro-batch. A backward of one micro-batch adds "
    "to the gradients; who reads them before the last one reads a part.",
    "Each line, with the question: does this happen for a micro-batch, or for a step?",
)

P115 = Mistake(
    "P115",
    "The step is too short: of the all-reduce nothing is left, or not all.",
    "The replicas of a stage must agree on its gradients once in each step, and the step is over only when they have.",
    "What your function gives for one stage and one micro-batch, with one replica and with two.",
)

P116 = Mistake(
    "P116",
    "The all-reduce is counted once, but not with the right bytes, or not among the right ranks.",
    "Each stage's replicas have a ring of their own, and reduce the gradients of that stage. "
    "The rings of all stages run at the same time.",
    "The arguments of your call of the all-reduce, and what you do with its result.",
)

SPREAD = Mistake(
    "",
    "The all-reduce is spread over the micro-batches, and a part of it is counted again while the pipeline fills and "
    "drains.",
    "What belongs to a micro-batch lengthens every turn of the pipeline, also those in which a stage waits. "
    "The all-reduce belongs to no micro-batch: it comes when the last backward is over.",
    "What you hand on to the pipeline's time: for how many turns does that count it?",
)

# Plans

P130 = Mistake(
    "P130",
    "The plan cannot be carried out on this machine.",
    "Devices are given to replicas and stages, samples to replicas and micro-batches. There are only so many devices, "
    "and every micro-batch has as many samples as the others. And not every schedule goes together with every other "
    "decision.",
    "What the report names, beside the machine's and the model's numbers in the table, and the entries of a plan.",
)

P131 = Mistake(
    "P131",
    "The plan does not fit in memory, and most of what it holds are parameters, gradients and the optimizer's state.",
    "Smaller micro-batches and recomputation make only activations smaller. What belongs to the parameters is cut by "
    "stages, and in part over replicas.",
    "The bytes for one parameter in mixed precision, times the parameters of a stage, beside the device's "
    "memory. Which two of your decisions change it?",
)

P132 = Mistake(
    "P132",
    "The plan does not fit in memory, and most of what it holds are activations.",
    "A device holds activations for as many micro-batches as its schedule has in flight, of as many samples as are in "
    "each.",
    "Four decisions change that: how many samples are in a micro-batch, how many micro-batches are in flight, what "
    "is kept of each, and for how many layers. Which can still change in your plan, and which costs the least time?",
)

P133 = Mistake(
    "P133",
    "The plan fits, and leaves devices idle that would make it faster.",
    "Where links are very slow it can be best to leave a device idle. Here there is a way to share the work that the "
    "links can carry.",
    "Replicas times stages, beside the number of devices.",
)

P134 = Mistake(
    "P134",
    "The plan fits, and its devices wait for one another: the pipeline fills and drains for too long.",
    "Filling and draining takes as long as the stages need for a few micro-batches. The shorter these are, "
    "the shorter that is.",
    "The time in the report for which a device waits, and your number of micro-batches beside that of stages.",
)

P135 = Mistake(
    "P135",
    "The plan fits, and with the same numbers another schedule would be faster.",
    "Schedules of the same stages and micro-batches differ in how long ranks wait at the beginning and the end, "
    "and in how many forwards they have in hand when a message is late.",
    "The drawing of your plan at the end of the lab: where do its ranks wait, and which schedule has something to do "
    "there? Mind what it holds.",
)

P136 = Mistake(
    "P136",
    "The plan fits, and computes every forward twice for nothing: with the same stages and micro-batches there is a "
    "plan that fits with its activations kept.",
    "Recomputation buys memory with time: a third more, if a backward takes twice as long as a forward.",
    "The memory that your fullest device has left, beside the activations of a stage for a micro-batch. For how many "
    "micro-batches does your schedule hold them, and for how many do the others?",
)

P137 = Mistake(
    "P137",
    "The plan fits, and the same devices would be faster with other numbers of replicas and stages.",
    "Replicas cost an all-reduce of their stage's gradients, stages cost a bubble and messages. Both are numbers that "
    "you can compute before you decide.",
    "For your plan and for its neighbour with half as many replicas, or twice as many: the all-reduce, and the bubble.",
)

P138 = Mistake(
    "P138",
    "The plan fits, and sends more than it must over its slow links.",
    "Neighbours in a node have fast links. Either the stages of a replica are neighbours, and gradients travel far; "
    "or the replicas of a stage are, and activations do. And ZeRO sends parameters besides.",
    "Bytes in a step over a slow link: gradients of a stage around a ring, or activations of all micro-batches, "
    "there and back. Which is more, for this model and batch?",
)

P139 = Mistake(
    "P139",
    "The plan is judged; what you expect a step to take is more than a tenth off.",
    "With messages that are short against the work, a step is what the formulas of the second task say, with the "
    "times of a stage for one micro-batch.",
    "The time of one stage for one micro-batch, with all its layers, their fixed cost, and all samples of the "
    "micro-batch. Then the number of micro-batches of a replica.",
)

NOT_A_PLAN = Mistake(
    "",
    "The plan has an entry that a plan does not have, or a value that this entry cannot have.",
    "A plan is a dictionary from the names in the table to values of the kind that stands beside them.",
    "The entry that the report names, beside its line in the table.",
)

TOO_SLOW = Mistake(
    "",
    "The plan fits and is too slow, and no change of one decision alone makes it much faster.",
    "Decisions hang together: a schedule that holds more may need smaller micro-batches, and so on.",
    "The report's line about where the time goes. Which part is the largest, and which two decisions make it smaller?",
)

UNIT = Mistake(
    "",
    "The number would be right in another unit.",
    "A number has no unit of its own: whoever calls a function takes it to be in the one that was agreed on.",
    "The line of the task's text that begins with *Returns*, and the units of the arguments.",
)

RANGE = Mistake(
    "",
    "The answer is not a number that can be a time or a size.",
    "The check puts your function's number beside that of a simulation.",
    "What your function returns, and whether every path through it returns something.",
)

BROKEN = Mistake(
    "",
    "Even without the all-reduce the time is not right. In the function as given it was.",
    "The time of a pipeline alone has no bug here: how many micro-batches a replica has, and how long a stage "
    "takes for each of them.",
    "What you changed beside the line that is wrong.",
)
