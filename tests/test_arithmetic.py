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


@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_float_weights_know_no_difference(checkpoint: MakeCheckpoint, weights: str) -> None:
    path = str(checkpoint("dense"))
    np.testing.assert_array_equal(logits(path, weights, "fast"), logits(path, weights, "exact"))


def test_other_words_are_refused(checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(ValueError, match='must be "fast" or "exact"'):
        Engine(str(checkpoint("dense")), weights="int4", arithmetic="quick")
