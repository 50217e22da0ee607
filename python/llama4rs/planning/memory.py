"""Bytes of memory by component, from sizes alone. All functions return bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .shape import TextShape

__all__ = [
    "KV_FORMATS",
    "ImageLoad",
    "image_bytes",
    "kv_bytes",
    "kv_token_bytes",
    "sequence_bytes",
    "step_bytes",
    "step_kv_bytes",
    "vision_bytes",
]

KV_FORMATS = ("f32", "bf16", "int8", "int4")
"""Formats of keys and values."""

_EXACT_BYTES: Mapping[str, int] = {"f32": 4, "bf16": 2, "int8": 2, "int4": 2}
_CODE_BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
# Codes come in lines of 16 channels.
_LANES = 16

_PAGE_TOKENS = 64
_FLOAT = 4
# Tiles that the vision encoder takes at a time.
_TILES_PER_STEP = 2
# Activations are padded to whole groups of weights for a product.
_GROUP = 128


@dataclass(frozen=True)
class ImageLoad:
    """The images of one sequence.

    Args:
        count: How many.
        tiles: Tiles of each, the overview included.
        tokens: Places that each takes in the prompt.
    """

    count: int = 0
    tiles: int = 0
    tokens: int = 0


def kv_bytes(shape: TextShape, tokens: int, kv_cache: str) -> dict[str, int]:
    """Keys and values of one sequence of so many tokens: ``chunked`` and ``global`` layers.

    Chunked layers keep one chunk at most; both keep whole pages of 64 tokens. With ``"int8"`` and
    ``"int4"`` the full pages of global layers are codes, but for the first.

    Example:
        >>> import json
        >>> from llama4rs.planning.shape import read_shape
        >>> from llama4rs.presets import preset_config
        >>> scout = read_shape(json.dumps(preset_config("scout")))
        >>> sum(kv_bytes(scout, 8192, "bf16").values()) / 2**30
        1.5
        >>> sum(kv_bytes(scout, 1 << 20, "bf16").values()) / 2**30
        49.125
        >>> round(sum(kv_bytes(scout, 1 << 20, "int8").values()) / 2**30, 1)
        26.3
    """
    chunk = shape.chunk_size
    kept = min(tokens, chunk) if chunk else tokens
    exact, stored = kv_token_bytes(shape, kv_cache)
    codes = max(tokens // _PAGE_TOKENS - 1, 0) if kv_cache in _CODE_BITS else 0
    whole = _pages(tokens) - codes
    return {
        "chunked": _pages(kept) * _PAGE_TOKENS * exact * shape.chunked_layers,
        "global": _PAGE_TOKENS * (whole * exact + codes * stored) * shape.global_layers,
    }


def kv_token_bytes(shape: TextShape, kv_cache: str) -> tuple[int, int]:
    """What a token keeps in one layer: as it was computed, and in the full pages of global layers.

    Codes of a page have two numbers of 16 bits, centre and step, for each channel of the keys and
    for each token of the values; so the second is a mean over the page.
    """
    exact = shape.kv_values * _EXACT_BYTES[kv_cache]
    bits = _CODE_BITS.get(kv_cache)
    if bits is None:
        return exact, exact
    width = -(-shape.head_dim // _LANES) * _LANES
    page = 2 * _PAGE_TOKENS * width * bits // 8 + 4 * width + 4 * _PAGE_TOKENS
    return exact, shape.num_kv_heads * page // _PAGE_TOKENS


def step_bytes(shape: TextShape, rows: int, logit_rows: int) -> dict[str, int]:
    """The buffers of a step: ``activations`` of so many rows, and ``logits``.

    They are as large as the largest step so far; all are single precision.
    """
    hidden, head_dim = shape.hidden_size, shape.head_dim
    queries, keys = shape.num_heads * head_dim, shape.num_kv_heads * head_dim
    dense = shape.expert_layers < shape.num_layers
    widths = [shape.intermediate_size_mlp] if dense else []
    expert = shape.intermediate_size if shape.expert_layers else 0
    width = max([expert, *widths])
    residual = 3 * hidden
    attention = 2 * queries + 2 * keys + head_dim
    feed_forward = 2 * width + shape.num_experts
    packed = _padded(max(hidden, queries, width))
    routed = shape.experts_per_token * (_padded(hidden) + _padded(expert) + hidden)
    activations = rows * (residual + attention + feed_forward + packed + routed)
    # Logits are copied once, from the backend to the host, and once more into the pairs of a logit
    # and an id that a sequence draws its token from.
    logits = logit_rows * (4 * shape.vocab_size + hidden)
    return {"activations": activations * _FLOAT, "logits": logits * _FLOAT}


def step_kv_bytes(shape: TextShape, tokens: int, step_tokens: int, kv_cache: str) -> int:
    """Pages that a step has beside those of a full context.

    A step that passes the end of a chunk has the pages of that chunk and those of its tokens behind
    it; and in ``"int8"`` and ``"int4"`` the pages that a step fills are there exactly, too.
    """
    exact = _PAGE_TOKENS * kv_token_bytes(shape, kv_cache)[0]
    chunk = shape.chunk_size or tokens
    beyond = max(min(tokens - chunk, step_tokens - 1), 0)
    chunked = beyond // chunk * _pages(chunk) + _pages(beyond % chunk)
    sealing = 0
    if kv_cache in _CODE_BITS:
        codes = max(tokens // _PAGE_TOKENS - 1, 0)
        # The first page, one that a step finds begun, and those that it begins.
        held = min(_pages(tokens), 2 + _pages(step_tokens - 1))
        sealing = max(held - (_pages(tokens) - codes), 0)
    return exact * (chunked * shape.chunked_layers + sealing * shape.global_layers)


def sequence_bytes(tokens: int) -> int:
    """What a sequence keeps of its text: ids, keys by which it is found again, hashes of pages."""
    return tokens * (4 + 8) + _pages(tokens) * 32


def vision_bytes(shape: TextShape, tiles: int) -> int:
    """The buffers of the vision encoder for images of so many tiles."""
    vision = shape.vision
    if vision is None or not tiles:
        return 0
    tiles = min(tiles, _TILES_PER_STEP)
    rows = tiles * (vision.num_patches + 1)
    tokens = tiles * vision.tokens_per_tile
    hidden, width = vision.hidden_size, vision.intermediate_size
    head_dim = hidden // vision.num_heads
    streams = rows * (6 * hidden + width)
    shuffled = tokens * (vision.shuffled_size + vision.output_dim)
    inputs = 2 * rows * (vision.patch_values + hidden + head_dim)
    packed = rows * _padded(max(hidden, width, vision.patch_values))
    features = 2 * tokens * shape.hidden_size
    return (streams + shuffled + inputs + packed + features) * _FLOAT


def image_bytes(shape: TextShape, images: ImageLoad) -> int:
    """What the images of one sequence keep: tiles, and features twice (request and cache)."""
    vision = shape.vision
    if vision is None or not images.count:
        return 0
    tiles = images.count * images.tiles
    features = tiles * vision.tokens_per_tile * shape.hidden_size * _FLOAT
    pixels = tiles * vision.tile_values + images.tiles * vision.tile_values * _FLOAT
    return 2 * features + pixels


def _pages(tokens: int) -> int:
    return -(-tokens // _PAGE_TOKENS)


def _padded(width: int) -> int:
    return -(-width // _GROUP) * _GROUP
