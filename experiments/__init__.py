"""Command lines: train, evaluate, benchmarks; and the results that they produced."""
