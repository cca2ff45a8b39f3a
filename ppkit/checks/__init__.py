"""Checks of the labs: they run a learner's code on real ranks and grade what happened.

One package a lab (`from ppkit.checks import lab01`), with one function a task. Each returns a `Report`, which is the
points earned. What the labs share is small:

    report      `Report`: the points, shown as a card with hints
    judge       `graded` makes a check of a function that raises `Wrong` or `Unfinished`, or returns `Passed`
    trial       runs the learner's function on ranks, and explains a deadlock, a crash, an endless loop
    oracle      what one process computes, and what known mistakes would give
    messages    compares the messages that were sent with those that a right answer sends
    values      compares tensors
    drivers/    what runs on the ranks: the learner's function, with ppkit's own parts around it
    mistakes/   the catalogue: each mistake with its hints in three levels
    reference/  right answers, for the parts that a task does not ask for, and for later labs to start from
"""
