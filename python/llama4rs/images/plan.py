"""What an image will cost, known from its size alone."""

from __future__ import annotations

from dataclasses import dataclass

from .canvas import Canvas, plan_canvas
from .config import ImageConfig

__all__ = ["ImagePlan", "plan_image"]

_START_IMAGE_END = 3


@dataclass(frozen=True)
class ImagePlan:
    """Tiles and tokens of one image.

    Args:
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        canvas: The grid of tiles that it is laid on.
        tokens_per_tile: Vision tokens of each tile.
    """

    width: int
    height: int
    canvas: Canvas
    tokens_per_tile: int

    @property
    def num_tiles(self) -> int:
        """Tiles that the vision encoder sees, the overview included."""
        return self.canvas.num_tiles

    @property
    def num_patch_tokens(self) -> int:
        """Places in the prompt that take a row of vision features."""
        return self.num_tiles * self.tokens_per_tile

    @property
    def num_tokens(self) -> int:
        """Places in the prompt: vision tokens, a separator after each tile of a grid, three marks.

        With 144 tokens a tile: 147 for one tile, 145·R·C + 147 for R x C.
        """
        num_separators = self.canvas.rows * self.canvas.cols if self.canvas.has_overview else 0
        return self.num_patch_tokens + num_separators + _START_IMAGE_END


def plan_image(width: int, height: int, config: ImageConfig | None = None) -> ImagePlan:
    """The plan for an image of ``width`` x ``height`` pixels; by default for Scout or Maverick.

    Raises:
        ImageError: The image has no pixels, or a side that is no whole number.

    >>> plan = plan_image(512, 512)
    >>> plan.num_tiles, plan.num_tokens
    (5, 727)
    """
    config = config or ImageConfig()
    canvas = plan_canvas(
        width,
        height,
        max_tiles=config.max_tiles,
        tile_size=config.tile_size,
        resize_to_max_canvas=config.resize_to_max_canvas,
    )
    return ImagePlan(int(width), int(height), canvas, config.tokens_per_tile)
