"""Measures what the design gives a budget for, as ratios within one run: `python -m benchmarks`."""
