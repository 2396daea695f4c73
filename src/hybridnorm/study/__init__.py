"""A grid of runs under identical conditions: plan, run, statistics, report."""
