"""What a checkpoint says about its images: tile size, number of tiles, grey levels, tokens."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

__all__ = ["ImageConfig"]

_HALF = (0.5, 0.5, 0.5)
# Pillow's numbers for its filters; a processor's "resample" is one of them.
_NUM_FILTERS = 6


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a checkpoint wants its images; the defaults are those of Scout and Maverick.

    Args:
        tile_size: Side of a square tile, in pixels.
        patch_size: Side of a patch of the vision encoder, in pixels.
        max_tiles: The most tiles that an image may be cut into, the overview not counted.
        pixel_shuffle_ratio: 0.5 joins 2 x 2 patches into one token.
        resize_to_max_canvas: Enlarge a picture as far as the largest canvas allows.
        resample: Pillow's number of the resize filter; 2 is bilinear.
        rescale_factor: Multiplies a byte before the mean is taken off.
        mean: Red, green and blue, after rescaling.
        std: Red, green and blue, after rescaling.

    Raises:
        CheckpointError: The values contradict each other.

    >>> ImageConfig().tokens_per_tile
    144
    >>> ImageConfig(tile_size=56).tokens_per_tile
    4
    """

    tile_size: int = 336
    patch_size: int = 14
    max_tiles: int = 16
    pixel_shuffle_ratio: float = 0.5
    resize_to_max_canvas: bool = False
    resample: int = 2
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = _HALF
    std: tuple[float, float, float] = _HALF

    def __post_init__(self) -> None:
        for name in ("tile_size", "patch_size", "max_tiles"):
            _require(
                getattr(self, name) >= 1, f"{name} must be positive, not {getattr(self, name)}"
            )
        _require(0 < self.pixel_shuffle_ratio <= 1, "pixel_shuffle_ratio must be in (0, 1]")
        _require(
            self.tile_size % (self.patch_size * self.patches_per_token_side) == 0,
            f"tiles of {self.tile_size} pixels cannot be cut into patches of {self.patch_size} "
            f"that are joined {self.patches_per_token_side} x {self.patches_per_token_side}",
        )
        _require(0 <= self.resample < _NUM_FILTERS, f"unknown resize filter {self.resample}")
        numbers = (self.rescale_factor, *self.mean, *self.std)
        _require(
            all(map(math.isfinite, numbers)) and all(self.std), "grey levels cannot be normalized"
        )

    @property
    def patches_per_token_side(self) -> int:
        """One token holds this many patches in each direction."""
        return round(1 / self.pixel_shuffle_ratio)

    @property
    def tokens_per_tile(self) -> int:
        """Vision tokens of one tile: (tile size / patch size)² · ratio²."""
        return (self.tile_size // self.patch_size // self.patches_per_token_side) ** 2

    @classmethod
    def from_dicts(
        cls, preprocessor: Mapping[str, Any] | None, vision: Mapping[str, Any] | None = None
    ) -> ImageConfig:
        """From the two places where a checkpoint describes its images.

        Args:
            preprocessor: ``preprocessor_config.json``, or None.
            vision: ``vision_config`` of ``config.json``, or None.

        Raises:
            CheckpointError: A value of the wrong kind, one that cannot be honoured, or two
                different tile sizes.

        >>> ImageConfig.from_dicts({"size": {"height": 112, "width": 112}}).tokens_per_tile
        16
        """
        preprocessor, vision = preprocessor or {}, vision or {}
        for step in ("do_resize", "do_rescale", "do_normalize"):
            _require(preprocessor.get(step) in (None, True), f"{step}: false is not supported")
        try:
            return cls(**_fields(preprocessor, vision))
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the image settings are malformed: {error}") from error

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> ImageConfig:
        """From a checkpoint's ``config.json`` and ``preprocessor_config.json``.

        Where the latter is missing, the ``image_processor`` of ``processor_config.json`` takes its
        place, as transformers 5 writes it.

        Raises:
            CheckpointError: A file cannot be read, the model has no vision part, or as for
                `from_dicts`.
        """
        directory = Path(path)
        vision = (_read(directory / "config.json") or {}).get("vision_config")
        _require(isinstance(vision, Mapping), f"the model in {directory} does not read images")
        preprocessor = _read(directory / "preprocessor_config.json")
        if preprocessor is None:
            processor = _read(directory / "processor_config.json") or {}
            preprocessor = processor.get("image_processor")
            _require(
                preprocessor is None or isinstance(preprocessor, Mapping),
                f"image_processor in {directory / 'processor_config.json'} is not a JSON object",
            )
        return cls.from_dicts(preprocessor, vision)


def _fields(preprocessor: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ImageConfig` that the two dictionaries hold."""
    sizes = [_tile_size(preprocessor.get("size")), _tile_size(vision.get("image_size"))]
    named = [size for size in sizes if size is not None]
    _require(
        len(set(named)) < 2, f"the processor makes tiles of {sizes[0]}, the model reads {sizes[1]}"
    )
    fields: dict[str, Any] = {"tile_size": named[0]} if named else {}
    for source, name, field, kind in (
        (vision, "patch_size", "patch_size", int),
        (vision, "pixel_shuffle_ratio", "pixel_shuffle_ratio", float),
        (preprocessor, "max_patches", "max_tiles", int),
        (preprocessor, "resize_to_max_canvas", "resize_to_max_canvas", bool),
        (preprocessor, "resample", "resample", int),
        (preprocessor, "rescale_factor", "rescale_factor", float),
        (preprocessor, "image_mean", "mean", _three_floats),
        (preprocessor, "image_std", "std", _three_floats),
    ):
        if source.get(name) is not None:
            fields[field] = kind(source[name])
    return fields


def _tile_size(size: Any) -> int | None:
    """The side of a size given as a number or as ``{"height": …, "width": …}``."""
    if isinstance(size, Mapping):
        height, width = size.get("height"), size.get("width")
        _require(
            isinstance(height, int) and height == width, f"tiles must be square, not {dict(size)}"
        )
        return height
    return None if size is None else int(size)


def _three_floats(value: Any) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, (list, tuple)) else [value] * 3
    return float(red), float(green), float(blue)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no such file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise CheckpointError(problem)
