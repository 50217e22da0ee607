"""Random numbers that are the same on every machine and with every numpy version.

A key (any string) gives a stream: the first eight bytes of its SHA-256, read little-endian, are
the state of a SplitMix64 generator. Everything derived from it is exact integer arithmetic
followed by one float64 division, so a dozen lines in another language reproduce it.
"""

import hashlib
import math

import numpy as np

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def bits(key: str, count: int) -> np.ndarray:
    """The first ``count`` outputs of the key's stream: uint64 [count]."""
    state = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    mixed = state + _GOLDEN_GAMMA * np.arange(1, count + 1, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))


def integers(key: str, count: int, below: int) -> np.ndarray:
    """Integers of 0..below-1: int64 [count]."""
    return (bits(key, count) % np.uint64(below)).astype(np.int64)


def bell(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly normal values, mean 0 and standard deviation 1, within ±3.47: float64 ``shape``.

    Each value is the sum of the four 16-bit quarters of one output.
    """
    drawn = bits(key, math.prod(shape))
    total = np.zeros(len(drawn))
    for shift in (0, 16, 32, 48):
        total += (drawn >> np.uint64(shift)) & np.uint64(0xFFFF)
    centred = total - 2 * 65535
    return (centred / (65536 / math.sqrt(3))).reshape(shape)
