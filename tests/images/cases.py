"""What the reference was asked, and where its answers lie."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from .pictures import picture

ANSWERS = Path(__file__).parents[1] / "data" / "images" / "answers.npz"


class Setting(NamedTuple):
    """Settings of the processor."""

    tile_size: int
    max_tiles: int
    resize_to_max_canvas: bool = False


PUBLISHED = Setting(336, 16)
CANVAS_SETTINGS = {
    PUBLISHED: 10_000,
    Setting(336, 16, True): 1_000,
    Setting(336, 1): 200,
    Setting(56, 16): 1_000,
    Setting(56, 4): 500,
    Setting(84, 5): 500,
    Setting(112, 9): 500,
    Setting(112, 12, True): 500,
}
"""Settings, each with the number of sizes."""


class PixelCase(NamedTuple):
    """One picture of `pictures.picture`."""

    width: int
    height: int
    setting: Setting


PIXEL_CASES = [
    PixelCase(56, 56, Setting(56, 16)),  # nothing is resized
    PixelCase(112, 56, Setting(56, 16)),  # only the overview is
    PixelCase(100, 30, Setting(56, 16)),
    PixelCase(131, 95, Setting(56, 16)),
    PixelCase(224, 224, Setting(112, 4)),
    PixelCase(336, 336, PUBLISHED),
    PixelCase(23, 17, Setting(56, 16)),  # enlarged
    PixelCase(1, 1, Setting(56, 16)),
    PixelCase(1, 300, Setting(56, 16)),
    PixelCase(150, 149, PUBLISHED),
    PixelCase(200, 150, Setting(56, 16, True)),
    PixelCase(300, 200, Setting(56, 4)),  # reduced
    PixelCase(1000, 700, Setting(56, 16)),
    PixelCase(41, 700, Setting(56, 16)),
    PixelCase(1500, 900, Setting(56, 5)),
    PixelCase(1200, 333, Setting(112, 3)),
    PixelCase(640, 480, PUBLISHED),
    PixelCase(2100, 1900, PUBLISHED),
]

MODE_CASES = ["1", "CMYK", "HSV", "L", "LA", "P", "P transparent", "RGBA", "YCbCr"]
"""Of 56 x 56 pixels, converted by the reference."""

NORMALIZATIONS = {
    "published": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "uneven": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}

TOKEN_NAMES = ["image_start", "image_end", "tile_x_separator", "tile_y_separator", "image", "patch"]
TOKEN_SETTINGS = [Setting(56, 16), Setting(112, 4), PUBLISHED]
NUM_TOKEN_CASES = 240


def sizes(setting: Setting) -> npt.NDArray[np.int64]:
    """Widths and heights for a setting, [number, 2]: most of them any, some near whole tiles."""
    random = np.random.default_rng(setting.tile_size + 1000 * setting.max_tiles)
    number = CANVAS_SETTINGS[setting]
    tile = setting.tile_size
    anywhere = np.exp(random.uniform(0, np.log(60 * tile), (number, 2))).astype(np.int64)
    usual = random.integers(1, 18 * tile, (number, 2))
    near_tiles = random.integers(1, 18, (number, 2)) * tile + random.integers(-1, 2, (number, 2))
    kind = random.integers(0, 4, (number, 1))
    return np.where(kind == 0, anywhere, np.where(kind == 1, near_tiles, usual))


def mode_picture(case: str) -> Image.Image:
    """A picture of one of the `MODE_CASES`."""
    if case in ("RGBA", "CMYK", "HSV", "YCbCr"):
        return Image.frombytes(
            case, (56, 56), picture(56, 56, 5, 4 if case in ("RGBA", "CMYK") else 3).tobytes()
        )
    if case == "LA":
        return Image.frombytes(case, (56, 56), picture(56, 56, 5, 2).tobytes())
    if case.startswith("P"):
        image = Image.frombytes("P", (56, 56), picture(56, 56, 5, 1).tobytes())
        image.putpalette(picture(256, 1, 6).tobytes())
        if case == "P transparent":
            image.info["transparency"] = picture(256, 1, 7, 1).tobytes()
        return image
    grey = Image.frombytes("L", (56, 56), picture(56, 56, 5, 1).tobytes())
    return grey.convert("1") if case == "1" else grey


def sampled(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """About 20,000 bytes of tiles, spread over all of them."""
    flat = tiles.reshape(-1)
    step = max(flat.size // 20_000, 1)
    return flat[:: step | 1]
