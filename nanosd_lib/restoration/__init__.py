"""A photograph, tile by tile."""
