"""Any picture that Pillow holds to RGB: upright, without transparency, eight bits a channel.

Other modes are converted a few rows at a time, so that no third full-size copy comes to be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image

from ..errors import ImageError

__all__ = ["to_rgb"]

_Convert: TypeAlias = Callable[[Image.Image], Image.Image]

_STRIP_PIXELS = 2**20
_ORIENTATION_TAG = 0x0112
# EXIF 2.3, section 4.6.4: what undoes each orientation but the first, which is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it on white paper; the image itself if that is what it is.

    Transparent places turn white, 16-bit grey keeps its high byte (as Pillow reads 16-bit colour),
    and the picture is turned as its EXIF orientation says.

    Args:
        image: Loaded, of any mode.

    Raises:
        ImageError: A mode without defined brightness, such as floating point.
    """
    convert = _conversion(image)
    rgb = image if convert is None else _by_strips(image, convert)
    turn = _UPRIGHT.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _conversion(image: Image.Image) -> _Convert | None:
    """What brings a piece of this image to RGB; None if nothing needs to."""
    if image.mode.startswith("I"):
        return _high_byte
    if image.mode == "F":
        raise ImageError(
            "a floating point image has no defined range\nhint: convert it to 8 bits a channel"
        )
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        return _over_white
    return None if image.mode == "RGB" else _plain


def _by_strips(image: Image.Image, convert: _Convert) -> Image.Image:
    width, height = image.size
    rgb = Image.new("RGB", image.size)
    step = max(_STRIP_PIXELS // width, 1)
    for top in range(0, height, step):
        strip = image.crop((0, top, width, min(top + step, height)))
        try:
            rgb.paste(convert(strip), (0, top))
        except ValueError as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"cannot convert an image of mode {image.mode}: {error}") from error
    return rgb


def _plain(strip: Image.Image) -> Image.Image:
    return strip.convert("RGB")


def _over_white(strip: Image.Image) -> Image.Image:
    white = Image.new("RGBA", strip.size, "white")
    return Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB")


def _high_byte(strip: Image.Image) -> Image.Image:
    levels = np.asarray(strip)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise ImageError(
            "an image of 32-bit integers has no defined range\n"
            "hint: convert it to 8 or 16 bits a channel"
        )
    return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be undone; 1 if there is none."""
    if image.format == "TIFF":  # Pillow turns these when it loads them
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    # Damaged EXIF fails in many ways, and none makes the picture unreadable.
    except Exception:
        return 1
