"""Many notebooks, many runs, many machines."""
