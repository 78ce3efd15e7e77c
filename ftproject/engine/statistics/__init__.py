"""Paired statistics of two models over the same rows: exact tests, bootstrap intervals, power. SciPy and no model."""
