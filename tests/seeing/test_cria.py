"""The demo model answers about pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import llama4rs
from images.pictures import picture
from llama4rs import Llama4

from .cases import GREEDY, image_part, png, text_part


def test_cria_answers_about_pictures(cria: Llama4, tmp_path: Path) -> None:
    from llama4rs.demo import draw_picture

    drawn = draw_picture(84).image
    file = tmp_path / "shapes.png"
    drawn.save(file)
    hits = cria.image_cache.hits
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": [image_part(file), text_part("How many shapes are there?")]}
    ]
    answer = cria.chat(talk, temperature=0, max_tokens=40)
    assert answer.finish_reason == "stop"
    assert answer.text.startswith("There ")
    talk += [answer.message, {"role": "user", "content": "Describe the picture."}]
    follow_up = cria.chat(talk, temperature=0, max_tokens=80)
    assert any(shape in follow_up.text for shape in ("circle", "square", "triangle"))
    assert cria.image_cache.hits == hits + 1
    other = cria.chat("How many shapes are there?", images=[drawn], temperature=0, max_tokens=40)
    assert (other.text, other.prompt_token_ids) == (answer.text, answer.prompt_token_ids)


def test_cria_takes_raw_prompts_and_token_ids(cria: Llama4, tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(png(picture(200, 100)))
    output = llama4rs.generate("What is in this picture?", images=[file], **GREEDY)
    plan = cria.plan_image(200, 100)
    assert (plan.num_tiles, plan.num_tokens) == (7, 7 * 9 + 6 + 3)
    text = cria.tokenizer.encode("What is in this picture?")
    assert output.usage.prompt_tokens == 1 + plan.num_tokens + len(text)
    expanded = cria.logits(output.prompt_token_ids, images=[file])
    np.testing.assert_array_equal(expanded, cria.logits("What is in this picture?", images=[file]))


def test_cria_in_small_steps(cria: Llama4) -> None:
    shown = [picture(100, 60, seed=i) for i in range(3)]
    prompt = "a <|image|> b <|image|><|image|>"
    small = Llama4(threads=1, step_tokens=7)
    assert small.generate(prompt, images=shown, **GREEDY).token_ids == (
        cria.generate(prompt, images=shown, **GREEDY).token_ids
    )
    expected = cria.logits(prompt, images=shown)
    np.testing.assert_array_equal(small.logits(prompt, images=shown), expected)
