"""RoPE frequencies and attention temperature with the published constants, far into the context."""

import numpy as np
import pytest

from oracle.configs import SEEDS, TEXT
from oracle.llama4_numpy import Llama4, attention_temperature, rope_frequencies
from oracle.random_weights import weights

SCOUT_ROPE = TEXT["scout_like"]["rope_scaling"] | {"original_max_position_embeddings": 8192}
SCOUT = TEXT["scout_like"] | {
    "head_dim": 128,
    "rope_scaling": SCOUT_ROPE,
    "floor_scale": 8192,
}


def test_scout_frequencies() -> None:
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    frequencies = rope_frequencies(SCOUT)
    np.testing.assert_allclose(frequencies[:35], plain[:35], rtol=1e-14)
    np.testing.assert_allclose(frequencies[35:], plain[35:] / 16, rtol=1e-14)


def test_smooth_band_joins_both_sides() -> None:
    """Frequencies of the general formula never rise, and some lie strictly between the two."""
    config = TEXT["smooth_rope"]
    plain = rope_frequencies(config | {"rope_scaling": None})
    ratio = plain / rope_frequencies(config)
    assert np.all(np.diff(ratio) >= -1e-12)
    np.testing.assert_allclose(ratio[[0, -1]], [1, 8])
    assert np.sum((ratio > 1.001) & (ratio < 7.999)) == 3


@pytest.mark.parametrize(
    ("position", "temperature"),
    [
        (0, 1.0),
        (8190, 1.0),
        (8191, 1.06931),
        (65535, 1.21972),
        (131071, 1.28332),
        (1048575, 1.48598),
        (10485759, 1.71554),
    ],
)
def test_scout_temperature(position: int, temperature: float) -> None:
    computed = attention_temperature(SCOUT, np.array([position]))
    np.testing.assert_allclose(computed, temperature, atol=5e-6)


@pytest.mark.parametrize("start", [8, 800, 10_485_752])
def test_only_the_temperature_knows_absolute_positions(start: int) -> None:
    """Starting at another chunk border changes nothing once the temperature is off."""
    ids = list(range(24))
    tensors = weights(TEXT["scout_like"], SEEDS["scout_like"])
    still = Llama4(TEXT["scout_like"] | {"attn_temperature_tuning": False}, tensors)
    tuned = Llama4(TEXT["scout_like"], tensors)
    shifted = still.forward(ids, start_position=start).logits
    np.testing.assert_allclose(shifted, still.forward(ids).logits, atol=1e-6)
    assert np.abs(tuned.forward(ids, start).logits - tuned.forward(ids).logits).max() > 1e-2
