"""From what the user calls a model to its sizes, and the sizes of images."""

from __future__ import annotations

import json
import operator
import os
from functools import partial
from pathlib import Path

from ..counts import check_count, check_text
from ..errors import CheckpointError, RequestError, shown
from ..packing import Policy, inspect
from ..presets import PRESETS, preset_config
from .memory import ImageLoad
from .sizes import Sizes, sizes_of

__all__ = ["image_load", "model_sizes"]


def model_sizes(
    model: str | os.PathLike[str] | None, weights: str | None = None, policy: Policy = ()
) -> Sizes:
    """Sizes of a preset, a ``config.json``, or a model that is there.

    Raises:
        CheckpointNotFoundError: There is no such model.
        CheckpointError: The model is damaged, or is no Llama 4.
        RequestError: An unknown format.
    """
    if not isinstance(model, str | os.PathLike | None):
        raise TypeError(f"a model is a directory, a preset, a hub id or None, got {shown(model)}")
    check_text("weights", weights)
    planned = partial(sizes_of, weights=weights or "int4", policy=policy)
    if isinstance(model, str) and model.lower() in PRESETS and not Path(model).exists():
        return planned(model.lower(), json.dumps(preset_config(model)))
    if model is not None and Path(model).suffix == ".json" and Path(model).is_file():
        return planned(str(model), _read(Path(model)), folder=Path(model).parent)
    found = inspect(model, local_files_only=True)
    name = "cria, the demo model" if model is None else os.fspath(model)
    folder = Path(name) if Path(name).is_dir() else Path()
    config = json.dumps(found["config"])
    if not found["weights"] or policy or weights not in (None, found["weights"]):
        return planned(name, config, folder=folder)
    return sizes_of(
        name,
        config,
        weights=found["weights"],
        tensors=found["tensors"],
        on_disk=True,
        folder=folder,
    )


def image_load(sizes: Sizes, count: int, pixels: tuple[int, int]) -> ImageLoad:
    """Tiles and tokens of so many images of so many pixels.

    Raises:
        ImageError: An image has no pixels.
        RequestError: A negative number of images, or a model that reads none.
    """
    check_count("images", count, least=0)
    if count in (None, 0):
        return ImageLoad()
    if sizes.shape.vision is None:
        raise RequestError(f"{sizes.name} reads no images: it has no vision part")
    from ..images import ImageConfig, plan_image

    if sizes.name not in PRESETS and (sizes.folder / "config.json").is_file():
        config = ImageConfig.from_directory(sizes.folder)
    else:
        config = ImageConfig.from_dicts(None, json.loads(sizes.config_json)["vision_config"])
    try:
        width, height = pixels
    except (TypeError, ValueError):
        raise RequestError(f"image_size is (width, height), got {shown(pixels)}") from None
    image = plan_image(width, height, config)
    return ImageLoad(operator.index(count), image.num_tiles, image.num_tokens)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
