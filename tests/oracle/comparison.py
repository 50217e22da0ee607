"""Compares a computed array with a stored answer and reports the worst element."""

import numpy as np

TOLERANCE = 1e-3
"""Largest allowed difference of a logit, at a standard deviation of about 2."""


def largest_difference(computed: np.ndarray, expected: np.ndarray) -> float:
    assert computed.shape == expected.shape, f"shape {computed.shape}, expected {expected.shape}"
    return float(np.abs(computed - expected).max())


def assert_agrees(
    computed: np.ndarray, expected: np.ndarray, what: str, tolerance: float = TOLERANCE
) -> None:
    difference = largest_difference(computed, expected)
    worst = np.unravel_index(np.abs(computed - expected).argmax(), expected.shape)
    where = [int(index) for index in worst]
    assert difference <= tolerance, (
        f"{what}{where}: got {computed[worst]:.6f}, expected {expected[worst]:.6f}, "
        f"off by {difference:.2e}, more than {tolerance:.0e}"
    )
