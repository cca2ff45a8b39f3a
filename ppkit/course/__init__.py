"""The course's workshop: exercises from solutions, and notebooks executed in place."""
