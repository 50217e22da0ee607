"""Every mistake is named before anything is encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chain_model import BOS, IMAGE, PATCH, make_chain_model
from images.pictures import picture
from llama4rs import ImageError, Llama4, RequestError, TokenizerError

from .cases import GREEDY, MIXED_SIZES, ONE_TILE, grey


@pytest.mark.parametrize(
    ("prompt", "num_images", "words"),
    [
        ("<|image|>", 2, r"2 images for 1 <\|image\|> placeholder"),
        ("<|image|><|image|>", 1, r"1 image for 2 <\|image\|> placeholders"),
        ("<|image|>", 0, "no images"),
        ("<|patch|>", 0, "no images"),
        ([BOS, 10], 1, r"1 image for 0 <\|image\|> placeholders"),
        ([IMAGE], 0, "no images"),
        ([BOS, *ONE_TILE], 2, r"2 images with 8 vision tokens for 4 <\|patch\|>"),
        ([PATCH], 1, r"1 image with 4 vision tokens for 1 <\|patch\|>"),
    ],
)
def test_counts_must_agree(llm: Llama4, prompt: Any, num_images: int, words: str) -> None:
    misses = llm.image_cache.misses
    shown = [grey(200 + i) for i in range(num_images)]
    for ask in (llm.generate, llm.stream, llm.logits):
        with pytest.raises(ImageError, match=words):
            ask(prompt, images=shown)
    assert llm.image_cache.misses == misses, "encoded for nothing"


def test_a_bad_image_is_named_and_nothing_is_encoded(fresh: Llama4) -> None:
    with pytest.raises(ImageError, match=r"^not an image"):
        fresh.chat("what?", images=[b"no image"])
    with pytest.raises(ImageError, match=r"image 2 of 2: cannot read image 'nowhere\.png'"):
        fresh.chat("what?", images=[grey(9), "nowhere.png"])
    assert fresh.image_cache.misses == 0


@pytest.mark.parametrize("images", ["cat.png", Path("cat.png"), b"png", grey(9), 5])
def test_one_image_is_no_list(llm: Llama4, images: Any) -> None:
    with pytest.raises(TypeError, match=r"write \[image\]"):
        llm.generate("a", images=images)
    with pytest.raises(TypeError, match=r"write \[image\]"):
        llm.chat("a", images=images)
    with pytest.raises(TypeError, match="for each prompt"):
        llm.generate(["a", "b"], images=images)


def test_images_of_batches_and_conversations(llm: Llama4) -> None:
    with pytest.raises(ImageError, match="1 lists of images for 2 prompts"):
        llm.generate(["a", "b"], images=[[grey(9)]])
    with pytest.raises(TypeError, match="for each prompt"):
        llm.generate(["a"], images=[grey(9)])
    talk = [{"role": "user", "content": "hi"}]
    with pytest.raises(TypeError, match="into its messages"):
        llm.chat(talk, images=[grey(9)])
    with pytest.raises(TypeError, match="into its messages"):
        llm.generate([talk], images=[[grey(9)]])
    with pytest.raises(ImageError, match="image part without an image"):
        llm.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


def test_text_only_models_say_so(blind: Llama4) -> None:
    assert not blind.has_vision
    for ask in (
        lambda: blind.generate("a", images=[grey(9)]),
        lambda: blind.chat("a", images=["nowhere.png"]),
        lambda: blind.logits([1], images=[grey(9)]),
        lambda: blind.plan_image(20, 20),
    ):
        with pytest.raises(RequestError, match="reads no images: it has no vision part"):
            ask()
    assert blind.generate("<|image|>", **GREEDY).prompt_token_ids == (BOS, IMAGE)
    assert blind.image_cache.misses == 0


def test_without_a_tokenizer_only_expanded_ids_work(
    tmp_path: Path, llm: Llama4, folder: Path
) -> None:
    silent = Llama4(make_chain_model(tmp_path, vision=True, tokenizer=False), threads=1)
    expected = llm.logits([BOS, IMAGE], images=[grey(9)])
    np.testing.assert_array_equal(silent.logits([BOS, *ONE_TILE], images=[grey(9)]), expected)
    with pytest.raises(TokenizerError, match=rf"ids of <\|image\|>.*\nhint: .* {PATCH} for every"):
        silent.logits([BOS, IMAGE], images=[grey(9)])
    assert silent.plan_image(56, 56).num_tokens == len(ONE_TILE)
    helped = Llama4(silent.path, threads=1, tokenizer=folder)
    np.testing.assert_array_equal(helped.logits([BOS, IMAGE], images=[grey(9)]), expected)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    make_chain_model(tmp_path, vision=True)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|patch|>", "<|grid|>"))
    with pytest.raises(TokenizerError, match=r"it has no <\|patch\|>"):
        Llama4(tmp_path, threads=1).generate("a", images=[grey(9)])
    swapped = file.read_text().replace("<|image_end|>", "<|patch|>")
    file.write_text(swapped.replace("<|grid|>", "<|image_end|>"))
    with pytest.raises(TokenizerError, match="not of the same model"):
        Llama4(tmp_path, threads=1).generate("a", images=[grey(9)])


def test_too_long_before_anything_is_encoded(folder: Path) -> None:
    small = Llama4(folder, threads=1, max_context=40)
    assert small.generate("a", images=[grey(9)] * 4, **GREEDY).usage.prompt_tokens == 30
    with pytest.raises(RequestError, match="first 6 of 7 images the prompt has 45 tokens"):
        small.generate("a", images=[grey(i) for i in range(7)])
    with pytest.raises(RequestError, match="with its image the prompt has"):
        small.generate("a", images=[picture(224, 224)])
    assert small.image_cache.misses == 1


def test_plan(llm: Llama4) -> None:
    plan = llm.plan_image(112, 56)
    assert (plan.num_tiles, plan.num_tokens, plan.num_patch_tokens) == (3, 17, 12)
    for width, height in MIXED_SIZES:
        output = llm.generate("", images=[picture(width, height)], max_tokens=1)
        assert output.usage.prompt_tokens == 1 + llm.plan_image(width, height).num_tokens
    with pytest.raises(ImageError):
        llm.plan_image(0, 5)
