"""How much memory keys and values may take."""

from __future__ import annotations

import re

from ..errors import RequestError, shown
from .machine import Machine
from .memory import step_bytes, vision_bytes
from .shape import TextShape

__all__ = ["MAX_SEQUENCES", "PREFIX_CACHE_BYTES", "STEP_TOKENS", "kv_memory", "parse_bytes"]

STEP_TOKENS = 512
"""Prompt tokens of a step, unless said."""

MAX_SEQUENCES = 256
"""Sequences that run at the same time, at most."""

PREFIX_CACHE_BYTES = 1 << 30
"""Keys and values that are kept for later requests, unless said."""

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_LEAST = 64 << 20
_MOST = (1 << 63) - 1
_TILES = 2


def parse_bytes(name: str, value: int | str, *, least: int = 1) -> int:
    """A number of bytes: ``8_000_000_000``, ``"8GB"``, ``"512 MB"`` (10^9, 10^6) or ``"8GiB"``
    (2^30).

    Args:
        name: Of the option, for the error.
        value: What was given.
        least: The smallest number that makes sense.

    Raises:
        RequestError: Something else, or less.

    Example:
        >>> parse_bytes("kv_memory", "8GB"), parse_bytes("kv_memory", "1.5 GiB")
        (8000000000, 1610612736)
    """
    wrong = RequestError(f'{name} is a number of bytes such as "8GB" or "8GiB", got {shown(value)}')
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise wrong
    size: float = 0
    if isinstance(value, int):
        size = value
    else:
        pattern = r"\s*(\d[\d_]*(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*"
        match = re.fullmatch(pattern, value.upper())
        if match is None or (match[3] and not match[2]):
            raise wrong
        size = float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2]]
    if not least <= size <= _MOST:
        raise wrong
    return int(size)


def kv_memory(
    shape: TextShape,
    machine: Machine,
    *,
    step_tokens: int,
    mapped_bytes: int,
    other_bytes: int,
) -> int | None:
    """Bytes for keys and values when nobody says: what is available, less what else is needed.

    Args:
        shape: Of the model.
        machine: With the model open, but nothing computed.
        step_tokens: Prompt tokens of a step.
        mapped_bytes: Weights that are mapped from files. They should stay in memory, but the
            system may drop them and read them again, so that a quarter of the rest is always for
            keys and values.
        other_bytes: Kept for other things, such as the features of images.

    Returns:
        Bytes, or None where the system does not say how much memory there is.

    Example:
        >>> import json
        >>> from llama4rs.planning.shape import read_shape
        >>> from llama4rs.presets import preset_config
        >>> scout = read_shape(json.dumps(preset_config("scout")))
        >>> machine = Machine(memory_available=128 * 10**9)
        >>> options = {"step_tokens": 512, "mapped_bytes": 60 * 10**9, "other_bytes": 0}
        >>> round(kv_memory(scout, machine, **options) / 1e9)
        59
    """
    available = machine.memory_available
    if available is None:
        if machine.memory_total is None:
            return None
        available = machine.memory_total // 2
    step = step_bytes(shape, max(step_tokens, MAX_SEQUENCES), MAX_SEQUENCES)
    margin = available // 16
    rest = available - margin - sum(step.values()) - vision_bytes(shape, _TILES) - other_bytes
    return max(rest - mapped_bytes, rest // 4, _LEAST)
