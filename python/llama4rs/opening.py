"""The parts of a model directory that Python reads itself, and options that it checks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CheckpointError, shown
from .sampling import SamplingParams

if TYPE_CHECKING:
    from ._llama4rs import Engine
    from .chat_template import ChatTemplate
    from .tokenizer import Tokenizer

__all__ = ["free_kv_memory", "generation_defaults", "open_chat_template", "open_tokenizer"]


# Of a GPU's free memory for keys and values; the rest is for activations and the driver.
_DEVICE_SHARE = 0.85


def generation_defaults(folder: Path) -> SamplingParams:
    """The options in ``generation_config.json``, the package's own where there is none.

    Raises:
        CheckpointError: The file is damaged, or a value is out of range.
    """
    path = folder / "generation_config.json"
    try:
        values = json.loads(path.read_text("utf-8-sig"))
        return SamplingParams.from_generation_config(values)
    except FileNotFoundError:
        return SamplingParams()
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def open_tokenizer(
    folder: Path, given: Tokenizer | str | os.PathLike[str] | None
) -> Tokenizer | None:
    """The tokenizer given, else the one in the model's directory, else None."""
    from .tokenizer import Tokenizer

    if given is None:
        names = ("tokenizer.json", "tokenizer.model")
        has_one = any((folder / name).is_file() for name in names)
        return Tokenizer.from_dir(folder) if has_one else None
    if isinstance(given, (str, os.PathLike)):
        is_folder = os.path.isdir(given)  # of any name, where Path.is_dir may raise
        return Tokenizer.from_dir(given) if is_folder else Tokenizer.from_file(given)
    if not isinstance(given, Tokenizer):
        raise TypeError(f"tokenizer is a Tokenizer, a file or a directory, got {shown(given)}")
    return given


def open_chat_template(
    given: ChatTemplate | str | os.PathLike[str] | None,
) -> ChatTemplate | None:
    """The chat template given, read from a file if it is a path."""
    from .chat_template import ChatTemplate

    if isinstance(given, (str, os.PathLike)):
        return ChatTemplate.from_file(given)
    if not isinstance(given, ChatTemplate | None):
        raise TypeError(f"chat_template is a ChatTemplate or a file, got {shown(given)}")
    return given


def free_kv_memory(engine: Engine, folder: Path, image_cache_bytes: int) -> int | None:
    """Bytes that this machine has for keys and values now that the model is open; see
    `planning.budget.kv_memory`."""
    from .planning.budget import kv_memory
    from .planning.machine import this_machine
    from .planning.shape import read_shape

    if engine.device_free_bytes is not None:
        return int(engine.device_free_bytes * _DEVICE_SHARE)
    shape = read_shape(engine.config_json)
    is_mapped = (folder / "llama4rs.json").is_file()
    return kv_memory(
        shape,
        this_machine(folder),
        step_tokens=engine.step_tokens,
        mapped_bytes=engine.summary()["weight_bytes"] if is_mapped else 0,
        other_bytes=image_cache_bytes if shape.vision else 0,
    )
