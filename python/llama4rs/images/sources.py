"""Whatever a user calls an image, to pixels."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ImageError
from .encoded import decode_image
from .fetch import fetch
from .limits import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, check_num_bytes, check_size
from .rgb import to_rgb

__all__ = ["ImageSource", "load_image"]

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.uint8]"
)
"""A path, an http(s) or data URL, the bytes of an image file, a PIL image, or an array."""

DEFAULT_TIMEOUT_SECONDS = 20.0

_SCHEME = re.compile(r"([a-z][a-z0-9+.\-]+)://", re.IGNORECASE)
_SHOWN_CHARACTERS = 100


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_bytes: int = DEFAULT_MAX_BYTES,
    allow_urls: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> Image.Image:
    """Load an image as RGB, upright, what is transparent on white.

    Files may be BMP, GIF, JPEG, PNG, PPM, TIFF or WebP, of any common mode; of an animation
    the first frame is taken, of a PIL image the frame that it stands at. Its EXIF orientation is
    honoured for PIL images, too. Colour profiles are not looked at.

    Args:
        source: A path; an ``http(s)`` or ``data`` URL; the bytes of an image file; a PIL image; or
            an array of bytes, ``[height, width]`` grey, ``[height, width, 3]`` RGB or
            ``[height, width, 4]`` RGBA.
        max_pixels: The most pixels, compared before decoding. Memory stays within about 16 bytes
            for each; more than Pillow's `MAX_IMAGE_PIXELS` needs that raised as well.
        max_bytes: The longest file to read or fetch.
        allow_urls: Fetch ``http(s)`` URLs. They can point into this machine's own network, so
            leave it off where they come from strangers.
        timeout_seconds: For fetching a URL.

    Returns:
        A new image of mode RGB.

    Raises:
        ImageError: Not an image, damaged, cut short, without pixels, over a limit, of an
            unsupported kind, or not to be found.

    >>> load_image(np.zeros((20, 30), dtype=np.uint8)).size
    (30, 20)
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = _checked(source, max_bytes)
    elif isinstance(source, str) and source[:5].lower() == "data:":
        data = _from_data_url(source, max_bytes)
    elif isinstance(source, str) and (scheme := _SCHEME.match(source)):
        _check_scheme(scheme[1], allow_urls)
        data = fetch(source, max_bytes=max_bytes, timeout_seconds=timeout_seconds)
    elif isinstance(source, (str, os.PathLike)):
        return _from_file(source, max_bytes, max_pixels)
    else:
        raise ImageError(
            f"an image cannot be of type {type(source).__name__}\n"
            "hint: give a path, a URL, bytes, a PIL image or a numpy array"
        )
    return to_rgb(decode_image(data, max_pixels=max_pixels))


def _from_pil(image: Image.Image, max_pixels: int) -> Image.Image:
    check_size(*image.size, max_pixels)
    try:
        image.load()
    # It may be a file that is read only now; see `decode_image`.
    except Exception as error:
        raise ImageError(f"a damaged or incomplete image: {error}") from error
    rgb = to_rgb(image)
    return rgb.copy() if rgb is image else rgb


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> Image.Image:
    kind = f"an array of shape {list(array.shape)} and type {array.dtype}"
    if array.dtype != np.uint8:
        raise ImageError(f"{kind} is not an image\nhint: give bytes (uint8) from 0 to 255")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(
            f"{kind} is not an image\n"
            "hint: give [height, width, 3], or 4 with alpha, or [height, width] for grey"
        )
    height, width = array.shape[:2]
    check_size(width, height, max_pixels)
    image = Image.fromarray(np.ascontiguousarray(array))
    rgb = to_rgb(image)
    return rgb.copy() if rgb is image else rgb


def _checked(data: bytes | bytearray | memoryview, max_bytes: int) -> bytes:
    check_num_bytes(memoryview(data).nbytes, max_bytes)
    return bytes(data)


def _from_data_url(url: str, max_bytes: int) -> bytes:
    """The contents of ``data:[type][;base64],…`` (RFC 2397)."""
    header, comma, body = url.partition(",")
    if not comma:
        raise ImageError(f"a data URL without a comma: {_shown(url)}")
    # Percent signs take three characters for a byte, base64 four for three.
    check_num_bytes(len(body) // 3, max_bytes)
    if not header.lower().endswith(";base64"):
        return _checked(unquote_to_bytes(body), max_bytes)
    digits = re.sub(rb"\s+", b"", unquote_to_bytes(body)).rstrip(b"=")
    try:
        data = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"a data URL with damaged base64: {error}") from error
    return _checked(data, max_bytes)


def _check_scheme(scheme: str, allow_urls: bool) -> None:
    if scheme.lower() not in ("http", "https"):
        raise ImageError(f"{scheme} URLs are not supported\nhint: use http, https, data or a path")
    if not allow_urls:
        raise ImageError(
            "fetching images from the network is off\n"
            "hint: pass allow_urls=True if whoever wrote this URL may choose what is fetched here"
        )


def _from_file(path: str | os.PathLike[str], max_bytes: int, max_pixels: int) -> Image.Image:
    name = _shown(os.fspath(path))
    try:
        return to_rgb(decode_image(_read(path, max_bytes), max_pixels=max_pixels))
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"cannot read image {name}: {reason}") from error


def _read(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    with open(os.path.expanduser(path), "rb", opener=_open_regular) as file:
        check_num_bytes(os.fstat(file.fileno()).st_size, max_bytes)
        return _checked(file.read(max_bytes + 1), max_bytes)


def _open_regular(path: str, flags: int) -> int:
    """Open a file, and nothing that could make the reader wait or never end."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a regular file")
    return descriptor


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
