"""From a picture to tiles, and from tiles to the token sequence, by the rules of Llama 4."""

from functools import lru_cache

import numpy as np
from PIL import Image

from cria.config import VISION


@lru_cache(maxsize=4096)
def canvas_for(width: int, height: int) -> tuple[int, int]:
    """Choose the canvas (rows, columns of tiles) for a picture."""
    side, limit = VISION.tile, VISION.max_tiles
    best = None
    for rows in range(1, limit + 1):
        for columns in range(1, limit // rows + 1):
            scale = min(
                np.float32(columns * side) / np.float32(width),
                np.float32(rows * side) / np.float32(height),
            )
            key = (scale < 1, scale if scale >= 1 else -scale, rows * columns)
            if best is None or key < best[0]:
                best = (key, (rows, columns))
    return best[1]


def split_into_tiles(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """Return byte tiles [n, 3, side, side] (the global tile last) and the canvas."""
    side = VISION.tile
    image = image.convert("RGB")
    width, height = image.size
    rows, columns = canvas_for(width, height)
    target_w = min(max(width, side), columns * side)
    target_h = min(max(height, side), rows * side)
    scale_w, scale_h = target_w / width, target_h / height
    if scale_w < scale_h:
        size = (target_w, max(1, min(int(height * scale_w), target_h)))
    else:
        size = (max(1, min(int(width * scale_h), target_w)), target_h)
    canvas = np.zeros((rows * side, columns * side, 3), dtype=np.uint8)
    resized = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    canvas[: size[1], : size[0]] = np.asarray(resized)
    tiles = canvas.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(-1, 3, side, side)
    if rows * columns > 1:
        whole = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        tiles = np.concatenate((tiles, whole.transpose(2, 0, 1)[None]))
    return tiles, (rows, columns)


def image_tokens(canvas: tuple[int, int]) -> str:
    """Write the token sequence that stands for one picture in the prompt."""
    patches = "<|patch|>" * VISION.tokens_per_tile
    rows, columns = canvas
    tiled = ""
    if rows * columns > 1:
        row = "<|tile_x_separator|>".join([patches] * columns) + "<|tile_y_separator|>"
        tiled = row * rows
    return f"<|image_start|>{tiled}<|image|>{patches}<|image_end|>"


def normalise(tiles: np.ndarray) -> np.ndarray:
    """Map bytes to [-1, 1] as the image processor does."""
    return (tiles.astype(np.float32) / 255.0 - 0.5) / 0.5
