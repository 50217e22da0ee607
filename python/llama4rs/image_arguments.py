"""The images that callers name: lists beside prompts, and parts of messages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from .errors import ImageError

if TYPE_CHECKING:
    from .images import ImageSource

__all__ = ["image_list", "image_lists", "part_source"]

_URL = re.compile(r"data:|https?://", re.IGNORECASE)


def image_list(images: Sequence[ImageSource] | None) -> list[ImageSource]:
    """The images of one prompt.

    Raises:
        TypeError: A single image, or something else that is no list.
    """
    if images is None:
        return []
    if not _is_list(images):
        raise TypeError(f"images is a list of images, got {type(images).__name__}; write [image]")
    return list(images)


def image_lists(
    images: Sequence[Sequence[ImageSource] | None] | None, num_prompts: int
) -> list[Sequence[ImageSource] | None]:
    """The images of each prompt of a batch.

    Raises:
        TypeError: Not a list of lists.
        ImageError: More or fewer lists than prompts.

    >>> image_lists([["a.png", "b.png"], None], 2)
    [['a.png', 'b.png'], None]
    """
    if images is None:
        return [None] * num_prompts
    if not _is_list(images) or not all(item is None or _is_list(item) for item in images):
        raise TypeError("in a batch, images holds a list of images for each prompt")
    if len(images) != num_prompts:
        raise ImageError(
            f"{len(images)} lists of images for {num_prompts} prompts\n"
            "hint: give one list for each prompt; [] or None for a prompt without images"
        )
    return list(images)


def part_source(part: Mapping[str, Any]) -> Any:
    """The image in a part of a message.

    Accepted are ``{"type": "image", "image": source}``, with ``path`` or ``url`` in place of
    ``image``, and ``{"type": "image_url", "image_url": {"url": source}}``. The latter is what
    servers pass on from strangers, so it never names a file.

    Raises:
        ImageError: The part has no image, or its ``image_url`` is no ``data`` or ``http(s)`` URL.

    >>> part_source({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}})
    'data:image/png;base64,iVBO'
    """
    if part["type"] == "image_url":
        source = part.get("image_url")
        source = source.get("url") if isinstance(source, Mapping) else source
        if isinstance(source, os.PathLike) or (isinstance(source, str) and not _URL.match(source)):
            raise ImageError(
                f"an image_url takes a data or http(s) URL, not {str(source)[:100]!r}\n"
                'hint: for a file of yours write {"type": "image", "image": path}'
            )
    else:
        given = (part[key] for key in ("image", "path", "url") if part.get(key) is not None)
        source = next(given, None)
    if source is None:
        raise ImageError(
            "an image part without an image\n"
            'hint: write {"type": "image", "image": path, bytes, PIL image or array}, or '
            '{"type": "image_url", "image_url": {"url": "data:..."}}'
        )
    return source


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether this is a sequence and not itself something that may be an image."""
    single = (str, bytes, bytearray, memoryview, os.PathLike)
    return isinstance(value, Sequence) and not isinstance(value, single)
