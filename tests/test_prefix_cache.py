"""Beginning a request with stored pages changes nothing but the time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MakeCheckpoint
from llama4rs._llama4rs import Engine
from oracle.checkpoint import make_checkpoint
from oracle.configs import MULTIMODAL, TEXT
from oracle.prompts import image_prompts

PAGE = 64


def ask(engine: Engine, ids: list[int], **options: Any) -> tuple[list[tuple[int, float]], int]:
    """Tokens with their log probabilities, and how many prompt tokens were there already."""
    request = engine.submit(ids, max_tokens=6, logprobs=0, **options)
    answer = []
    while (event := request.next()) is not None:
        if event.token_id is not None:
            assert event.logprob is not None
            answer.append((event.token_id, event.logprob))
    return answer, request.usage["cached_tokens"]


@pytest.fixture(scope="module", params=[8, 96, 128, 256], ids=lambda chunk: f"chunk{chunk}")
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Scout-like checkpoint with chunks below, beside and of whole pages."""
    directory = tmp_path_factory.mktemp("prefix")
    config = TEXT["scout_like"] | {"attention_chunk_size": request.param}
    make_checkpoint(directory, config, 5)
    return directory


def text(stem: list[int], length: int) -> list[int]:
    """`length` tokens that depend on the path of branches taken."""
    vocab = TEXT["scout_like"]["vocab_size"]
    return [(7 * i + 13 * stem[min(i // 100, len(stem) - 1)]) % vocab for i in range(length)]


@pytest.mark.parametrize("kv_cache", ["f32", "int8", "int4"])
def test_any_order_of_requests_gives_the_same_answers(path: Path, kv_cache: str) -> None:
    formats = {"weights": "f32", "kv_cache": kv_cache}
    plain = Engine(str(path), **formats, threads=1, prefix_cache_bytes=0)
    requests = st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=4), st.integers(1, 400))

    @settings(max_examples=8 if kv_cache == "f32" else 4, deadline=None)
    @given(
        requests=st.lists(requests, min_size=1, max_size=6),
        budget=st.sampled_from([0, 20_000, 200_000, 1 << 30]),
        step_tokens=st.sampled_from([50, 512]),
    )
    def check(requests: list[tuple[list[int], int]], budget: int, step_tokens: int) -> None:
        reusing = Engine(
            str(path),
            **formats,
            threads=1,
            prefix_cache_bytes=budget,
            step_tokens=step_tokens,
        )
        for stem, length in requests:
            ids = text(stem, length)
            answer, cached = ask(reusing, ids)
            assert answer == ask(plain, ids)[0]
            assert cached % PAGE == 0
            assert cached < length
            assert budget > 0 or cached == 0

    check()


def test_a_conversation_is_computed_once(path: Path) -> None:
    engine = Engine(str(path), weights="f32", threads=1)
    first = text([1], 300)
    assert ask(engine, first)[1] == 0
    chunk = json.loads((path / "config.json").read_text())["attention_chunk_size"]
    _, cached = ask(engine, [*first, 1, 2, 3])
    # Whole pages, where chunks consist of pages; else only where page and chunk both end.
    unit = PAGE if chunk % PAGE == 0 else math.lcm(PAGE, chunk)
    assert cached == 300 // unit * unit


def test_memory_stays_below_the_budget(path: Path) -> None:
    budget = 100_000
    engine = Engine(str(path), weights="f32", threads=1, prefix_cache_bytes=budget)
    for stem in range(6):
        ask(engine, text([stem], 300))
    assert 0 < engine.kv_bytes_in_use() <= budget


def test_images_take_part_by_content(checkpoint: MakeCheckpoint) -> None:
    name = "vision_tiny_56"
    ids, pixels = image_prompts(MULTIMODAL[name])["three_images"]
    ids = [1] * (2 * PAGE) + ids + [2] * (2 * PAGE)
    path = str(checkpoint(name))
    engine = Engine(path, weights="f32", threads=1)
    plain = Engine(path, weights="f32", threads=1, prefix_cache_bytes=0)
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    seen = engine.encode_image(pixels)
    other = engine.encode_image(np.ascontiguousarray(-pixels))
    first, cached = ask(engine, ids, image_features=seen)
    assert cached == 0
    again, cached = ask(engine, ids, image_features=seen)
    assert again == first
    assert cached > 3 * PAGE
    answer, cached = ask(engine, ids, image_features=other)
    assert cached == 2 * PAGE
    assert answer == ask(plain, ids, image_features=other)[0]
