"""Compares two runs row by row: the paired table, the verdict and its certainty, the exports. Nothing is stored."""
