"""Right answers, one module a lesson: checks fill in with them what a task does not ask for."""
