"""The vision tower and early fusion against transformers' stored answers."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import MakeCheckpoint
from llama4rs._llama4rs import Engine
from oracle.answers import load_answers
from oracle.comparison import assert_agrees
from oracle.configs import MULTIMODAL
from oracle.prompts import image_prompts

PROMPTS = [(name, prompt) for name in MULTIMODAL for prompt in image_prompts(MULTIMODAL[name])]


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_features_equal_transformers(checkpoint: MakeCheckpoint, name: str, prompt: str) -> None:
    _, pixels = image_prompts(MULTIMODAL[name])[prompt]
    engine = Engine(str(checkpoint(name)), weights="f32", threads=2)
    features = engine.encode_image(np.ascontiguousarray(pixels, dtype=np.float32))
    expected = load_answers()[f"{name}/{prompt}/image_features"]
    assert_agrees(features, expected.reshape(features.shape), name, tolerance=1e-4)


@pytest.mark.parametrize("step_tokens", [512, 7])
@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_logits_equal_transformers(
    checkpoint: MakeCheckpoint, name: str, prompt: str, step_tokens: int
) -> None:
    ids, pixels = image_prompts(MULTIMODAL[name])[prompt]
    engine = Engine(str(checkpoint(name)), weights="f32", threads=2, step_tokens=step_tokens)
    features = engine.encode_image(np.ascontiguousarray(pixels, dtype=np.float32))
    logits = engine.logits(ids, image_features=features)
    expected = load_answers()[f"{name}/{prompt}/logits"]
    assert_agrees(logits, expected, f"{name}/{prompt}", tolerance=1e-3)


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_greedy_tokens_equal_transformers(
    checkpoint: MakeCheckpoint, name: str, prompt: str
) -> None:
    ids, pixels = image_prompts(MULTIMODAL[name])[prompt]
    engine = Engine(str(checkpoint(name)), weights="f32", threads=2)
    features = engine.encode_image(np.ascontiguousarray(pixels, dtype=np.float32))
    expected = load_answers()[f"{name}/{prompt}/greedy"].tolist()
    request = engine.submit(ids, max_tokens=len(expected), image_features=features)
    tokens = []
    while (event := request.next()) is not None:
        if event.token_id is not None:
            tokens.append(event.token_id)
    assert tokens == expected


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_fast_towers_are_close_and_do_not_depend_on_threads_or_tiles(
    checkpoint: MakeCheckpoint, name: str, prompt: str, weights: str
) -> None:
    _, pixels = image_prompts(MULTIMODAL[name])[prompt]
    tiles = np.ascontiguousarray(pixels, dtype=np.float32)
    policy = [("vision_model.*", weights), ("multi_modal_projector.*", weights)]

    def engine(arithmetic: str, threads: int) -> Engine:
        path = str(checkpoint(name))
        return Engine(path, policy=policy, arithmetic=arithmetic, threads=threads)

    exact, fast = engine("exact", 2).encode_image(tiles), engine("fast", 2).encode_image(tiles)
    error = np.sqrt(np.mean((fast - exact) ** 2)) / exact.std()
    print(f"{name}/{prompt}, {weights}: fast differs by {error:.4f} of the deviation")
    assert 0 < error < 0.05
    alone = engine("fast", 1)
    tile_by_tile = [alone.encode_image(tile[np.newaxis]) for tile in tiles]
    np.testing.assert_array_equal(fast.reshape(-1, fast.shape[-1]), np.vstack(tile_by_tile))


def test_features_and_patch_tokens_must_match(checkpoint: MakeCheckpoint) -> None:
    name = "vision_tiny_56"
    ids, pixels = image_prompts(MULTIMODAL[name])["one_image"]
    engine = Engine(str(checkpoint(name)), weights="f32")
    features = engine.encode_image(np.ascontiguousarray(pixels, dtype=np.float32))
    with pytest.raises(ValueError, match="image patch tokens"):
        engine.submit(ids, max_tokens=1, image_features=features[:-1])
    with pytest.raises(ValueError, match="expected tiles"):
        engine.encode_image(np.zeros((1, 3, 8, 8), np.float32))


def test_arrays_in_another_order_are_refused(checkpoint: MakeCheckpoint) -> None:
    name = "vision_tiny_56"
    ids, pixels = image_prompts(MULTIMODAL[name])["one_image"]
    engine = Engine(str(checkpoint(name)), weights="f32")
    tiles = np.ascontiguousarray(pixels, dtype=np.float32)
    features = engine.encode_image(tiles)
    for bad in (np.asfortranarray(tiles), tiles[:, :, ::-1]):
        with pytest.raises(ValueError, match="ascontiguousarray"):
            engine.encode_image(bad)
    with pytest.raises(ValueError, match="ascontiguousarray"):
        engine.submit(ids, max_tokens=1, image_features=np.asfortranarray(features))


def test_text_only_models_refuse_images(checkpoint: MakeCheckpoint) -> None:
    engine = Engine(str(checkpoint("scout_like")), weights="f32")
    with pytest.raises(ValueError, match="no vision part"):
        engine.encode_image(np.zeros((1, 3, 56, 56), np.float32))
