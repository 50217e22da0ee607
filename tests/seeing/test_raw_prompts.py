"""Images in texts, token ids, batches and streams."""

from __future__ import annotations

import asyncio

import numpy as np

from chain_model import BOS, IMAGE, IMAGE_END, IMAGE_START, PATCH, SCRIPT, TILE_X, TILE_Y
from llama4rs import Llama4

from .cases import GREEDY, ONE_TILE, TOKENS_PER_TILE, grey


def test_images_come_first_without_a_mark(llm: Llama4) -> None:
    assert llm.has_vision
    output = llm.generate("a\n", images=[grey(9)], temperature=0)
    assert output.prompt_token_ids == (BOS, *ONE_TILE, *b"a\n")
    assert output.text == SCRIPT
    two = llm.generate("<|begin_of_text|>a", images=[grey(9), grey(8)], **GREEDY)
    assert two.prompt_token_ids == (BOS, *ONE_TILE, *ONE_TILE, ord("a"))


def test_marks_are_the_places(llm: Llama4) -> None:
    output = llm.generate("a<|image|>b<|image|>", images=[grey(9), grey(8, 112)], **GREEDY)
    tile = (PATCH,) * TOKENS_PER_TILE
    wide = (IMAGE_START, *tile, TILE_X, *tile, TILE_Y, IMAGE, *tile, IMAGE_END)
    assert output.prompt_token_ids == (BOS, ord("a"), *ONE_TILE, ord("b"), *wide)
    assert output.usage.prompt_tokens == len(output.prompt_token_ids)


def test_marks_may_be_mere_text(llm: Llama4) -> None:
    output = llm.generate("<|image|>", images=[grey(9)], parse_special=False, **GREEDY)
    assert output.prompt_token_ids == (BOS, *ONE_TILE, *b"<|image|>")
    assert IMAGE not in llm.generate("<|image|>", parse_special=False, **GREEDY).prompt_token_ids


def test_token_ids_have_places_or_are_expanded(llm: Llama4) -> None:
    short = llm.generate([BOS, IMAGE, 10], images=[grey(9)], **GREEDY)
    assert short.prompt_token_ids == (BOS, *ONE_TILE, 10)
    again = llm.generate(short.prompt_token_ids, images=[grey(9)], **GREEDY)
    assert (again.prompt_token_ids, again.text) == (short.prompt_token_ids, short.text)
    one = llm.logits([BOS, IMAGE, 10], images=[grey(9)])
    np.testing.assert_array_equal(llm.logits([BOS, *ONE_TILE, 10], images=[grey(9)]), one)
    np.testing.assert_array_equal(llm.logits("\n", images=[grey(9)]), one)


def test_batches_take_lists_of_lists(llm: Llama4) -> None:
    prompts = ["a", "b<|image|>", "c"]
    shown = [[grey(9), grey(8)], (grey(7),), None]
    outputs = llm.generate(prompts, images=shown, **GREEDY)
    assert [output.prompt_token_ids for output in outputs] == [
        (BOS, *ONE_TILE, *ONE_TILE, ord("a")),
        (BOS, ord("b"), *ONE_TILE),
        (BOS, ord("c")),
    ]
    assert llm.generate([], images=[]) == []


def test_streams(llm: Llama4) -> None:
    assert "".join(llm.stream("\n", images=[grey(9)], temperature=0)) == SCRIPT
    assert "".join(llm.chat_stream("a", images=[grey(9)], temperature=0)) == SCRIPT

    async def read() -> str:
        stream = llm.astream("\n", images=[grey(9)], temperature=0)
        return "".join([piece async for piece in stream])

    assert asyncio.run(read()) == SCRIPT
