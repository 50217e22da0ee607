"""The bytes of an image file to pixels, with every problem reported as an `ImageError`.

Only formats in wide use are read, through the Pillow plugins named here. Left out on purpose are
formats that run other programs (EPS), and those whose pixels may be many more than the file's
header says (ICO, AVIF): a limit would not hold for them.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from .limits import check_size

__all__ = ["decode_image"]

_PLUGINS = {
    "BMP": "PIL.BmpImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "JPEG": "PIL.JpegImagePlugin",
    "PNG": "PIL.PngImagePlugin",
    "PPM": "PIL.PpmImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
}

_TIFF_TILE_WIDTH = 322
_TIFF_TILE_LENGTH = 323
# A small image may have a larger tile, but not one that matters.
_SMALL_TILE_PIXELS = 2**22


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The image in a file, decoded but not converted; of an animation the first frame.

    The size that the file states is compared with the limit before pixels are decoded. Pillow's
    own guard (`PIL.Image.MAX_IMAGE_PIXELS`) stays in force as well.

    Args:
        data: The whole file.
        max_pixels: The most pixels to decode.

    Raises:
        ImageError: Not an image, not of a known format, damaged, cut short, empty or too large.
    """
    _check_webp_size(data, max_pixels)
    image = _open(data)
    check_size(*image.size, max_pixels)
    _check_tiff_tiles(image)
    try:
        if image.format == "PNG":
            # Pillow skips the checksums of pixel data when it decodes.
            image.verify()
            image = _open(data)
        image.load()
    # Pillow's decoders raise almost any exception for damaged files.
    except Exception as error:
        raise ImageError(f"a damaged or incomplete {image.format} image: {error}") from error
    check_size(*image.size, max_pixels)
    return image


def _open(data: bytes) -> Image.Image:
    """The image with its header read and its pixels not yet."""
    formats = _formats()
    try:
        return Image.open(BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels for Pillow's own limit: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"not an image, or one with a damaged start; formats are {', '.join(formats)}\n"
            "hint: what else Pillow opens can be passed as a PIL image"
        ) from error
    except Exception as error:
        raise ImageError(f"a damaged image: {error}") from error


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats above, made known to Pillow."""
    for plugin in _PLUGINS.values():
        importlib.import_module(plugin)
    return tuple(_PLUGINS)


def _check_webp_size(data: bytes, max_pixels: int) -> None:
    """Refuse a large WebP before Pillow opens it, which reserves memory for two frames.

    RIFF container: https://developers.google.com/speed/webp/docs/riff_container
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return
    kind = data[12:16]
    if kind == b"VP8X":
        check_size(_uint(data[24:27]) + 1, _uint(data[27:30]) + 1, max_pixels)
    elif kind == b"VP8L":
        bits = _uint(data[21:25])
        check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, max_pixels)
    elif kind == b"VP8 ":
        check_size(_uint(data[26:28]) & 0x3FFF, _uint(data[28:30]) & 0x3FFF, max_pixels)


def _uint(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _check_tiff_tiles(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are larger than it is: each is decoded whole."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    try:
        width, height = int(tags.get(_TIFF_TILE_WIDTH, 1)), int(tags.get(_TIFF_TILE_LENGTH, 1))
    except (TypeError, ValueError, OverflowError) as error:
        raise ImageError("a damaged TIFF image: its tiles have no size") from error
    if width * height > max(image.width * image.height, _SMALL_TILE_PIXELS):
        raise ImageError(f"a damaged TIFF image: its tiles have {width} x {height} pixels")
