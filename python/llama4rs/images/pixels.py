"""A picture to the tiles that the vision encoder reads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ImageError
from .config import ImageConfig
from .plan import ImagePlan, plan_image

__all__ = ["preprocess"]


def preprocess(image: Image.Image, config: ImageConfig | None = None) -> npt.NDArray[np.uint8]:
    """Lay an image on its canvas and cut that into tiles.

    The picture is resized to the plan of `plan_image` and put into the top left corner of a black
    canvas. Tiles go from left to right, then down. If there are several, the whole picture
    follows as one more tile, its proportions not kept.

    Resizing is Pillow's. The reference uses torchvision, whose bytes differ by one or two levels
    in some places; where nothing is resized both are equal.

    Args:
        image: As `load_image` gives it, mode RGB.
        config: The checkpoint's settings; by default those of Scout and Maverick.

    Returns:
        ``[tiles, 3, tile_size, tile_size]``, bytes. For the encoder see `normalize`.

    Raises:
        ImageError: The image has no pixels or is not RGB.
    """
    if image.mode != "RGB":
        raise ImageError(f"an image of mode {image.mode}, not RGB\nhint: use load_image first")
    config = config or ImageConfig()
    plan = plan_image(*image.size, config)
    size = config.tile_size
    tiles = np.empty((plan.num_tiles, 3, size, size), dtype=np.uint8)
    _cut(_canvas(image, plan, config), tiles[: plan.canvas.rows * plan.canvas.cols])
    if plan.canvas.has_overview:
        tiles[-1] = _resized(image, size, size, config).transpose(2, 0, 1)
    return tiles


def _canvas(image: Image.Image, plan: ImagePlan, config: ImageConfig) -> npt.NDArray[np.uint8]:
    """The canvas, ``[rows, tile_size, cols, tile_size, 3]``."""
    rows, cols, size = plan.canvas.rows, plan.canvas.cols, config.tile_size
    width, height = plan.canvas.resized_width, plan.canvas.resized_height
    canvas = np.zeros((rows * size, cols * size, 3), dtype=np.uint8)
    canvas[:height, :width] = _resized(image, width, height, config)
    return canvas.reshape(rows, size, cols, size, 3)


def _cut(canvas: npt.NDArray[np.uint8], tiles: npt.NDArray[np.uint8]) -> None:
    """``[rows, tile_size, cols, tile_size, 3]`` into ``[rows * cols, 3, tile_size, tile_size]``."""
    rows, size, cols, _, channels = canvas.shape
    by_tile = tiles.reshape(rows, cols, channels, size, size)
    by_tile[...] = canvas.transpose(0, 2, 4, 1, 3)


def _resized(
    image: Image.Image, width: int, height: int, config: ImageConfig
) -> npt.NDArray[np.uint8]:
    """``[height, width, 3]``; the image's own bytes if it has that size."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling(config.resample))
    return np.asarray(image)
