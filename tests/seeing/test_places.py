"""Any places and images: prompts, logits and features agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain_model import BOS, IMAGE, PATCH
from llama4rs import ImageError, Llama4
from llama4rs.images import expand_placeholders, plan_image

from .cases import CONFIG, IDS, MIXED_SIZES, RELAXED, grey

SOURCES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(MIXED_SIZES)), max_size=3)


@given(SOURCES, st.lists(st.sampled_from(["a", "bc", "<|image|>"]), max_size=6))
@RELAXED
def test_places_and_images(
    llm: Llama4, sources: list[tuple[int, tuple[int, int]]], pieces: list[str]
) -> None:
    """Any number of images at any places: the tokens are those of the reference, each image's
    features stand at its own patches, and other counts are errors."""
    pictures = [grey(80 * level, *size) for level, size in sources]
    text = "".join(pieces)
    num_places = pieces.count("<|image|>")
    if num_places != len(sources) and (num_places or not sources):
        with pytest.raises(ImageError, match="image"):
            llm.logits(text, images=pictures)
        return
    ids = [BOS] + ([] if num_places else [IMAGE] * len(sources))
    for piece in pieces:
        ids += [IMAGE] if piece == "<|image|>" else piece.encode()
    expanded = expand_placeholders(ids, [plan_image(*size, CONFIG) for _, size in sources], IDS)
    assert llm.generate(text, images=pictures, max_tokens=1).prompt_token_ids == tuple(expanded)

    logits = llm.logits(text, images=pictures)
    at_patches = logits[np.array(expanded) == PATCH]
    alone = [llm.logits([IMAGE], images=[shown]) for shown in pictures]
    marks = [
        np.array(expand_placeholders([IMAGE], [plan_image(*size, CONFIG)], IDS)) == PATCH
        for _, size in sources
    ]
    expected = [rows[mark] for rows, mark in zip(alone, marks, strict=True)]
    if expected:
        np.testing.assert_allclose(at_patches, np.concatenate(expected), atol=1e-4)
