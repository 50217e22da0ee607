"""How large an image may be, looked at before memory is spent on it."""

from __future__ import annotations

from ..errors import ImageError

__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_MAX_PIXELS", "MAX_SIDE", "check_num_bytes", "check_size"]

DEFAULT_MAX_PIXELS = 8192 * 8192
"""Decoded, Pillow takes 4 bytes a pixel: 256 MiB."""

DEFAULT_MAX_BYTES = 128 * 2**20
"""Of an image file, before decoding."""

MAX_SIDE = 65_535
"""The most that JPEG allows. It bounds what resizing a very long and narrow picture takes."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image without pixels, or with too many.

    Raises:
        ImageError: Its size is not between 1 x 1 and the limits.
    """
    if width < 1 or height < 1:
        raise ImageError(f"an image of {width} x {height} pixels has nothing to see")
    if width * height > max_pixels:
        raise ImageError(
            f"an image of {width} x {height} pixels is over the limit of {max_pixels} pixels\n"
            "hint: reduce it first, or raise max_pixels if its source is trusted"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"an image of {width} x {height} pixels is over the limit of {MAX_SIDE} a side\n"
            "hint: cut or reduce it first"
        )


def check_num_bytes(num_bytes: int, max_bytes: int) -> None:
    """Refuse an image file that is empty or too long.

    Raises:
        ImageError: Its length is not between 1 and the limit.
    """
    if num_bytes < 1:
        raise ImageError("an empty file is not an image")
    if num_bytes > max_bytes:
        raise ImageError(
            f"an image file of more than {max_bytes} bytes is over the limit\n"
            "hint: store it in a compressed format, or raise max_bytes"
        )
