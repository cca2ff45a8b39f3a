"""Hints for balance, skips and recomputation: F41, G29, G31, H68, H69, and S92 to S108 of the catalogue of mistakes."""

from __future__ import annotations

from dataclasses import replace

from ppkit.checks.mistakes import Mistake
from ppkit.checks.mistakes.gpipe import G29
from ppkit.checks.mistakes.one_f_one_b import F41

F41_LOST = replace(F41, see="A message never arrived: its send was begun, and nobody waited for it.")

G29_LEFT = replace(
    G29,
    why="Two numbers are called bubble: idle time divided by working time, and idle time divided by all the time there "
    "is. They are alike only if both are small.",
    look="The task's text: of which time is the part asked? One beat of the slowest stage, for all four ranks: how "
    "many units are that, and how many of them are idle?",
)

G31 = Mistake(
    "G31",
    "Without dropout all is right. With dropout, the gradients are those of another forward than the one whose output "
    "was sent on.",
    "Dropout draws new random numbers at every call. The second forward must leave out exactly what the first one "
    "left out, or the gradient belongs to a model that nobody has used.",
    "What a second call with the same input can change, and what must be remembered of the first so that it doesn't.",
)

H68 = Mistake(
    "H68",
    "The output of the first stage is used in two places, and only one of them counts in its gradient.",
    "What is used twice changes the loss in two ways. Each user sends back its own part, and the gradient is what "
    "the parts make together. If one is lost, nothing fails: the loss is right, and the first stage learns badly.",
    "Follow one micro-batch back: which two messages bring a gradient for it to rank 0, and what has become of each "
    "of them when the backward begins?",
)

H69 = Mistake(
    "H69",
    "This is right only if all stages take equally long, and here they don't: equally many layers are not equally "
    "much work.",
    "Every micro-batch has to pass every stage. Once the pipeline is full, the ranks move in the beat of the slowest "
    "stage, and the others wait for it.",
    "The costs of the layers, added up for each stage. Which sum sets the beat?",
)

S92 = Mistake(
    "S92",
    "The beat of the slowest stage is counted for every micro-batch, and the way through the other stages is left out.",
    "The slowest stage is not at work from the beginning to the end: the first micro-batch has to reach it, and the "
    "last one has to go on from it.",
    "One single micro-batch: how long does its step take, and what does each further one add?",
)

S93 = Mistake(
    "S93",
    "This is not the part that is left. With more and more micro-batches one kind of idle time shrinks to nothing, and "
    "the other stays.",
    "The pipeline is filled and drained once a step. In the middle, a rank with less work than the slowest one waits "
    "for it at every single micro-batch.",
    "The steady state alone: of one beat of the slowest stage, how long is each rank at work?",
)

BUSY = Mistake(
    "",
    "This is the part of the time for which the ranks work, and the other part is asked.",
    "Of all ranks' time, what is not work is idle: the two parts make 1.",
    "What your number counts: the units in which a rank computes, or those in which it waits?",
)

SLOW = Mistake(
    "",
    "Every stage is taken to be as slow as the slowest one.",
    "Only the beat is set by the slowest stage. On its way through the others, a micro-batch takes as long as each of "
    "them takes.",
    "One single micro-batch: how long does its step take, and what does each further one add?",
)

OTHER_IDLE = Mistake(
    "",
    "Both times are right; the idle part is not the one that is left with very many micro-batches.",
    "With very many micro-batches nearly all of the step is the steady state. There, all ranks move in the beat of the "
    "slowest stage, and each works for its own stage's time in every beat.",
    "One beat, for all four ranks: how many units of time is that together, and in how many of them is a rank at work?",
)

OTHER_TIME = Mistake(
    "",
    "A number is not the one that the schedule gives. The report says whether it is too small or too large.",
    "The first micro-batch passes all stages, one after the other. The next ones follow close behind it, "
    "as close as the stage with the most work allows.",
    "Draw two ranks, the second with twice the work of the first, and three micro-batches. When is each rank idle, "
    "and what does one micro-batch more change?",
)

S94 = Mistake(
    "S94",
    "The stages are filled one after the other, by a rule that never looks back, and a better cut is missed.",
    "A boundary that is good for the stage in front of it may leave too much for the stages behind it. "
    "Which boundary is good is known only when those have been cut as well as can be.",
    "The layers and costs in the report. Cut them on paper: which of your boundaries must move, "
    "and what would your code have had to know there?",
)

NOT_THE_BEST = Mistake(
    "",
    "It is a cut, but there is another whose most expensive stage costs less.",
    "The slowest stage sets the pace, so the most expensive stage alone decides which of two cuts is better; "
    "that the others are alike is worth nothing by itself.",
    "The layers and costs in the report. Find the better cut on paper, and then the step of your code at which it "
    "was lost.",
)

S95 = Mistake(
    "S95",
    "A small model is cut well, a larger one takes for ever.",
    "The number of all cuts grows so fast that nobody can try them. But most of the work is repeated: the best cut of "
    "the first few layers is asked for again and again.",
    "How often your code computes the same thing for 48 layers and 8 stages. Which results could be kept, or in which "
    "order could they be computed, each once?",
)

S96 = Mistake(
    "S96",
    "What came back is no cut: a stage is empty, a layer is lost, or the number of stages is another.",
    "Every layer must lie on exactly one stage, and a rank without a layer has nothing to do. "
    "A cut is told by the number of layers of each stage.",
    "The line of the task's text that begins with *Returns*, beside what the report shows. Then the end of your loop: "
    "does the last stage get what is left?",
)

S97 = Mistake(
    "S97",
    "There are more stages than layers, and your function does not say so as the task asks.",
    "A model that cannot be cut so is a mistake of the caller. A function that returns something all the same, or "
    "fails somewhere inside, makes them look in the wrong place; an error with the two numbers makes it plain.",
    "What your function does before it begins to cut, and what it says then.",
)

S98 = Mistake(
    "S98",
    "A skip that would have to travel backwards was taken for a right one.",
    "Stages run in order, and in a stage its uses run in order. What is popped must have been put aside before, or the "
    "rank waits for a message that is sent only after its own work is done.",
    "The moment at which your code sees a pop: what does it know by then, and what does it ask?",
)

S99 = Mistake(
    "S99",
    "A name that is used twice was taken for a right one.",
    "The name is all that tells one skip from another. A second value of the same name would take the first one's "
    "place, and a value that is taken out twice is there only once.",
    "The two places where your code writes a name down: what does it do if the name is there already?",
)

S100 = Mistake(
    "S100",
    "A skip with one end was taken for a right one.",
    "A value that nobody stashes never arrives, and the rank that pops it waits for ever. A value that nobody pops "
    "takes memory, and its gradient is missing at the other end.",
    "What your code still has to ask when it has seen all stages, and what when it meets a pop.",
)

S101 = Mistake(
    "S101",
    "A right arrangement was refused, or its stages are not those that the report lists.",
    "A skip may lead over any number of stages, or over none: it may begin and end in one and the same stage. "
    "Several skips may cross each other.",
    "The arrangement in the report, use by use, through your code.",
)

NOT_NAMED = Mistake(
    "",
    "The arrangement is wrong and was refused, but not in the words that the task asks for.",
    "Whoever reads the error has a model of many layers, and wants to know which skip to look at. An error that "
    "comes from somewhere inside, such as a missing key, doesn't say.",
    "The kind of your error, and its text, beside the line of the task's text that begins with *Raises*.",
)

S102 = Mistake(
    "S102",
    "Both parts of the gradient have arrived, and the first stage learns by a wrong share of them.",
    "Two users of one value are not two opinions of one number, of which one takes the middle, "
    "and neither may count twice. Each part says how the loss changes by its own way.",
    "The line in which the two parts become one. Try it in your head with the parts 1 and 3.",
)

S103 = Mistake(
    "S103",
    "The numbers are right, but each micro-batch goes backward through the stage twice, once for each part of its "
    "gradient.",
    "A backward is linear in the gradient that it starts from, so two through one graph never tell more than one "
    "could. They take twice as long, and the graph has to be kept for the second.",
    "Your loop over the two sources: what belongs inside it, and what behind it?",
)

S103_AGAIN = replace(
    S103,
    see="A backward goes through the graph of a micro-batch a second time, and the first one has used it up.",
    why="Each forward makes one graph, and a backward uses it up. Two gradients arrive for each micro-batch here, but "
    "there is one graph, which is good for one backward.",
    look="The lines around your backward: how often do they run for each micro-batch, and what has arrived by then?",
)

RUNNING = Mistake(
    "",
    "The gradient of each micro-batch holds those of the micro-batches before it, too.",
    "A micro-batch's two parts belong together, and nothing else belongs to them. The parameters add up what the "
    "micro-batches bring, each of them once.",
    "The place where you add the parts: what is in the sum when the next micro-batch begins?",
)

GARBAGE = Mistake(
    "",
    "There are numbers in it that nobody computed: infinite ones, or NaN.",
    "A tensor that is made empty still holds whatever was in its memory before. That is right where a receive fills "
    "it; but a sum that starts from it starts from anything.",
    "Every tensor that your function makes: what is in it before the first value is added?",
)

SWAPPED = Mistake(
    "",
    "The last stage learns as if its two inputs had changed places.",
    "To a stage one tensor is like another: if the sizes agree, nobody complains, and each weight is multiplied with a "
    "number that is meant for another.",
    "The call of the last stage, beside the line of the task's text on `stage`.",
)

S104 = Mistake(
    "S104",
    "The numbers are right, but the skip travels through a rank that has no use for it.",
    "Any rank can send to any other. What is handed on by the ranks between is sent several times, and those have to "
    "wait for it, and hold it.",
    "The destinations of your sends on the first rank and on the last. The report says which messages were not sent.",
)

ELSEWHERE = Mistake(
    "",
    "A message goes from or to a rank that has no part in it.",
    "Here messages go between neighbours, and between the first rank and the last. With three ranks one and the same "
    "number can be all of that: the middle, the last but one, the one after the first. With four it cannot.",
    "Every rank that your code names by a fixed number, or counts from the end: which rank is it on four ranks, and "
    "which is meant?",
)

TOO_MANY = Mistake(
    "",
    "The numbers are right, but more messages go over the skip than one each way for each micro-batch.",
    "What belongs together travels together: every message has a latency of its own, and somebody who waits for it.",
    "Your calls between the first rank and the last, counted for one micro-batch. What does each of them bring that "
    "the others do not?",
)

S105 = Mistake(
    "S105",
    "A deadlock of more than two ranks: each waits for the next one, and the last for the first.",
    "With a skip the ranks no longer stand in a line, but in a ring: two ways lead from the first to the last, a short "
    "and a long one. A rank that waits at the end of the short way may hold up the long one.",
    "The calls in the report, one after the other. Which of these messages could be on its way already, "
    "and whose turn should come first?",
)

S106 = Mistake(
    "S106",
    "The gradients are right, but forwards that come after a backward drop the same numbers as earlier ones.",
    "To repeat a forward, the random numbers were turned back. If they stay there, the next forward draws once more "
    "what has been drawn before, and its micro-batch is thinned out just as an older one was.",
    "The state of the random numbers right after your backward, beside the state right before it.",
)

S107 = Mistake(
    "S107",
    "The numbers are right, but nothing was saved: between forward and backward a micro-batch holds as much as without "
    "recomputation.",
    "Whatever refers to a graph keeps all of its saved tensors alive. A forward leaves nothing behind only if autograd "
    "has not recorded it, or if nobody holds its result.",
    "What you keep of the first forward: does anything in it have a history?",
)

TOO_MUCH = Mistake(
    "",
    "Less is held than without recomputation, but more than a micro-batch's input and its output.",
    "What the first forward has computed on its way is computed again by the second one. Whatever of it stays until "
    "then takes memory for nothing.",
    "Each tensor that you keep, with the question: does the second forward need it, or is it made there anew?",
)

S108 = Mistake(
    "S108",
    "After the second backward, the parameters hold the gradients of this micro-batch alone.",
    "The micro-batches of a step are one batch: each backward adds its share to what the parameters already hold. "
    "If it takes the place of what was there, only the last micro-batch counts.",
    "How the gradients of the parameters get where they are: what does that line do with a gradient that is there?",
)

NO_INPUT_GRAD = Mistake(
    "",
    "Where the gradient of the stage's input should come back, there is `None`.",
    "A function that ends without a `return` gives `None`. And the `.grad` of a tensor is `None` until a backward has "
    "filled it, which happens only in a leaf that had asked for a gradient before the forward ran. The stage's input "
    "comes as a leaf that asks for none.",
    "The end of your backward, and its forward: what do you give to the stage, and whose `.grad` do you return?",
)

NOT_ADDED = Mistake(
    "",
    "A backward left no gradient in a parameter of the stage.",
    "There are two ways to ask for gradients. One returns those of the tensors that it is told, and leaves all others "
    "alone; the other fills the `.grad` of every leaf that it comes to.",
    "The call that does your backward: which of the two ways is it, and whose gradients does it give?",
)

NO_DROPOUT = Mistake(
    "",
    "The first forward drops nothing: the output is that of a stage in evaluation mode.",
    "Without dropout the same numbers come out at every call, but it is another training than one process would do. "
    "What must not change is which numbers are dropped, not that some are.",
    "The lines of your forward that change the stage itself.",
)

OTHER_NUMBERS = Mistake(
    "",
    "The first forward already drops other numbers than a plain forward would.",
    "The random numbers belong to the caller, who has seeded them. A forward that seeds them anew, or draws some for "
    "itself, gives another training than one process; with one seed for all, each micro-batch drops the same numbers.",
    "What your forward does with the random numbers before and after it calls the stage: need it change them, or only "
    "look?",
)
