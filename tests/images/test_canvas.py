"""Canvases equal those of transformers, exactly; plans add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4rs.errors import CheckpointError, ImageError
from llama4rs.images import Canvas, ImageConfig, plan_canvas, plan_image

from .cases import ANSWERS, CANVAS_SETTINGS, PUBLISHED, Setting

RELAXED = settings(deadline=None, max_examples=300)
SIDES = st.integers(1, 10_000)


def canvas_of(width: int, height: int, setting: Setting) -> Canvas:
    return plan_canvas(
        width,
        height,
        max_tiles=setting.max_tiles,
        tile_size=setting.tile_size,
        resize_to_max_canvas=setting.resize_to_max_canvas,
    )


@pytest.mark.parametrize("setting", CANVAS_SETTINGS)
def test_equals_the_reference(setting: Setting) -> None:
    index = list(CANVAS_SETTINGS).index(setting)
    with np.load(ANSWERS) as answers:
        rows = answers[f"canvas/{index}"].tolist()
    assert len(rows) == CANVAS_SETTINGS[setting]
    wrong = []
    for width, height, *expected in rows:
        canvas = canvas_of(width, height, setting)
        got = [canvas.rows, canvas.cols, canvas.resized_width, canvas.resized_height]
        if got != expected:
            wrong.append(f"{width} x {height}: {got}, expected {expected}")
    assert not wrong


def test_answers_are_enough() -> None:
    assert CANVAS_SETTINGS[PUBLISHED] == 10_000
    assert ANSWERS.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (512, 512, (2, 2)),
        (1280, 1280, (4, 4)),
        (500, 120, (1, 2)),
        (60, 200, (1, 1)),
        (3000, 700, (2, 8)),
        (336, 336, (1, 1)),
    ],
)
def test_known_canvases(width: int, height: int, expected: tuple[int, int]) -> None:
    canvas = plan_canvas(width, height)
    assert (canvas.rows, canvas.cols) == expected


def test_shrinking_sides_are_floored_from_float32() -> None:
    """In float64 this one is 1511 high."""
    assert plan_canvas(3272, 4908) == Canvas(5, 3, 1008, 1512)


@given(SIDES, SIDES, st.integers(1, 40), st.sampled_from([14, 56, 112, 336]), st.booleans())
@RELAXED
def test_pictures_fit_their_canvas(
    width: int, height: int, max_tiles: int, tile_size: int, resize_to_max: bool
) -> None:
    setting = Setting(tile_size, max_tiles, resize_to_max)
    canvas = canvas_of(width, height, setting)
    assert 1 <= canvas.rows * canvas.cols <= max_tiles
    assert 1 <= canvas.resized_width <= canvas.cols * tile_size
    assert 1 <= canvas.resized_height <= canvas.rows * tile_size
    if not resize_to_max:
        assert canvas.resized_width <= max(width, tile_size)
        assert canvas.resized_height <= max(height, tile_size)


@given(SIDES, SIDES)
@RELAXED
def test_turning_a_picture_turns_its_grid(width: int, height: int) -> None:
    one, other = plan_canvas(width, height), plan_canvas(height, width)
    assert (one.rows, one.cols) == (other.cols, other.rows)


@given(st.integers(1, 4), st.integers(1, 4))
def test_whole_tiles_stay_as_they_are(rows: int, cols: int) -> None:
    assert plan_canvas(cols * 336, rows * 336) == Canvas(rows, cols, cols * 336, rows * 336)


@given(SIDES, SIDES)
@RELAXED
def test_published_token_counts(width: int, height: int) -> None:
    plan = plan_image(width, height)
    num_grid_tiles = plan.canvas.rows * plan.canvas.cols
    expected = 147 if num_grid_tiles == 1 else 145 * num_grid_tiles + 147
    assert plan.num_tokens == expected <= 2467
    assert plan.num_patch_tokens == 144 * plan.num_tiles


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5)])
def test_nothing_to_see(width: int, height: int) -> None:
    with pytest.raises(ImageError, match="nothing to see"):
        plan_canvas(width, height)


@pytest.mark.parametrize(
    "side", ["a", None, True, 5.0, float("nan"), [84], 1 << 31, 10**5000, -(10**400)], ids=type
)
def test_sides_that_are_no_numbers_of_pixels(side: Any) -> None:
    for name, size in (("width", (side, 5)), ("height", (5, side))):
        with pytest.raises(ImageError, match=f"the {name} of an image is a whole number of pixels"):
            plan_image(*size)
    assert plan_image(np.int64(84), 84) == plan_image(84, 84)


# ----------------------------------------------------------------------------------- ImageConfig


def write(directory: Path, **files: object) -> Path:
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (directory / f"{name}.json").write_text(text)
    return directory


VISION = {"image_size": 112, "patch_size": 14, "pixel_shuffle_ratio": 0.5}
PROCESSOR = {
    "size": {"height": 112, "width": 112},
    "max_patches": 4,
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": 0.25,
    "resize_to_max_canvas": True,
    "do_normalize": True,
}


def test_config_from_a_checkpoint(tmp_path: Path) -> None:
    expected = ImageConfig(
        tile_size=112,
        max_tiles=4,
        resample=3,
        mean=(0.4, 0.5, 0.6),
        std=(0.25, 0.25, 0.25),
        resize_to_max_canvas=True,
    )
    (old := tmp_path / "old").mkdir()
    write(old, config={"vision_config": VISION}, preprocessor_config=PROCESSOR)
    assert ImageConfig.from_directory(old) == expected
    (new := tmp_path / "new").mkdir()
    processor = {"image_processor": PROCESSOR, "patch_size": 14}
    write(new, config={"vision_config": VISION}, processor_config=processor)
    assert ImageConfig.from_directory(new) == expected
    assert expected.tokens_per_tile == 16


def test_config_without_a_processor(tmp_path: Path) -> None:
    write(tmp_path, config={"vision_config": VISION})
    assert ImageConfig.from_directory(tmp_path) == ImageConfig(tile_size=112)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "does not read images"),
        ({"config": {"model_type": "llama4_text"}}, "does not read images"),
        ({"config": "{"}, "cannot read"),
        ({"config": "[]"}, "does not hold a JSON object"),
        (
            {"config": {"vision_config": VISION}, "processor_config": {"image_processor": 1}},
            "not a",
        ),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ImageConfig.from_directory(write(tmp_path, **files))


@pytest.mark.parametrize(
    ("processor", "vision", "message"),
    [
        ({"size": {"height": 112, "width": 112}}, {"image_size": 336}, "tiles of 112.*reads 336"),
        ({"size": {"height": 112, "width": 56}}, {}, "square"),
        ({"size": {"shortest_edge": 112}}, {}, "square"),
        ({"size": 100}, {}, "cannot be cut into patches"),
        ({"size": 42}, {}, "cannot be cut into patches"),
        ({"max_patches": 0}, {}, "must be positive"),
        ({"max_patches": "many"}, {}, "malformed"),
        ({"max_patches": [4]}, {}, "malformed"),
        ({}, {"pixel_shuffle_ratio": 0}, "pixel_shuffle_ratio"),
        ({"resample": 9}, {}, "resize filter"),
        ({"image_mean": [0.5, 0.5]}, {}, "malformed"),
        ({"image_std": [0.5, 0.0, 0.5]}, {}, "cannot be normalized"),
        ({"rescale_factor": float("nan")}, {}, "cannot be normalized"),
        ({"do_resize": False}, {}, "do_resize"),
        ({"do_normalize": False}, {}, "do_normalize"),
    ],
)
def test_contradictions(processor: dict, vision: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ImageConfig.from_dicts(processor, vision)
