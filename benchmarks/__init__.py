"""Measurements of speed and memory; docs/benchmarks.md holds what they printed, with date and versions."""
