"""One notebook's run, what it keeps, and batches of runs; no science."""
