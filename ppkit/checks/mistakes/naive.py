"""Hints for the mistakes of naive model parallelism: N01 to N16 of the catalogue."""

from __future__ import annotations

from dataclasses import replace

from ppkit.checks.mistakes import Mistake

N01 = Mistake(
    "N01",
    "The numbers arrive, and the outputs are right. But after the backward, the activation that was received holds no "
    "gradient, so this rank has nothing to send back.",
    "A message carries numbers and no history. What arrives is a new tensor, and autograd leaves a new tensor out "
    "unless it is told that its gradient is wanted. Parameters are told when they are made.",
    "The lines between the receive and the call of the stage. What is true of a parameter, "
    "and not yet of the buffer that you received into?",
)

N02 = Mistake(
    "N02",
    "A gradient is wanted, but the tensor that is asked for it has none: it was computed for another tensor.",
    "Autograd puts gradients into leaves of the graph: tensors that no operation made, and that were part of the graph "
    "when the stage ran. A copy is a different tensor, the result of an operation is no leaf, "
    "and a wish uttered after the stage ran comes too late.",
    "Follow one tensor by name: the one that the message was written into, the one that the stage was called with, "
    "and the one whose gradient is read. Are they one and the same object?",
)

N02_SENT = Mistake(
    "N02",
    "A rank sends a gradient that is not there: `.grad` is `None`.",
    "The `.grad` of a tensor is filled during the backward, and only in a leaf that had asked for a gradient "
    "before the stage ran. "
    "It stays `None` if nobody asked, if the question came after the stage, if the backward has not run yet, "
    "or if the tensor is not the leaf.",
    "Which of the four is it? Look at the line that asks, the call of the stage, the backward and the send, "
    "in that order.",
)

N03 = Mistake(
    "N03",
    "A deadlock: two ranks send to each other, and both wait until the other one receives.",
    "A blocking send returns when the other side has received. If both begin by sending, neither gets to its receive.",
    "The first communication of each rank. Which of the two can send at once, "
    "and which one needs something before it has anything right to send?",
)

N04 = Mistake(
    "N04",
    "A deadlock: two ranks receive from each other, and neither of them has sent anything.",
    "A receive returns when the message is there. If both begin by receiving, nobody is left to send.",
    "The first communication of each rank. Which rank has all it needs at the very beginning of the step? "
    "Nothing may stand before its send but its own computation.",
)

N05 = Mistake(
    "N05",
    "A message goes to a rank that is not the right neighbour, or goes round from one end of the pipeline to the "
    "other, or to a rank that does not exist.",
    "Stages form a line, not a ring: activations go to the next stage, gradients to the one before. "
    "The first rank has none before it, and the last none after it.",
    "The peer of each send and receive, and the condition around it. "
    "Write down for the first rank and for the last which of your calls they make, and with whom.",
)

N05_DIRECTION = Mistake(
    "N05",
    "The messages go the wrong way along the line of ranks: from each rank to the one that it should hear from.",
    "A stage can begin when it has its input, which is another stage's output; and what it has computed is of use to "
    "one neighbour only. On the way back the two change places.",
    "The peer in each of your calls. For a rank in the middle write down: who has what I need, and who needs what I "
    "have?",
)

N06 = Mistake(
    "N06",
    "A message and the buffer it was received into have different shapes.",
    "A message carries bytes and no shape: the receiver must know it beforehand. A wrong shape puts numbers in wrong "
    "places; a buffer that is too small ends the receiving process.",
    "The line that makes the receive buffer. Where does the task tell you the shape of what arrives, on this rank?",
)

N06_SENT = Mistake(
    "N06",
    "A message has another size than the tensor that should travel there. The report names both sizes.",
    "What travels between two stages is as long as the batch has rows, and as wide as the second of them takes its "
    "input. A message of another size is another tensor, a part of the right one, or more than it.",
    "The tensor in the send. Print its shape on every rank, beside the shapes that the task's text gives.",
)

N07 = Mistake(
    "N07",
    "A tensor has another dtype than the rest: the message and its buffer differ by a factor of two in bytes, or the "
    "numbers lose half of their digits.",
    "PyTorch makes new tensors in float32 unless told otherwise, and a message has no dtype: its bytes are "
    "taken for whatever the buffer holds.",
    "The line that makes the receive buffer: which dtype do the stage's parameters have?",
)

N08 = Mistake(
    "N08",
    "A tensor could not be sent, because its numbers do not lie one after the other in memory.",
    "A transposed or sliced tensor is a view: it walks over another tensor's memory in larger steps. "
    "A message is one stretch of memory.",
    "How the tensor that is sent was made, and whether it has to be a view.",
)

N09 = Mistake(
    "N09",
    "The stage ran before its input had arrived, so it computed with whatever the buffer held.",
    "A receive that does not block returns at once, with a handle. The buffer may be read after the handle says so.",
    "The order of three things: the receive begins, it is complete, the buffer is used.",
)

N09_EXCHANGE = replace(
    N09,
    see="Your function returned `incoming` as it was given to it, in whole or in part: the message was not in it yet.",
    look="Which line fills `incoming`, and is it through when your function returns?",
)

N09_BACKWARD = Mistake(
    "N09",
    "Rank 0 sends and receives what it should, but its backward did not use what came from rank 1.",
    "A receive fills its buffer when it runs, not before. Whoever reads the buffer earlier gets what it was made with, "
    "and no error.",
    "Three lines of rank 0 concern the buffer: one makes it, one fills it, one reads it. In which order do they run?",
)

N11 = Mistake(
    "N11",
    "The message has the size of a parameter's gradient, not of an activation's.",
    "The rank before needs the gradient of what it sent: its output, which is this stage's input. "
    "Gradients of parameters stay where the parameters are.",
    "The tensor in your backward send. Which tensor did the other rank send you, and what is known about it now?",
)

N12 = Mistake(
    "N12",
    "On every rank but the last the gradients are those of the sum of the stage's outputs: "
    "as if each output mattered as much as any other.",
    "The chain rule multiplies by the gradient that comes from the next stage. "
    "A backward that is started without it takes ones instead, and what was received has no effect.",
    "The line that starts the backward on a rank that is not the last. Where does the received gradient enter it?",
)

N12_FIRST = Mistake(
    "N12",
    "On rank 0 the gradients are those of the sum of the stage's outputs: "
    "as if each output mattered as much as any other.",
    N12.why,
    "The line of rank 0 that starts the backward. Where does the received gradient enter it?",
)

N13 = Mistake(
    "N13",
    "A stage in front was trained on a loss of its own, computed from its own output.",
    "There is one loss, at the end of the model. The stages in front learn of it by the gradients that come back.",
    "The condition under which your code computes the loss: for which ranks is it true?",
)

N14 = Mistake(
    "N14",
    "The gradients went all the way, but the parameters of a stage are what they were before the step.",
    "Each rank holds its own stage and an optimizer for it. No rank can update the parameters of another.",
    "Which ranks reach the line that takes the step, and whether they reach it after their backward.",
)

N14_CLEARED = Mistake(
    "N14",
    "The optimizer takes its step, and the parameters of a stage are what they were before: "
    "it had no gradients to use.",
    "A backward writes into the parameters' `.grad`, the optimizer reads it there, and what clears it in between "
    "leaves nothing to read.",
    "The order of three things on this rank: the gradients are cleared, they are computed, they are used.",
)

N14_NO_BACKWARD = Mistake(
    "N14",
    "A stage's parameters are what they were before the step: no backward ran through it.",
    "Receiving the gradient of an output changes nothing by itself. "
    "The parameters get their gradients from a backward through the stage, which starts with what was received "
    "or, on the last rank, with its loss.",
    "What this rank does between its forward and its optimizer's step.",
)

N16 = Mistake(
    "N16",
    "One message too many: it was sent, and nobody received it.",
    "Each send needs its own receive. A blocking send then waits for ever; one that does not block leaves a message "
    "that the next receive of this pair takes for its own.",
    "Count, for each pair of neighbours, the sends of the one and the receives of the other during one pass.",
)

NO_MESSAGES = Mistake(
    "",
    "All forwards and backwards are there, and messages are missing. The report says which.",
    "Each rank holds one stage. What another rank has computed reaches it only by a message, and both ends of a "
    "message are actions.",
    "The fourteen actions in the task's text, beside those in your rows.",
)

ACTIVATION_BACK = Mistake(
    "",
    "The message that goes back has the right size, but it is the activation once more, not a gradient.",
    "A tensor and its gradient are two tensors of the same shape. "
    "The rank before knows the activation: it has computed it. What it lacks is how the loss changes with it.",
    "The tensor in your backward send. Did it change in the backward?",
)

PASSED_ON = Mistake(
    "",
    "The message that goes back has the size of what came from the next rank: the size of the stage's output, "
    "not of its input.",
    "Each stage has its own factor in the chain rule. What comes to it is the gradient of its output; the rank before "
    "needs the gradient of another tensor. On two ranks nobody has to turn the one into the other, "
    "so that this shows on three.",
    "The tensor in your backward send. Print its shape, and those of the stage's input and output: "
    "of which of the two is it the gradient?",
)

SUMMED = Mistake(
    "",
    "A loss is summed over the rows of the batch, where their mean is asked.",
    "With a sum a batch of 17 rows counts more than one of 7, and every gradient is larger by the number of rows: "
    "the same learning rate then takes steps that are far too long.",
    "Where the losses of the rows become one number, and every factor that comes after it.",
)

SWAPPED = Mistake(
    "",
    "The two tensors that you return have changed places.",
    "Whoever calls your function tells them apart by their position alone: "
    "it will ask the one for its gradient, and start the backward from the other.",
    "The line that begins with `return`, beside the one of the task's text that begins with *Returns*.",
)

NOT_FROM_LOSS = Mistake(
    "",
    "The gradients of the last stage are not those of the loss.",
    "In the backward nothing arrives on the last rank. What its outputs are worth is in the loss, and nowhere else: "
    "a backward that begins with other numbers finds other gradients.",
    "The line that begins the backward on the last rank. In one process, which tensor does a backward begin from?",
)

NO_GRAPH = Mistake(
    "",
    "The output that you return has no history, so no backward can start from it.",
    "Autograd records what happens to a tensor while it computes. A detached copy, or a result computed while "
    "recording was off, carries the numbers alone.",
    "What happens to the output between the call of the stage and the end of your function. "
    "What you send and what you keep need not be the same tensor.",
)
