"""The stored answers: what transformers computed, for every configuration and prompt.

Arrays, by key ``configuration/prompt/what``:

- ``ids``: int64 [T], the prompt
- ``logits``: float32 [T, V], at every position
- ``greedy``: int64 [NUM_GREEDY_TOKENS], the most likely continuation, end-of-text ids ignored
- ``encoded`` (image prompts): float32 [N, tokens_per_tile, vision_output_dim], before the projector
- ``image_features`` (image prompts): float32 [N * tokens_per_tile, D], after the projector

``metadata`` is a JSON text with the versions of the libraries and the seed of each configuration.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

ANSWERS_PATH = Path(__file__).parents[1] / "data" / "oracle" / "answers.npz"


def load_answers() -> dict[str, np.ndarray]:
    with np.load(ANSWERS_PATH) as stored:
        return {key: stored[key] for key in stored.files}


def load_metadata() -> dict[str, Any]:
    with np.load(ANSWERS_PATH) as stored:
        return json.loads(str(stored["metadata"]))


def save_answers(answers: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    ANSWERS_PATH.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"metadata": np.array(json.dumps(metadata, sort_keys=True))}
    np.savez_compressed(ANSWERS_PATH, **(arrays | answers))
