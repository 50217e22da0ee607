"""Features are kept, within a bound, and change no logits."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chain_model import IMAGE
from images.pictures import picture
from llama4rs import Llama4, RequestError
from llama4rs.image_cache import ImageCache

from .cases import FEATURE_BYTES, GREEDY, RELAXED, grey, image_part, png, text_part


def test_a_follow_up_does_not_encode_again(fresh: Llama4) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [image_part(picture(112, 112)), text_part("what?")]}
    ]
    for turn in range(3):
        messages.append(fresh.chat(messages, **GREEDY).message)
        messages.append({"role": "user", "content": "and?"})
        assert (fresh.image_cache.misses, fresh.image_cache.hits) == (1, turn)
    assert fresh.image_cache.bytes == 5 * FEATURE_BYTES
    changed = picture(112, 112)
    changed[5, 5, 0] ^= 1
    fresh.chat("what?", images=[changed], **GREEDY)
    assert fresh.image_cache.misses == 2


def test_the_cache_changes_no_logits(folder: Path) -> None:
    shown = [picture(112, 56), grey(3), picture(112, 56)]
    keeping, forgetting = Llama4(folder), Llama4(folder, image_cache_bytes=0)
    first = keeping.logits("abc", images=shown)
    for llm in (keeping, forgetting):
        np.testing.assert_array_equal(llm.logits("abc", images=shown), first)
    assert (keeping.image_cache.misses, keeping.image_cache.hits) == (2, 4)
    assert (forgetting.image_cache.misses, forgetting.image_cache.bytes) == (3, 0)


def test_the_cache_is_bounded(folder: Path) -> None:
    llm = Llama4(folder, threads=1, image_cache_bytes=2 * FEATURE_BYTES)
    cache = llm.image_cache

    def show(*levels: int) -> tuple[int, int]:
        before = cache.hits, cache.misses
        for level in levels:
            llm.generate("a", images=[grey(level)], max_tokens=1)
        return cache.hits - before[0], cache.misses - before[1]

    assert show(1, 2, 1) == (1, 2)
    assert show(3) == (0, 1)  # 2 was seen longest ago
    assert show(1) == (1, 0)
    assert show(2) == (0, 1)
    assert (len(cache), cache.bytes) == (2, 2 * FEATURE_BYTES)
    llm.generate("a", images=[picture(112, 112)], max_tokens=1)  # larger than the cache
    assert (len(cache), cache.bytes) == (2, 2 * FEATURE_BYTES)
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    assert "max_bytes=2048" in repr(cache)


@pytest.mark.parametrize("size", [-1, 1.5, True, "many"])
def test_cache_sizes_are_checked(size: Any) -> None:
    with pytest.raises(RequestError, match="image_cache_bytes"):
        ImageCache(size)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), max_size=40), st.integers(0, 60))
@RELAXED
def test_cache_against_a_plain_list(shown: list[tuple[int, int]], max_bytes: int) -> None:
    cache = ImageCache(max_bytes)
    model: list[tuple[bytes, int]] = []  # latest last
    for key, length in shown:
        name = f"{key} {length}".encode()
        found = cache.find(name)
        assert (found is not None) == (name in [kept for kept, _ in model])
        if found is None:
            cache.keep(name, np.zeros(length, np.float32))
        model = [entry for entry in model if entry[0] != name]
        if found is not None or 4 * length <= max_bytes:
            model.append((name, 4 * length))
        while sum(size for _, size in model) > max_bytes:
            model.pop(0)
        assert cache.bytes == sum(size for _, size in model) <= max_bytes
        assert len(cache) == len(model)
    assert cache.hits + cache.misses == len(shown)


def test_threads_share_the_cache(folder: Path) -> None:
    llm = Llama4(folder, threads=1, image_cache_bytes=3 * FEATURE_BYTES)
    expected = [llm.logits([IMAGE], images=[grey(40 * i)]) for i in range(5)]
    wrong: list[int] = []

    def work(start: int) -> None:
        for step in range(20):
            index = (start + step) % 5
            logits = llm.logits([IMAGE], images=[grey(40 * index)])
            if not np.array_equal(logits, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    cache = llm.image_cache
    assert cache.hits + cache.misses == 5 + 6 * 20
    assert (len(cache), cache.bytes) == (3, 3 * FEATURE_BYTES)


def test_decoded_pictures_are_let_go(llm: Llama4, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images a prompt has, one of them is decoded at a time."""
    from llama4rs.images import load_image

    decoded: list[weakref.ref[Image.Image]] = []

    def watched(source: Any, **options: Any) -> Image.Image:
        assert [reference() for reference in decoded] == [None] * len(decoded)
        loaded = load_image(source, **options)
        decoded.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr("llama4rs.images.load_image", watched)
    llm.generate("a", images=[png(picture(60, 60, seed=i)) for i in range(12)], max_tokens=1)
    assert len(decoded) == 12
