"""Tiles equal those of transformers: bit for bit where nothing is resized, else nearly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llama4rs.errors import ImageError
from llama4rs.images import ImageConfig, load_image, normalize, plan_image, preprocess

from .cases import (
    ANSWERS,
    MODE_CASES,
    NORMALIZATIONS,
    PIXEL_CASES,
    PixelCase,
    mode_picture,
    sampled,
)
from .pictures import picture

MAX_DIFFERENCE = 2
SMALL = ImageConfig(tile_size=56)
RELAXED = settings(deadline=None, max_examples=100)


@pytest.fixture(scope="module")
def answers() -> dict[str, npt.NDArray]:
    with np.load(ANSWERS) as file:
        return dict(file)


def config_of(case: PixelCase) -> ImageConfig:
    tile_size, max_tiles, resize_to_max_canvas = case.setting
    return ImageConfig(
        tile_size=tile_size, max_tiles=max_tiles, resize_to_max_canvas=resize_to_max_canvas
    )


def difference(got: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> npt.NDArray:
    assert got.shape == expected.shape
    return np.abs(got.astype(int) - expected.astype(int))


@pytest.mark.parametrize("case", PIXEL_CASES, ids=lambda case: f"{case[0]}x{case[1]}@{case[2][0]}")
def test_equals_the_reference(case: PixelCase, answers: dict[str, npt.NDArray]) -> None:
    index = PIXEL_CASES.index(case)
    image = load_image(picture(case.width, case.height, index))
    tiles = preprocess(image, config_of(case))
    levels = difference(sampled(tiles), answers[f"pixels/{index}"])
    assert levels.max() <= MAX_DIFFERENCE
    plan = plan_image(*image.size, config_of(case))
    if (plan.canvas.resized_width, plan.canvas.resized_height) == image.size:
        in_grid = np.zeros(tiles.shape, dtype=np.uint8)
        in_grid[: plan.canvas.rows * plan.canvas.cols] = 1
        assert levels[sampled(in_grid) == 1].max() == 0


@pytest.mark.parametrize("case", MODE_CASES)
def test_modes_equal_the_reference(case: str, answers: dict[str, npt.NDArray]) -> None:
    tiles = preprocess(load_image(mode_picture(case)), SMALL)
    assert difference(tiles, answers[f"modes/{case}"]).max() == 0


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalization_equals_the_reference(name: str, answers: dict[str, npt.NDArray]) -> None:
    mean, std = NORMALIZATIONS[name]
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    values = normalize(levels, ImageConfig(mean=mean, std=std))
    assert values.dtype == np.float32
    assert np.array_equal(values.reshape(3, 256), answers[f"normalization/{name}"])


def test_flavours_of_normalization() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    hf, meta = normalize(levels), normalize(levels, flavour="meta")
    different = hf[0, 0] != meta[0, 0]
    assert different.sum() == 128
    assert np.abs(hf - meta).max() < 0.004
    exact = (levels / np.float64(255) - 0.5) / 0.5
    assert np.abs(meta - exact).max() <= 2**-9  # half a step of bfloat16 below 1
    assert not (meta.view(np.uint32) & 0xFFFF).any()
    with pytest.raises(ValueError, match="flavour"):
        normalize(levels, flavour="other")  # type: ignore[arg-type]


def test_tiles_go_right_then_down_and_the_overview_is_last() -> None:
    array = np.zeros((112, 168, 3), dtype=np.uint8)
    for row in range(2):
        for col in range(3):
            array[row * 56 : row * 56 + 56, col * 56 : col * 56 + 56] = [row, col, 9]
    tiles = preprocess(load_image(array), SMALL)
    assert tiles.shape == (7, 3, 56, 56)
    assert tiles.dtype == np.uint8 and tiles.flags.c_contiguous
    for index in range(6):
        assert np.array_equal(np.unique(tiles[index, 0]), [index // 3])
        assert np.array_equal(np.unique(tiles[index, 1]), [index % 3])
    assert (tiles[6, 2] == 9).all()
    # The overview is squeezed to a square: its right edge is the picture's.
    assert tiles[6, 1, 0, -1] == 2 and tiles[6, 0, -1, 0] == 1


def test_padding_is_black() -> None:
    tiles = preprocess(load_image(np.full((30, 100, 3), 200, dtype=np.uint8)), SMALL)
    assert len(tiles) == 3
    assert (tiles[:2, :, 30:] == 0).all() and (tiles[1, :, :, 44:] == 0).all()
    assert (tiles[:2, :, :30, :44] == 200).all()
    assert normalize(tiles)[0, 0, -1, -1] == -1.0


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 20),
    st.sampled_from([28, 56, 84]),
    st.booleans(),
)
@RELAXED
def test_any_size(width: int, height: int, max_tiles: int, tile_size: int, to_max: bool) -> None:
    config = ImageConfig(tile_size=tile_size, max_tiles=max_tiles, resize_to_max_canvas=to_max)
    plan = plan_image(width, height, config)
    tiles = preprocess(Image.new("RGB", (width, height), (250, 128, 7)), config)
    assert tiles.shape == (plan.num_tiles, 3, tile_size, tile_size)
    canvas = plan.canvas
    grid = tiles[: canvas.rows * canvas.cols].reshape(
        canvas.rows, canvas.cols, 3, tile_size, tile_size
    )
    whole = grid.transpose(2, 0, 3, 1, 4).reshape(3, canvas.rows * tile_size, -1)
    inside = whole[:, : canvas.resized_height, : canvas.resized_width]
    assert (inside == np.array([250, 128, 7], dtype=np.uint8)[:, None, None]).all()
    num_bright = canvas.resized_width * canvas.resized_height
    assert np.count_nonzero(whole) == 3 * num_bright


def test_only_rgb() -> None:
    with pytest.raises(ImageError, match="mode L"):
        preprocess(Image.new("L", (5, 5)))


def test_longest_side_takes_little_time() -> None:
    tiles = preprocess(Image.new("RGB", (1, 65_535), "white"))
    assert len(tiles) == 17
    assert tiles[-1].min() == 255
