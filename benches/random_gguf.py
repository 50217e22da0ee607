"""Writes a random Q4_0 model in GGUF with the shape of a synthetic llama4rs model.

    python benches/random_gguf.py MODEL_DIRECTORY OUT.gguf [--seed N]

Blocks are made directly: random codes under scales that keep activations at unit size. The output
matrix is Q6_K, router and norms are single precision, as llama.cpp's own conversion to Q4_0 has it.
Needs the package `gguf`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Q4_0 = gguf.GGMLQuantizationType.Q4_0
Q6_K = gguf.GGMLQuantizationType.Q6_K
F32 = gguf.GGMLQuantizationType.F32

BLOCKS_AT_A_TIME = 1 << 20
Q4_0_RMS = math.sqrt(21.5)  # of the codes -8..7
Q6_K_RMS = math.sqrt((64**2 - 1) / 12 + 0.25)  # of the codes -32..31
Q6_K_SUBSCALE = 64


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: its shape, row-major, and the deviation of its weights."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    deviation: float
    values: npt.NDArray[np.float32] | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in bytes, which the writer wants for quantised tensors."""
        if self.kind == F32:
            return self.shape
        weights, size = gguf.GGML_QUANT_SIZES[self.kind]
        return (*self.shape[:-1], self.shape[-1] // weights * size)

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, without padding."""
        return math.prod(self.stored_shape) * (4 if self.kind == F32 else 1)

    def pieces(self, rng: np.random.Generator) -> Iterator[npt.NDArray[Any]]:
        """The bytes, in pieces of bounded size."""
        if self.kind == F32:
            made = rng.standard_normal(self.shape, dtype=np.float32) * np.float32(self.deviation)
            yield made if self.values is None else self.values
            return
        blocks = self.num_bytes // gguf.GGML_QUANT_SIZES[self.kind][1]
        make = q4_0_blocks if self.kind == Q4_0 else q6_k_blocks
        for first in range(0, blocks, BLOCKS_AT_A_TIME):
            yield make(rng, min(BLOCKS_AT_A_TIME, blocks - first), self.deviation)


def random_blocks(rng: np.random.Generator, count: int, size: int) -> npt.NDArray[np.uint8]:
    """Blocks of random bytes."""
    return np.array(np.frombuffer(rng.bytes(count * size), np.uint8)).reshape(count, size)


def half_bytes(rng: np.random.Generator, count: int, value: float) -> npt.NDArray[np.uint8]:
    """`value` with a random sign as half precision, `[count, 2]` bytes."""
    signs = rng.integers(0, 2, count, dtype=np.int8) * 2 - 1
    halves: npt.NDArray[np.uint8] = (signs * np.float16(value)).astype("<f2").view(np.uint8)
    return halves.reshape(count, 2)


def q4_0_blocks(rng: np.random.Generator, count: int, deviation: float) -> npt.NDArray[np.uint8]:
    """A half-precision scale, then 32 codes of 4 bits."""
    blocks = random_blocks(rng, count, 18)
    blocks[:, :2] = half_bytes(rng, count, deviation / Q4_0_RMS)
    return blocks


def q6_k_blocks(rng: np.random.Generator, count: int, deviation: float) -> npt.NDArray[np.uint8]:
    """256 codes of 6 bits, 16 signed scales of 8 bits, a half-precision scale."""
    blocks = random_blocks(rng, count, 210)
    blocks[:, 192:208] = Q6_K_SUBSCALE
    blocks[:, 208:] = half_bytes(rng, count, deviation / Q6_K_RMS / Q6_K_SUBSCALE)
    return blocks


def tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of the model that `config` describes."""
    hidden, head = config["hidden_size"], config["head_dim"]
    vocab, experts = config["vocab_size"], config["num_local_experts"]
    query = config["num_attention_heads"] * head
    key = config["num_key_value_heads"] * head

    def matrix(name: str, *shape: int) -> Tensor:
        return Tensor(f"{name}.weight", shape, Q4_0, 1 / math.sqrt(shape[-1]))

    def norm(name: str) -> Tensor:
        return Tensor(f"{name}.weight", (hidden,), F32, 0.0, np.ones(hidden, np.float32))

    yield Tensor("token_embd.weight", (vocab, hidden), Q4_0, 1.0)
    if config["rope_scaling"]:
        factors = rope_factors(config)
        yield Tensor("rope_freqs.weight", factors.shape, F32, 0.0, factors)
    for i in range(config["num_hidden_layers"]):
        at = f"blk.{i}"
        yield norm(f"{at}.attn_norm")
        yield matrix(f"{at}.attn_q", query, hidden)
        yield matrix(f"{at}.attn_k", key, hidden)
        yield matrix(f"{at}.attn_v", key, hidden)
        yield matrix(f"{at}.attn_output", hidden, query)
        yield norm(f"{at}.ffn_norm")
        if (i + 1) % config["interleave_moe_layer_step"]:
            width = config["intermediate_size_mlp"]
            yield from swiglu(matrix, at, "", (), hidden, width)
            continue
        width = config["intermediate_size"]
        router = (experts, hidden)
        yield Tensor(f"{at}.ffn_gate_inp.weight", router, F32, 1 / math.sqrt(hidden))
        yield from swiglu(matrix, at, "_exps", (experts,), hidden, width)
        yield from swiglu(matrix, at, "_shexp", (), hidden, width)
    yield norm("output_norm")
    yield Tensor("output.weight", (vocab, hidden), Q6_K, 1 / math.sqrt(hidden))


def swiglu(
    matrix: Any, at: str, ending: str, stack: tuple[int, ...], hidden: int, width: int
) -> Iterator[Tensor]:
    """The three matrices of a feed-forward part."""
    yield matrix(f"{at}.ffn_gate{ending}", *stack, width, hidden)
    yield matrix(f"{at}.ffn_up{ending}", *stack, width, hidden)
    yield matrix(f"{at}.ffn_down{ending}", *stack, hidden, width)


def rope_factors(config: dict[str, Any]) -> npt.NDArray[np.float32]:
    """What long wavelengths are divided by; the scaled and the plain ones meet without a ramp."""
    scaling, head = config["rope_scaling"], config["head_dim"]
    if scaling["low_freq_factor"] != scaling["high_freq_factor"]:
        raise ValueError("only rope scaling without a ramp")
    frequencies = config["rope_theta"] ** (-np.arange(0, head, 2) / head)
    limit = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    plain = 2 * math.pi / frequencies < limit
    return np.where(plain, 1.0, scaling["factor"]).astype(np.float32)


def write(config: dict[str, Any], path: Path, seed: int) -> None:
    """Writes the model, one piece at a time."""
    writer = gguf.GGUFWriter(path, "llama4")
    writer.add_type("model")
    writer.add_name("synthetic")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size_mlp"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    listed = list(tensors(config))
    for tensor in listed:
        raw = None if tensor.kind == F32 else tensor.kind
        dtype = np.dtype(np.float32 if tensor.kind == F32 else np.uint8)
        writer.add_tensor_info(
            tensor.name, tensor.stored_shape, dtype, tensor.num_bytes, raw_dtype=raw
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    file.write(bytes(-file.tell() % writer.data_alignment))
    rng = np.random.Generator(np.random.SFC64(seed))
    for number, tensor in enumerate(listed):
        print(f"tensor {number + 1} of {len(listed)}", end="\r", flush=True)
        for piece in tensor.pieces(rng):
            file.write(np.ascontiguousarray(piece).data)
        file.write(bytes(-tensor.num_bytes % writer.data_alignment))
    writer.close()


def main() -> None:
    """Writes under a temporary name and renames at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="directory made by `llama4rs synth`")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = json.loads((arguments.model / "config.json").read_text())
    partial = arguments.out.with_suffix(".partial")
    try:
        write(config, partial, arguments.seed)
        partial.rename(arguments.out)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
