"""Random weights for any configuration, drawn from a seed and each tensor's own name.

The spread of each kind of tensor is chosen so that every part of the model matters: residual
contributions are comparable to the residual itself, norm weights differ from 1 and biases from 0,
router scores spread over (0, 1), and the logits have a standard deviation of about 2.
"""

import math
from typing import Any

import numpy as np

from oracle.float_formats import round_to_bfloat16
from oracle.layer_kinds import text_config
from oracle.random_numbers import bell
from oracle.tensor_shapes import tensor_shapes

# (ending of the name, gain): a matrix gets the standard deviation gain / sqrt(fan_in).
_GAINS = (
    ("q_proj.weight", 1.5),
    ("k_proj.weight", 1.5),
    ("o_proj.weight", 1.5),
    ("router.weight", 2.0),
    ("gate_proj.weight", 2.0),
    ("gate_up_proj", 2.0),
    ("lm_head.weight", 2.0),
    ("vision_adapter.mlp.fc1.weight", 2.0),
    ("vision_adapter.mlp.fc2.weight", 1.5),
)
_SMALLEST_EXACT_IN_FLOAT16 = 2.0**-17


def weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Float32 tensors by name (names of ``tensor_shapes``).

    Every value is exactly representable in bfloat16 and in float16 too, so a checkpoint of any of
    the three types holds the same numbers and one stored answer serves all of them.
    """
    tied = text_config(config)["tie_word_embeddings"]
    return {name: _draw(name, shape, seed, tied) for name, shape in tensor_shapes(config).items()}


def _draw(name: str, shape: tuple[int, ...], seed: int, tied: bool) -> np.ndarray:
    values = bell(f"{seed}/{name}", shape) * _standard_deviation(name, shape, tied)
    if "norm" in name and name.endswith(".weight"):
        values += 1.0
    rounded = round_to_bfloat16(values.astype(np.float32))
    rounded[np.abs(rounded) < _SMALLEST_EXACT_IN_FLOAT16] = 0.0
    return rounded


def _standard_deviation(name: str, shape: tuple[int, ...], tied: bool) -> float:
    if name == "model.embed_tokens.weight":
        return 2.0 / math.sqrt(shape[-1]) if tied else 1.0
    if "norm" in name or name.endswith(".bias"):
        return 0.2
    if "embedding_vlm" in name or "class_embedding" in name:
        return 1.0
    fan_in = shape[1] if ".experts." in name else shape[-1]
    gain = next((gain for ending, gain in _GAINS if name.endswith(ending)), 1.0)
    return gain / math.sqrt(fan_in)
