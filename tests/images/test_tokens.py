"""Token sequences equal those of transformers' processor; counts are checked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4rs.errors import ImageError, TokenizerError
from llama4rs.images import (
    ImageConfig,
    ImagePlan,
    ImageTokens,
    check_patches,
    expand_placeholders,
    image_prompt_tokens,
    plan_image,
)

from .cases import ANSWERS, NUM_TOKEN_CASES, TOKEN_NAMES, TOKEN_SETTINGS

IDS = ImageTokens()
RELAXED = settings(deadline=None, max_examples=100)
SIZES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=6)


def stored_cases() -> Iterator[tuple[ImageConfig, list[int], list[list[int]], list[int]]]:
    """Settings, prompt, sizes of images, expanded prompt."""
    with np.load(ANSWERS) as answers:
        lengths = answers["tokens/lengths"].astype(int)
        parts = [answers[f"tokens/{name}"] for name in ("prompts", "sizes", "expanded")]
    cuts = np.cumsum(lengths[:, 1:], axis=0)[:-1]
    columns = [np.split(part, cuts[:, i]) for i, part in enumerate(parts)]
    for (setting, *_), prompt, sizes, expanded in zip(lengths, *columns, strict=True):
        tile_size, max_tiles, _ = TOKEN_SETTINGS[setting]
        config = ImageConfig(tile_size=tile_size, max_tiles=max_tiles)
        yield config, prompt.tolist(), sizes.tolist(), expanded.tolist()


def test_equals_the_reference() -> None:
    with np.load(ANSWERS) as answers:
        ids = ImageTokens(**dict(zip(TOKEN_NAMES, answers["tokens/ids"].tolist(), strict=True)))
    grids, num_cases = set(), 0
    for config, prompt, sizes, expected in stored_cases():
        plans = [plan_image(width, height, config) for width, height in sizes]
        assert expand_placeholders(prompt, plans, ids) == expected, f"images of {sizes}"
        check_patches(expected, plans, ids)
        grids |= {(plan.canvas.rows, plan.canvas.cols) for plan in plans}
        num_cases += 1
    assert num_cases == NUM_TOKEN_CASES >= 200
    assert len(grids) > 20


def test_one_tile() -> None:
    tokens = image_prompt_tokens(plan_image(300, 200), IDS)
    assert tokens == [200080, 200090, *[200092] * 144, 200081]


def test_grid() -> None:
    plan = plan_image(112, 84, ImageConfig(tile_size=28))  # 4 columns, 3 rows, 1 token a tile
    row = [200092, 200084, 200092, 200084, 200092, 200084, 200092, 200085]
    assert image_prompt_tokens(plan, IDS) == [200080, *row * 3, 200090, 200092, 200081]


@given(SIZES, st.lists(st.integers(0, 199_999), max_size=10), st.randoms())
@RELAXED
def test_images_stay_in_order(sizes: list[tuple[int, int]], text: list[int], random) -> None:
    plans = [plan_image(*size, ImageConfig(tile_size=56)) for size in sizes]
    prompt = text + [IDS.image] * len(plans)
    random.shuffle(prompt)
    expanded = expand_placeholders(prompt, plans, IDS)
    check_patches(expanded, plans, IDS)
    assert len(expanded) == len(text) + sum(plan.num_tokens for plan in plans)
    starts = [i for i, token in enumerate(expanded) if token == IDS.image_start]
    assert len(starts) == len(plans)
    for start, plan in zip(starts, plans, strict=True):
        assert expanded[start : start + plan.num_tokens] == image_prompt_tokens(plan, IDS)
    special = {IDS.image_start, IDS.image_end, IDS.tile_x_separator, IDS.tile_y_separator}
    special |= {IDS.image, IDS.patch}
    assert [i for i in expanded if i not in special] == [i for i in prompt if i != IDS.image]


@pytest.mark.parametrize(
    ("num_places", "num_images", "message"),
    [
        (0, 1, r"1 image for 0 <\|image\|> placeholders"),
        (1, 0, r"0 images for 1 <\|image\|> placeholder in"),
        (2, 3, r"3 images for 2 <\|image\|> placeholders"),
        (48, 47, r"47 images for 48 <\|image\|> placeholders"),
    ],
)
def test_counts_must_agree(num_places: int, num_images: int, message: str) -> None:
    plans: list[ImagePlan] = [plan_image(20, 20)] * num_images
    with pytest.raises(ImageError, match=message):
        expand_placeholders([5, *[IDS.image] * num_places, 6], plans, IDS)


def test_nothing_is_expanded_twice() -> None:
    plan = plan_image(20, 20)
    with pytest.raises(ImageError, match="expanded already"):
        expand_placeholders(image_prompt_tokens(plan, IDS), [plan], IDS)


def test_patches_must_agree() -> None:
    plan = plan_image(20, 20)
    with pytest.raises(ImageError, match=r"1 image with 144 vision tokens for 143 <\|patch\|>"):
        check_patches(image_prompt_tokens(plan, IDS)[:-2], [plan], IDS)


def test_ids_of_a_tokenizer() -> None:
    names = {f"<|{name}|>": i for i, name in enumerate(TOKEN_NAMES)}
    assert ImageTokens.from_special_tokens({**names, "<|eot|>": 99}).patch == 5
    del names["<|patch|>"]
    with pytest.raises(TokenizerError, match=r"no <\|patch\|>"):
        ImageTokens.from_special_tokens(names)
