"""Which grid of tiles a picture is laid on, and how large it lies there.

The rule is that of ``Llama4ImageProcessor`` in transformers, down to the precision of each
quotient: two canvases compare as float32, and a picture's size on its canvas is floored from
float32 along a side that shrinks and from float64 along one that does not. About one size in two
thousand comes out a pixel longer or shorter otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..counts import is_count
from ..errors import ImageError, shown

__all__ = ["Canvas", "plan_canvas"]

_Scale: TypeAlias = "np.float32 | np.float64"

# A float32 holds more, and no picture has more.
_MOST_PIXELS = (1 << 31) - 1


@dataclass(frozen=True)
class Canvas:
    """A grid of square tiles with a picture in its top left corner; the rest is black.

    Args:
        rows: Tiles from top to bottom.
        cols: Tiles from left to right.
        resized_width: Width of the picture on the canvas, in pixels.
        resized_height: Height of the picture on the canvas, in pixels.
    """

    rows: int
    cols: int
    resized_width: int
    resized_height: int

    @property
    def has_overview(self) -> bool:
        """Whether the whole picture follows once more, squeezed into one tile."""
        return self.rows * self.cols > 1

    @property
    def num_tiles(self) -> int:
        """All tiles, the overview included."""
        return self.rows * self.cols + self.has_overview


def plan_canvas(
    width: int,
    height: int,
    *,
    max_tiles: int = 16,
    tile_size: int = 336,
    resize_to_max_canvas: bool = False,
) -> Canvas:
    """The canvas for a picture.

    The canvas that holds the picture with the least enlargement, or else the least reduction; of
    several such the smallest. Only a picture with a side shorter than a tile is enlarged, until
    that side is a tile long, unless ``resize_to_max_canvas`` asks for all that fits.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        max_tiles: The most tiles on a canvas.
        tile_size: Side of a tile, in pixels.
        resize_to_max_canvas: Enlarge as far as possible.

    Raises:
        ImageError: The picture has no pixels, or a side that is no whole number.

    >>> plan_canvas(500, 120)
    Canvas(rows=1, cols=2, resized_width=500, resized_height=120)
    >>> plan_canvas(3000, 700).num_tiles
    17
    """
    for side, pixels in (("width", width), ("height", height)):
        if not is_count(pixels, -_MOST_PIXELS, _MOST_PIXELS):
            raise ImageError(
                f"the {side} of an image is a whole number of pixels, got {shown(pixels)}"
            )
    width, height = int(width), int(height)
    if width < 1 or height < 1:
        raise ImageError(f"an image of {width} x {height} pixels has nothing to see")
    rows, cols = _grids(max_tiles)
    scales = np.minimum(
        (cols * tile_size).astype(np.float32) / np.float32(width),
        (rows * tile_size).astype(np.float32) / np.float32(height),
    )
    enlarging = scales[scales >= 1]
    if enlarging.size == 0:
        scale = scales.max()
    else:
        scale = enlarging.max() if resize_to_max_canvas else enlarging.min()
    candidates = np.flatnonzero(scales == scale)
    best = candidates[np.argmin(rows[candidates] * cols[candidates])]
    shape = int(rows[best]), int(cols[best])
    upscale_limit = None if resize_to_max_canvas else tile_size
    return Canvas(
        *shape, *_fit(width, height, shape[1] * tile_size, shape[0] * tile_size, upscale_limit)
    )


@lru_cache(maxsize=16)
def _grids(max_tiles: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of every grid of at most so many tiles."""
    grids = [
        (rows, cols) for rows in range(1, max_tiles + 1) for cols in range(1, max_tiles // rows + 1)
    ]
    rows, cols = np.array(grids, dtype=np.int64).T
    return rows, cols


def _fit(
    width: int, height: int, canvas_width: int, canvas_height: int, upscale_limit: int | None
) -> tuple[int, int]:
    """Width and height of the picture on its canvas, proportions kept."""
    target_width, scale_x = _side(width, canvas_width, upscale_limit)
    target_height, scale_y = _side(height, canvas_height, upscale_limit)
    if scale_x < scale_y:
        return target_width, max(min(_scaled(height, scale_x), target_height), 1)
    return max(min(_scaled(width, scale_y), target_width), 1), target_height


def _side(length: int, canvas_length: int, upscale_limit: int | None) -> tuple[int, _Scale]:
    """How long a side may get, and by which factor: float32 if the canvas is what limits it."""
    wanted = None if upscale_limit is None else max(length, upscale_limit)
    if wanted is None or canvas_length < wanted:
        return canvas_length, np.float32(canvas_length) / np.float32(length)
    return wanted, np.float64(wanted) / np.float64(length)


def _scaled(length: int, scale: _Scale) -> int:
    return math.floor(float(type(scale)(length) * scale))
