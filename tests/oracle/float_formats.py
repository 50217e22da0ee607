"""Rounding float32 to the 16-bit formats that checkpoints use."""

import numpy as np


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Round finite float32 values to the nearest bfloat16, ties to even: uint16, same shape."""
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    last_kept_bit = (raw >> np.uint32(16)) & np.uint32(1)
    return ((raw + np.uint32(0x7FFF) + last_kept_bit) >> np.uint32(16)).astype(np.uint16)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The same rounding, widened again to float32."""
    return (bfloat16_bits(values).astype(np.uint32) << np.uint32(16)).view(np.float32)
