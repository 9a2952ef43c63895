"""Numbers in, the next candidate out."""
