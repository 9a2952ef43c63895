"""What one run keeps: profile, cache, artifacts, provenance, weights, tables; no science."""
