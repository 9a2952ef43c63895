"""Numbers of any type as the 256 levels of an 8-bit picture; `pictures` says by which rules."""

from __future__ import annotations

import numpy as np


def eight_bits(values: np.ndarray, white: float | None = None) -> np.ndarray:
    """Numbers of any type and shape as uint8: 0 is black, `white` (None: the type's) is 255.

    Integers keep their upper eight bits; floats, and integers of fewer, are rounded. ValueError
    for NaN and for values more than half a level outside 0 .. white.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    whole = values.dtype.kind in "iu"
    if white is None:
        white = np.iinfo(values.dtype).max if whole else 1.0
    low, high = float(values.min()), float(values.max())
    slack = 0 if whole else white / 510
    if not np.isfinite([low, high]).all():  # the least of some numbers and a NaN is NaN
        raise ValueError(f"holds values from {low:g} to {high:g}: mend NaN and infinite ones first")
    if low < -slack or high > white + slack:
        raise ValueError(
            f"holds values from {low:g} to {high:g} and 0 to {white:g} is wanted:"
            " rescale them, or say which value is white with white=..."
        )
    shift = int(white).bit_length() - 8
    if whole and shift >= 0 and white + 1 == 256 << shift:
        return (values >> shift).astype(np.uint8)
    x, upper = values.astype(np.float64), whole and white >= 255
    x = np.floor(x * 256 / (white + 1)) if upper else np.rint(x * 255 / white)
    return x.clip(0, 255).astype(np.uint8)


def white_of(values: np.ndarray, bits: int) -> tuple[int, list[str]]:
    """The value that is white in integers of so many bits, and what to say about it."""
    full = (1 << (bits - (values.dtype.kind == "i"))) - 1
    if bits < 32:
        return full, []
    white = next((w for w in (255, 65535) if values.max() <= w), full)
    note = f"holds {bits}-bit integers up to {values.max()}: {white} is taken for white"
    return white, [f"{note} (white=... says otherwise)"] if white < full else []


def deep(
    values: np.ndarray, bits: int, inverted: bool, white: float | None
) -> tuple[np.ndarray, list[str]]:
    """`eight_bits` of a file's integers or floats; inverted: its 0 is white."""
    notes: list[str] = []
    if white is None and values.dtype.kind in "iu":
        white, notes = white_of(values, bits)
    levels = eight_bits(values, white)
    return 255 - levels if inverted else levels, notes
