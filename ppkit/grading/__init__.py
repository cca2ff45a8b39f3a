"""Grades a learner's notebook by what its code computes, and not by what the notebook says of itself.

    submission  the notebook as data: which lab it is, its cells, and what in them a person should look at
    forbidden   what no answer needs, and what would let it talk itself into points
    answers     runs the cells in a process of its own, which hands over functions as sealed bytes
    sealed      the answers as the grader holds them: it never opens them, only fresh ranks do
    grade       each task's check, from the kit, on these answers
    page        the result as a page to read and as JSON
    classroom   a folder of submissions, several at a time
    nbgrader    the same grades for nbgrader's own commands

It is no sandbox: the code runs with the rights of whoever grades. The README says what is kept out, and how
a course grades in a container.
"""
