"""Looks at every row as training would, before any GPU time: what is usable, how long, how balanced, how costly."""
