"""What runs on the ranks, one module a lab: they import these after their start, so they import little."""
