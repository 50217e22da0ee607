"""Predicted speed: short timings of the kernels, and arithmetic on a model's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from .memory import ImageLoad, kv_token_bytes
from .shape import TextShape, VisionShape
from .sizes import Sizes

__all__ = ["Probe", "Speed", "measure", "predict"]

# Large enough to come from memory, small enough for a short probe.
_PROBE_BYTES = 192 << 20
_PROBE_KV_BYTES = 64 << 20
_PROBE_COLS = 4096
_PREFILL_ROWS = 256
_PREFILL_OUTPUTS = 2048
_PREFILL_QUERIES = 64
_PREFILL_TOKENS = 2048
# Kernel calls of a layer, each of which threads begin and end together.
_CALLS_PER_LAYER = 16
_PAGE_TOKENS = 64


@dataclass(frozen=True)
class Probe:
    """What this machine's kernels reach.

    Args:
        weight_bytes: Bytes of weights per second in a product with one row.
        weight_operations: Operations per second in a product with many rows.
        kv_bytes: Bytes of keys and values per second in attention of one row, global layers.
        kv_operations: Operations per second in attention of many rows, global layers.
        chunked_kv_bytes: The same bytes in chunked layers, whose pages are never codes.
        chunked_kv_operations: The same operations in chunked layers.
        vision_operations: Operations per second of the vision encoder's products.
        call_seconds: Of a kernel that has little to do, shared by all threads.
    """

    weight_bytes: float
    weight_operations: float
    kv_bytes: float
    kv_operations: float
    chunked_kv_bytes: float
    chunked_kv_operations: float
    vision_operations: float
    call_seconds: float


@dataclass(frozen=True)
class Speed:
    """Predictions for weights that are in memory.

    Args:
        prefill_seconds: Until all prompts that fill the context are read, images included.
        prefill_tokens_per_second: Of all sequences together.
        decode_tokens_per_second: Of all sequences together, at the end of the context.
        decode_at_start: The same at the beginning.
        image_seconds: To encode the images of all sequences; part of `prefill_seconds`.
        probe: What they were computed from.
    """

    prefill_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    decode_at_start: float
    image_seconds: float
    probe: Probe


def measure(sizes: Sizes, kv_cache: str, *, threads: int | None, images: bool) -> Probe:
    """Times the kernels that the model would run, in its formats: half a second or so."""
    from .._llama4rs import attention_seconds, matmul_seconds

    shape, cols = sizes.shape, _PROBE_COLS
    heads = shape.num_heads, shape.num_kv_heads, shape.head_dim

    def product(weights: str, rows: int, inputs: int) -> float:
        return median(matmul_seconds(weights, rows, cols, inputs, threads=threads))

    seen = _PREFILL_TOKENS - (_PREFILL_QUERIES - 1) / 2
    attended = 4.0 * heads[0] * heads[2] * _PREFILL_QUERIES * seen

    def attention(kv: str) -> tuple[float, float]:
        """Bytes and operations per second with keys and values in this format."""

        def seconds(tokens: int, queries: int) -> float:
            return median(attention_seconds(kv, *heads, tokens, queries, threads=threads))

        _, token_bytes = kv_token_bytes(shape, kv)
        tokens = max(_PAGE_TOKENS, _PROBE_KV_BYTES // token_bytes // _PAGE_TOKENS * _PAGE_TOKENS)
        return (
            tokens * token_bytes / seconds(tokens, 1),
            attended / seconds(_PREFILL_TOKENS, _PREFILL_QUERIES),
        )

    in_global = attention(kv_cache)
    codes = kv_cache.startswith("int") and shape.chunked_layers > 0
    in_chunked = attention("bf16") if codes else in_global
    row_bytes = _row_bytes(sizes.weights, cols)
    rows = int(_PROBE_BYTES / row_bytes) // 16 * 16
    operations = 2.0 * _PREFILL_ROWS * _PREFILL_OUTPUTS * cols
    weight_operations = operations / product(sizes.weights, _PREFILL_OUTPUTS, _PREFILL_ROWS)
    vision_format = "f32" if sizes.weights == "f32" else "bf16"
    return Probe(
        weight_bytes=rows * row_bytes / product(sizes.weights, rows, 1),
        weight_operations=weight_operations,
        kv_bytes=in_global[0],
        kv_operations=in_global[1],
        chunked_kv_bytes=in_chunked[0],
        chunked_kv_operations=in_chunked[1],
        vision_operations=operations / product(vision_format, _PREFILL_OUTPUTS, _PREFILL_ROWS)
        if images
        else weight_operations,
        call_seconds=median(matmul_seconds("f32", 512, 32, 1, threads=threads, rounds=50)),
    )


def predict(
    sizes: Sizes,
    probe: Probe,
    kv_cache: str,
    *,
    context: int,
    batch: int,
    step_tokens: int,
    images: ImageLoad,
) -> Speed:
    """Speed of `batch` sequences whose prompts fill the context.

    A step takes as long as its arithmetic or its bytes, whichever is more, for the products; then
    the same for attention; then what the calls themselves cost.
    """
    image_seconds = 0.0
    if sizes.shape.vision is not None and images.count:
        tiles = batch * images.count * images.tiles
        image_seconds = (
            tiles
            * _tile_operations(sizes.shape.vision, sizes.shape.hidden_size)
            / probe.vision_operations
        )
    prefill = _prefill_seconds(sizes, probe, context, batch, step_tokens) + image_seconds
    token = kv_token_bytes(sizes.shape, kv_cache)
    return Speed(
        prefill_seconds=prefill,
        prefill_tokens_per_second=batch * context / prefill,
        decode_tokens_per_second=batch / _decode_seconds(sizes, probe, token, context, batch),
        decode_at_start=batch / _decode_seconds(sizes, probe, token, 1, batch),
        image_seconds=image_seconds,
        probe=probe,
    )


def _decode_seconds(
    sizes: Sizes, probe: Probe, token: tuple[int, int], depth: int, batch: int
) -> float:
    """Of one step that gives each sequence a token, when each has `depth` tokens.

    `token` has the bytes that a token keeps in a chunked and in a global layer.
    """
    shape = sizes.shape
    bytes_read = sizes.decoded_bytes(batch) / probe.weight_bytes
    arithmetic = batch * _row_operations(shape, logits=True) / probe.weight_operations
    in_chunk = min(depth, shape.chunk_size or depth)
    attention = shape.global_layers * depth * token[1] / probe.kv_bytes
    attention += shape.chunked_layers * in_chunk * token[0] / probe.chunked_kv_bytes
    attention *= batch
    return max(bytes_read, arithmetic) + attention + _call_seconds(shape, probe)


def _prefill_seconds(
    sizes: Sizes, probe: Probe, context: int, batch: int, step_tokens: int
) -> float:
    shape, tokens = sizes.shape, context * batch
    rows = min(step_tokens, tokens)
    steps = -(-tokens // rows)
    arithmetic = tokens * _row_operations(shape, logits=False) / probe.weight_operations
    bytes_read = steps * sizes.decoded_bytes(rows) / probe.weight_bytes
    chunk = min(shape.chunk_size or context, context)
    chunks, rest = divmod(context, chunk)
    in_chunks = (chunks * chunk**2 + rest**2) / 2
    attention = shape.global_layers * context**2 / 2 / probe.kv_operations
    attention += shape.chunked_layers * in_chunks / probe.chunked_kv_operations
    attention *= batch * 4.0 * shape.num_heads * shape.head_dim
    return max(arithmetic, bytes_read) + attention + steps * _call_seconds(shape, probe)


def _call_seconds(shape: TextShape, probe: Probe) -> float:
    return _CALLS_PER_LAYER * shape.num_layers * probe.call_seconds


def _row_operations(shape: TextShape, *, logits: bool) -> float:
    """Operations of the decoder's products for one row."""
    hidden, head_dim = shape.hidden_size, shape.head_dim
    layers = shape.num_layers
    attention = 2 * hidden * head_dim * (shape.num_heads + shape.num_kv_heads)
    expert = 3 * hidden * shape.intermediate_size * (1 + shape.experts_per_token)
    dense = 3 * hidden * shape.intermediate_size_mlp
    weights = layers * attention + shape.expert_layers * (expert + hidden * shape.num_experts)
    weights += (layers - shape.expert_layers) * dense
    return 2.0 * (weights + (hidden * shape.vocab_size if logits else 0))


def _row_bytes(weights: str, cols: int) -> float:
    """Bytes of `cols` weights of one output; a scale of 16 bits is shared by each group."""
    name, _, group = weights.partition("/g")
    bits = {"f32": 32.0, "bf16": 16.0, "int8": 8.0, "int4": 4.0}[name]
    return cols * (bits + (16 / int(group) if group else 0.0)) / 8


def _tile_operations(vision: VisionShape, text_hidden: int) -> float:
    """Operations of the vision encoder for one tile."""
    hidden, rows = vision.hidden_size, vision.num_patches + 1
    layer = 4 * hidden**2 + 2 * hidden * vision.intermediate_size + 2 * rows * hidden
    between, out = vision.projector_input_dim, vision.output_dim
    adapter = vision.shuffled_size * between + between * out + out * text_hidden
    encoder = vision.num_layers * layer + vision.patch_values * hidden
    return 2.0 * (rows * encoder + vision.tokens_per_tile * adapter)
