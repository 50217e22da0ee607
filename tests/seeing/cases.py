"""Pictures, messages and sizes of the small model that sees."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from PIL import Image

from chain_model import IMAGE, IMAGE_END, IMAGE_START, PATCH, TILE_X, TILE_Y
from llama4rs.images import ImageConfig, ImageTokens

TILE = 56
TOKENS_PER_TILE = 4
FEATURE_BYTES = TOKENS_PER_TILE * 64 * 4
"""Of an image of one tile: tokens, hidden size, float32."""
IDS = ImageTokens(
    image_start=IMAGE_START,
    image_end=IMAGE_END,
    tile_x_separator=TILE_X,
    tile_y_separator=TILE_Y,
    image=IMAGE,
    patch=PATCH,
)
CONFIG = ImageConfig(tile_size=TILE)
ONE_TILE = (IMAGE_START, IMAGE, PATCH, PATCH, PATCH, PATCH, IMAGE_END)
RELAXED = settings(deadline=None, max_examples=60)
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 3}

MIXED_SIZES = [(56, 56), (112, 56), (30, 20), (57, 200), (300, 40), (112, 112), (90, 90), (1, 1)]
"""Width and height; with and without resizing, 1 to 7 tiles."""

Pixels = npt.NDArray[np.uint8]


def grey(level: int, width: int = TILE, height: int = TILE) -> Pixels:
    return np.full((height, width, 3), level, dtype=np.uint8)


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(pixels: Pixels) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def image_part(source: object) -> dict[str, object]:
    return {"type": "image", "image": source}


def text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}
