"""For a course: `nbgrader generate_assignment`, `autograde` and `generate_feedback` work in this folder as they are."""

from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearHiddenTests,
    ClearMarkScheme,
    ClearOutput,
    ComputeChecksums,
    IncludeHeaderFooter,
    LimitOutput,
    LockCells,
    SaveAutoGrades,
    SaveCells,
)

from ppkit.course.release import StubSolutions
from ppkit.grading.nbgrader import GradeOnRanks

c = get_config()  # noqa: F821  # nbgrader gives it

c.CourseDirectory.source_directory = "solutions"
# What is handed out is made anew from the solutions; exercises/ holds the same for those who study alone.
c.CourseDirectory.release_directory = "release"

c.GenerateAssignment.preprocessors = [
    IncludeHeaderFooter,
    LockCells,
    StubSolutions,
    ClearOutput,
    CheckCellMetadata,
    ComputeChecksums,
    SaveCells,
    ClearHiddenTests,
    ClearMarkScheme,
    ComputeChecksums,
    CheckCellMetadata,
]
# The checks run in fresh processes and not in the submitted notebook's kernel, which the notebook could have changed.
c.Autograde.autograde_preprocessors = [
    GradeOnRanks,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    CheckCellMetadata,
]
# The reports' cards are longer than nbgrader's thousand lines only where a learner's ranks printed much.
c.LimitOutput.max_lines = 2000
