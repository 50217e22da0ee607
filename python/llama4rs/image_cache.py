"""`ImageCache`: the features of images that were seen before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from .planning.budget import parse_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["DEFAULT_CACHE_BYTES", "ImageCache"]

DEFAULT_CACHE_BYTES = 256 << 20


class ImageCache:
    """Features of the images that a model saw last, found again by what their tiles hold.

    Those seen longest ago make room for new ones. Safe to use from many threads.

    Args:
        max_bytes: Most bytes of features to keep, ``"1GB"`` or a number; 0 keeps none.

    Example:
        >>> import llama4rs
        >>> from llama4rs.demo import draw_picture
        >>> llm = llama4rs.Llama4()
        >>> picture = draw_picture(84).image
        >>> for question in ("Describe the picture.", "How many shapes are there?"):
        ...     answer = llm.chat(question, images=[picture], max_tokens=1)
        >>> llm.image_cache.misses, llm.image_cache.hits  # encoded once
        (1, 1)
    """

    def __init__(self, max_bytes: int | str = DEFAULT_CACHE_BYTES) -> None:
        self.max_bytes = parse_bytes("image_cache_bytes", max_bytes, least=0)
        """Most bytes of features that are kept."""
        self.bytes = 0
        """Bytes of features that are kept now."""
        self.hits = 0
        """Images that were found."""
        self.misses = 0
        """Images that had to be encoded."""
        self._lock = threading.Lock()
        self._features: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()

    def __len__(self) -> int:
        """Images whose features are kept."""
        return len(self._features)

    def __repr__(self) -> str:
        return (
            f"ImageCache(images={len(self)}, bytes={self.bytes}, max_bytes={self.max_bytes}, "
            f"hits={self.hits}, misses={self.misses})"
        )

    def clear(self) -> None:
        """Forget all images; the counters of hits and misses stay."""
        with self._lock:
            self._features.clear()
            self.bytes = 0

    def find(self, key: bytes) -> npt.NDArray[np.float32] | None:
        """The features kept under this key; counts a hit or a miss."""
        with self._lock:
            features = self._features.get(key)
            if features is None:
                self.misses += 1
            else:
                self.hits += 1
                self._features.move_to_end(key)
            return features

    def keep(self, key: bytes, features: npt.NDArray[np.float32]) -> None:
        """Keep features, if there is room for them at all."""
        if features.nbytes > self.max_bytes:
            return
        with self._lock:
            # Another thread may have encoded the same image at the same time.
            replaced = self._features.pop(key, None)
            self.bytes += features.nbytes - (0 if replaced is None else replaced.nbytes)
            self._features[key] = features
            while self.bytes > self.max_bytes:
                _, oldest = self._features.popitem(last=False)
                self.bytes -= oldest.nbytes
