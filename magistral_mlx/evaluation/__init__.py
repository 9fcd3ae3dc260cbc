"""Evaluation: benchmarks by Inspect, their scores and comparisons, and quality on text."""
