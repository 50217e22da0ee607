"""Logits and features equal those of transformers and of the oracle, however steps are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chain_model import BOS, IMAGE, IMAGE_END, IMAGE_START, PATCH, VOCAB, byte_tokenizer_json
from conftest import MakeCheckpoint
from images.pictures import picture
from llama4rs import Llama4
from llama4rs.images import expand_placeholders, normalize, plan_image, preprocess
from oracle.answers import load_answers
from oracle.checkpoint import make_checkpoint, weights
from oracle.comparison import assert_agrees
from oracle.configs import MULTIMODAL
from oracle.llama4_vision_numpy import multimodal_forward
from oracle.prompts import IMAGE_PROMPTS, image_prompts

from .cases import CONFIG, IDS, MIXED_SIZES, grey


@pytest.mark.parametrize("prompt", IMAGE_PROMPTS)
@pytest.mark.parametrize("name", MULTIMODAL)
def test_logits_of_expanded_ids_equal_transformers(
    checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, name: str, prompt: str
) -> None:
    """The stored answers are for noise that no file can hold: it is put in place of each image's
    normalised tiles. There is no tokenizer, the ids are expanded already."""
    ids, pixels = image_prompts(MULTIMODAL[name])[prompt]
    size = MULTIMODAL[name]["vision_config"]["image_size"]
    tiles_per_image = IMAGE_PROMPTS[prompt]
    noise = iter(np.split(pixels, np.cumsum(tiles_per_image)[:-1]))
    monkeypatch.setattr("llama4rs.images.normalize", lambda tiles, config: next(noise))
    shapes = {1: (size, size), 3: (2 * size, size), 5: (2 * size, 2 * size)}
    pictures = [grey(i, *shapes[tiles]) for i, tiles in enumerate(tiles_per_image)]

    llm = Llama4(checkpoint(name), weights="f32", threads=1)
    logits = llm.logits(ids, images=pictures)
    expected = load_answers()[f"{name}/{prompt}/logits"]
    assert_agrees(logits, expected, f"{name}/{prompt}", tolerance=1e-3)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Random weights and a tokenizer: everything in the prompt matters."""
    whole = MULTIMODAL["vision_tiny_56"]
    ids = {"boi_token_index": IMAGE_START, "eoi_token_index": IMAGE_END}
    config = whole | ids | {"image_token_index": PATCH}
    config["text_config"] = whole["text_config"] | {"vocab_size": VOCAB, "bos_token_id": BOS}
    folder = make_checkpoint(tmp_path_factory.mktemp("random") / "checkpoint", config, 5)
    (folder / "tokenizer.json").write_text(byte_tokenizer_json())
    return folder, config


@pytest.mark.parametrize("count", [1, 3, 8])
def test_logits_of_pictures_equal_the_oracle(
    random_model: tuple[Path, dict[str, Any]], count: int
) -> None:
    """The numpy models stand for transformers, with which they agree (`oracle`)."""
    folder, config = random_model
    pictures = [picture(*size, seed=i) for i, size in enumerate(MIXED_SIZES[:count])]
    prompt = "See " + " and ".join(["<|image|>"] * count) + ": what?"
    logits = Llama4(folder, weights="f32", threads=1).logits(prompt, images=pictures)

    ids = [BOS]
    for index, words in enumerate(["See ", *[" and "] * (count - 1), ": what?"]):
        ids += words.encode()
        if index < count:
            ids.append(IMAGE)
    plans = [plan_image(*size, CONFIG) for size in MIXED_SIZES[:count]]
    tiles = [preprocess(Image.fromarray(shown), CONFIG) for shown in pictures]
    pixels = normalize(np.concatenate(tiles), CONFIG)
    expanded = expand_placeholders(ids, plans, IDS)
    expected = multimodal_forward(config, weights(config, 5), expanded, pixels).logits
    assert_agrees(logits, expected, f"{count} pictures", tolerance=1e-3)


@pytest.mark.parametrize("step_tokens", [1, 5, 16])
def test_steps_may_end_inside_an_image(
    random_model: tuple[Path, dict[str, Any]], step_tokens: int
) -> None:
    folder, _ = random_model
    pictures = [picture(*size, seed=i) for i, size in enumerate(MIXED_SIZES[:3])]
    prompt = "a<|image|>bc<|image|>d<|image|>"
    whole, pieces = (
        Llama4(folder, weights="f32", threads=1, step_tokens=step) for step in (None, step_tokens)
    )
    expected = whole.logits(prompt, images=pictures)
    np.testing.assert_array_equal(pieces.logits(prompt, images=pictures), expected)
    answers = [
        llm.generate(prompt, images=pictures, temperature=0, max_tokens=9)
        for llm in (whole, pieces)
    ]
    assert answers[0].token_ids == answers[1].token_ids


def test_requests_side_by_side_see_their_own_pictures(
    random_model: tuple[Path, dict[str, Any]],
) -> None:
    llm = Llama4(random_model[0], weights="f32", threads=1)
    prompts = ["a<|image|>b", "<|image|><|image|>", "no picture"]
    pictures = [[picture(56, 56)], [picture(112, 56, seed=1), picture(9, 9, seed=2)], []]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    together = llm.generate(prompts, images=pictures, **options)
    for prompt, shown, output in zip(prompts, pictures, together, strict=True):
        alone = llm.generate(prompt, images=shown, **options)
        assert (output.token_ids, output.prompt_token_ids) == (
            alone.token_ids,
            alone.prompt_token_ids,
        )
