"""Networks and noise are made in float32, whatever torch's default dtype is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single() -> Iterator[None]:
    """float32 is torch's default dtype inside, and afterwards what it was: new networks draw the
    same weights for everybody. Also a decorator: `@precision.single()`.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
