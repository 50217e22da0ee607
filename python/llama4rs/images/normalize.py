"""Bytes to the numbers that the vision encoder takes, by a table of 256 entries a channel."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .config import ImageConfig

__all__ = ["Flavour", "normalize"]

Flavour: TypeAlias = Literal["hf", "meta"]
"""Whose rounding: Hugging Face's or Meta's."""


def normalize(
    tiles: npt.NDArray[np.uint8], config: ImageConfig | None = None, *, flavour: Flavour = "hf"
) -> npt.NDArray[np.float32]:
    """Bring bytes to about -1 … 1: rescale, take off the mean, divide by the deviation.

    Both reference implementations end in bfloat16, and half of the 256 values differ by up to
    0.004. Hugging Face's rounds after each of the three steps, Meta's once at the end.

    Args:
        tiles: ``[tiles, 3, size, size]``, as `preprocess` gives them.
        config: The checkpoint's settings; by default those of Scout and Maverick.
        flavour: ``"hf"`` or ``"meta"``.

    Returns:
        An array of the same shape, float32 that are exact bfloat16 values.

    Raises:
        ValueError: An unknown flavour.

    >>> normalize(np.array([0, 127, 255], dtype=np.uint8).reshape(1, 3, 1, 1)).ravel().tolist()
    [-1.0, -0.00390625, 1.0]
    """
    if flavour not in ("hf", "meta"):
        raise ValueError(f"flavour must be 'hf' or 'meta', not {flavour!r}")
    table = _table(config or ImageConfig(), flavour)
    values = np.empty(tiles.shape, dtype=np.float32)
    for channel in range(3):
        values[:, channel] = table[channel][tiles[:, channel]]
    return values


@lru_cache(maxsize=8)
def _table(config: ImageConfig, flavour: Flavour) -> npt.NDArray[np.float32]:
    """``[3, 256]``: channel, byte."""
    levels = np.arange(256, dtype=np.float32)
    mean = np.array(config.mean, dtype=np.float32)[:, None]
    std = np.array(config.std, dtype=np.float32)[:, None]
    factor = np.float32(config.rescale_factor)
    if flavour == "meta":
        # A float32 division by 255, where the factor is its inverse.
        scaled = levels / np.float32(255) if factor == np.float32(1 / 255) else levels * factor
        return _bfloat16((scaled - mean) / std)
    centred = _bfloat16(_bfloat16(levels * factor) - _bfloat16(mean))
    return _bfloat16(centred / _bfloat16(std))


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Finite values rounded to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    result: npt.NDArray[np.float32] = rounded.astype(np.uint32).view(np.float32)
    return result
