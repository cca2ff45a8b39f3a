"""Hints for what can go wrong in any task."""

from __future__ import annotations

from ppkit.checks.mistakes import Mistake

NOT_A_FUNCTION = Mistake(
    "",
    "The check was given a value, not a function.",
    "The check itself calls your function, so it needs the function and not its result.",
    "The check's cell: a function's name without parentheses is the function itself.",
)

SIGNATURE = Mistake(
    "",
    "Your function cannot be called with the arguments that the task lists.",
    "The check calls it with the task's arguments, in their order. Names are yours to choose, the number is not.",
    "The line that begins with `def`, beside the arguments that the task's text lists.",
)

RETURNED = Mistake(
    "",
    "Your function ran to its end, but what it returned is not what the task asks for.",
    "The check, as any caller would, goes on with what your function returns: their number and order matter.",
    "The `return` of your function, beside the line of the task's text that begins with *Returns*.",
)

CANNOT_TRAVEL = Mistake(
    "",
    "Your function could not be sent to the ranks.",
    "Ranks are processes of their own. What your function uses of the notebook is copied to them, "
    "and some things (open files, locks, generators) cannot be copied.",
    "The variable that the message names: make it inside the function instead.",
)

EXCEPTION = Mistake(
    "",
    "Your code raised an error on a rank. The message names the rank and your line.",
    "The same function runs on every rank, with other arguments: what holds on one rank (it has the batch, it has a "
    "rank after it) need not hold on another.",
    "The quoted line, with the values that this rank has. Print them: a report shows what your ranks print.",
)

EXCEPTION_HERE = Mistake(
    "",
    "Your code raised an error. The message names your line.",
    "The check calls your function with several cases. It may work for one and fail for another.",
    "The quoted line, with the values that it has there. Print them: a report shows what your code prints.",
)

EXIT = Mistake(
    "",
    "A rank left before your function returned.",
    "A rank that ends takes its connections with it, and the others lose their peer.",
    "The place where your code ends the process. A function ends with its return.",
)

ENDLESS = Mistake(
    "",
    "Your code was still at work when its time was over, and had to be ended.",
    "A right answer takes a tenth of a second here. Either a loop never meets its end, or it polls for a message that "
    "nobody sends.",
    "Every `while`, and what changes its condition.",
)

MEMORY = Mistake(
    "",
    "A rank asked for more memory than there is for it. The message says how much it asked for last, and at which "
    "line.",
    "All tensors of a task are small: a right answer takes a few million bytes. Either one tensor is far too large, "
    "mostly because of a size in it that is no size of this task, or because two vectors were turned into a whole "
    "table. Or a loop goes on and on, and keeps what each of its rounds makes.",
    "The quoted line. Print the shape that it makes, and count how often it runs: "
    "which of the two is not what you expect?",
)

KILLED = Mistake(
    "",
    "The process of a rank was killed from outside (SIGKILL), without a Python error.",
    "Mostly the system does that, when the machine has no memory left: it takes the process that has most. "
    "Code that keeps what every round of a loop makes, or makes tensors far larger than the task's, comes to that.",
    "What your function makes and keeps, and how often: print shapes, and the lengths of your lists.",
)

CRASH = Mistake(
    "",
    "The process of a rank was ended by the system, without a Python error.",
    "That happens below Python: mostly in a receive whose buffer does not fit the message.",
    "The communication calls of this rank: peer, shape and dtype of each.",
)

NO_BUFFER = Mistake(
    "",
    "A rank was told to receive into something that is no tensor.",
    "A receive makes no tensor: it fills one that is there, as long as the message and of its dtype. "
    "Some names stand for a tensor on one rank and for `None` on the others, and a gradient is `None` until a "
    "backward has made it.",
    "The first argument of the receive, on the rank that the message names: which of your lines has made it?",
)

NOT_RECEIVED = Mistake(
    "",
    "A whole number went into a computation where the received tensor belongs.",
    "What a blocking receive returns is no tensor but the number of the rank that has sent. "
    "The message itself is somewhere else by then.",
    "The line of the receive: what do you keep of it, and what has become of the tensor that you gave to it?",
)

UNPAIRED = Mistake(
    "",
    "A rank waits for ever: what it sends is not received, or what it receives is not sent.",
    "Every send needs one receive on the other rank, with the same two ranks and the same tag. "
    "A rank that has returned answers no more.",
    "The waiting call, and then the code of its peer: which line there should answer it, and does that line run?",
)

FORGOTTEN_RECEIVE = Mistake(
    "",
    "A rank sends, and waits for ever: the rank that it sends to never took the message, and has returned.",
    "A blocking send returns when the other side has received. A rank that has returned answers no more.",
    "The receive is missing, or your code does not reach it on this rank. "
    "Which line of the receiving rank should take this message?",
)

MISSING_MESSAGE = Mistake(
    "",
    "A message that the task needs was never sent.",
    "Each rank holds one stage. It learns of the others' results through messages alone.",
    "The conditions around your sends: for which ranks is each of them true? Try it for every rank in your head.",
)

WRONG_VALUES = Mistake(
    "",
    "The messages have the right sizes and ways, and the numbers are wrong. "
    "The report names the first rank that differs.",
    "On several ranks the same numbers must come out as in one process. The first rank that differs, in the order in "
    "which the computation visits them, is where the mistake is, or the rank that sent it its numbers; "
    "the others only pass it on.",
    "What this rank received, and what it computes from it. "
    "Print both in your function, and compare them with one process.",
)

WRONG_HERE = Mistake(
    "",
    "Your function ran to its end, but a number or a shape is not the one that the check computes.",
    "Where the report tells a ratio or a shape, that says more than the numbers do: "
    "which sizes of the task does it come from?",
    "Your lines beside the task's text, for the smallest case that you can compute by hand. "
    "Print what stands in between: the report shows it.",
)

UNKNOWN_NAME = Mistake(
    "",
    "Python doesn't know a name in your code. The message says which.",
    "A name must have been given, in a cell that has run, before the function that uses it is called. "
    "What another notebook imports is unknown in this one.",
    "How the name is spelled, and the first cell of this notebook, with its imports.",
)

SCHEDULE = Mistake(
    "",
    "The order that you wrote could not run. The report shows it as a grid, a row for each rank, "
    "with what cannot run in brackets. Positions in a row are counted from 0.",
    "An action can run when what it needs is there: a forward needs the output of the stage before, a backward the "
    "gradient from the stage after, and its own forward. Between ranks these travel as messages.",
    "What stands in brackets: what must have happened before it, on its rank and on its neighbours?",
)

NO_ROWS = Mistake(
    "",
    "What you wrote is not a list of actions for each rank, so there is no order to judge yet.",
    "A schedule is a list with one row for each rank, in the order of the ranks, and each row is a list of short "
    "texts. Every action is a text of its own, with its stage first and its micro-batch last.",
    "The place that the message names, beside the example in the task's text. Positions in a row are counted from 0.",
)

ESTIMATE = Mistake(
    "",
    "A number is not the one that comes out. The report says whether it is too small or too large.",
    "Mostly something was counted once too often or once too seldom: a rank, a direction, a micro-batch at the "
    "beginning or at the end; or a thing was counted, and not its size.",
    "A drawing by hand, as small as it may be: the ranks below each other, time from left to right, and on each "
    "boundary what travels over it. Then count in it what the question asks for.",
)

NO_NUMBER = Mistake(
    "",
    "An answer is no number.",
    "A text is not computed, whatever stands in it. And Python writes a decimal number with a point: "
    "a comma makes two numbers of it.",
    "The quotation marks and commas in your cell.",
)

NO_CHOICE = Mistake(
    "",
    "An answer is none of those that there are to choose from. The report lists them.",
    "Where a question has fixed answers, another word cannot be judged, however right it may be.",
    "The spelling of your answer, beside the words in the task's text.",
)
