"""The numpy models agree with the stored answers of transformers."""

import numpy as np
import pytest

from oracle.answers import load_answers
from oracle.comparison import assert_agrees
from oracle.configs import MULTIMODAL, SEEDS, TEXT
from oracle.llama4_numpy import Llama4
from oracle.llama4_vision_numpy import Llama4Vision
from oracle.prompts import IMAGE_PROMPTS, NUM_GREEDY_TOKENS, image_prompts, text_prompts
from oracle.random_weights import weights

DTYPES = [np.float64, np.float32]
"""Float32 shows that rounding alone stays inside the tolerance: a float32 engine can pass."""

ANSWERS = load_answers()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TEXT)
def test_text(name: str, dtype: type) -> None:
    model = Llama4(TEXT[name], weights(TEXT[name], SEEDS[name]), dtype)
    for prompt, ids in text_prompts(TEXT[name]).items():
        key = f"{name}/{prompt}"
        assert ANSWERS[f"{key}/ids"].tolist() == ids
        greedy = ANSWERS[f"{key}/greedy"]
        logits = model.forward([*ids, *greedy]).logits
        assert logits.dtype == dtype
        assert_agrees(logits[: len(ids)], ANSWERS[f"{key}/logits"], key)
        assert_continues(logits, len(ids), greedy)


@pytest.mark.parametrize("name", TEXT)
def test_text_greedy_from_scratch(name: str) -> None:
    model = Llama4(TEXT[name], weights(TEXT[name], SEEDS[name]))
    prompt, ids = next(iter(text_prompts(TEXT[name]).items()))
    expected = ANSWERS[f"{name}/{prompt}/greedy"].tolist()
    assert model.greedy(ids, NUM_GREEDY_TOKENS) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prompt", IMAGE_PROMPTS)
@pytest.mark.parametrize("name", MULTIMODAL)
def test_images(name: str, prompt: str, dtype: type) -> None:
    config, key = MULTIMODAL[name], f"{name}/{prompt}"
    ids, pixels = image_prompts(config)[prompt]
    assert ANSWERS[f"{key}/ids"].tolist() == ids
    tensors = weights(config, SEEDS[name])

    vision = Llama4Vision(config, tensors, dtype)
    features = vision.image_features(pixels)
    assert features.dtype == dtype
    assert_agrees(vision.encode(pixels), ANSWERS[f"{key}/encoded"], f"{key}/encoded")
    assert_agrees(features, ANSWERS[f"{key}/image_features"], f"{key}/image_features")

    text = Llama4(config, tensors, dtype)
    greedy = ANSWERS[f"{key}/greedy"]
    image_token = config["image_token_index"]
    logits = text.forward([*ids, *greedy], image_features=features, image_token=image_token).logits
    assert_agrees(logits[: len(ids)], ANSWERS[f"{key}/logits"], key)
    assert_continues(logits, len(ids), greedy)


def assert_continues(logits: np.ndarray, num_prompt_tokens: int, greedy: np.ndarray) -> None:
    """Over prompt and answer at once, each answer token is the most likely one before it."""
    np.testing.assert_array_equal(logits[num_prompt_tokens - 1 : -1].argmax(axis=-1), greedy)
