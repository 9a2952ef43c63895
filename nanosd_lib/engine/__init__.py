"""How a notebook is executed, and how it really ended."""
