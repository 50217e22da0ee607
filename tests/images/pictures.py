"""Pictures made of integers alone, so that every machine draws the same ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def picture(width: int, height: int, seed: int = 0, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Ramps, hard edged blocks, noise in a quarter of these; [height, width, channels]."""
    y, x, channel = np.ogrid[:height, :width, :channels]
    block = scrambled(x // 11, y // 7, channel * 0, seed)
    ramp = (x * (channel + 2) + y * (3 - channel % 3) + (block >> 8) % 256) % 256
    noise = scrambled(x, y, channel, seed + 1) % 256
    return np.where(block % 4 == 0, noise, ramp).astype(np.uint8)


def scrambled(x: npt.NDArray, y: npt.NDArray, channel: npt.NDArray, seed: int) -> npt.NDArray:
    """A number below 2³¹ for each place, without pattern: multiply, shift and xor, three times."""
    value = (x * 73_856_093) ^ (y * 19_349_663) ^ (channel * 83_492_791) ^ (seed * 2_654_435_761)
    for factor in (0x7FEB352D, 0x846CA68B, 0x2C1B3C6D):
        value = ((value ^ (value >> 15)) * factor) & 0x7FFFFFFF
    return value ^ (value >> 14)
