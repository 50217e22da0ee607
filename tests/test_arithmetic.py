"""Fast arithmetic stays close to exact arithmetic, and exact is what the weights say."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import MakeCheckpoint
from llama4rs._llama4rs import Engine
from oracle.configs import TEXT
from oracle.prompts import text_prompts


def logits(path: str, weights: str, arithmetic: str | None) -> np.ndarray:
    engine = Engine(path, weights=weights, threads=1, arithmetic=arithmetic)
    return engine.logits(text_prompts(TEXT["dense"])["60_tokens"])


@pytest.mark.parametrize("weights", ["int8", "int4", "int4/g32"])
def test_rounding_activations_costs_little(checkpoint: MakeCheckpoint, weights: str) -> None:
    path = str(checkpoint("dense"))
    exact, fast = (logits(path, weights, arithmetic) for arithmetic in ("exact", "fast"))
    plain = logits(path, "f32", None)
    spread = plain.std()
    activations = np.sqrt(np.mean((fast - exact) ** 2)) / spread
    quantised = np.sqrt(np.mean((exact - plain) ** 2)) / spread
    print(f"{weights}: weights {quantised:.4f}, activations {activations:.4f} of the deviation")
    assert 0 < activations < 0.05
    if weights.startswith("int4"):
        assert activations < quantised / 4


def test_single_precision_knows_no_difference(checkpoint: MakeCheckpoint) -> None:
    path = str(checkpoint("dense"))
    np.testing.assert_array_equal(logits(path, "f32", "fast"), logits(path, "f32", "exact"))


def test_rounding_to_bf16_costs_less_than_the_weights(checkpoint: MakeCheckpoint) -> None:
    path = str(checkpoint("dense"))
    exact, fast = (logits(path, "bf16", arithmetic) for arithmetic in ("exact", "fast"))
    plain = logits(path, "f32", None)
    spread = plain.std()
    activations = np.sqrt(np.mean((fast - exact) ** 2)) / spread
    weights = np.sqrt(np.mean((exact - plain) ** 2)) / spread
    print(f"weights {weights:.5f}, activations {activations:.5f} of the deviation")
    assert 0 < activations < 0.01


def test_other_words_are_refused(checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(ValueError, match='must be "fast" or "exact"'):
        Engine(str(checkpoint("dense")), weights="int4", arithmetic="quick")
