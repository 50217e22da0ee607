"""Seconds per tile of the vision tower at Llama 4's size, beside this machine's limits.

    python benches/vision.py [--layers 4] [--threads 2] [--runs 5] [--weights int8 bf16 f32]
                             [--torch] [--json FILE]

A tower with a few of the 34 layers (random weights; every layer costs the same) is written as a
published checkpoint into a temporary directory. Operations are counted from the shapes; their share
is that of the peak of integer dot products (int8), products of pairs (bf16) or single-precision
multiply-adds (f32), measured just before each run. Features are compared with those of the float32
tower, if there is one. With --torch the same layers run in transformers, in bfloat16 and float32,
alternating in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llama4rs._llama4rs import Engine, integer_dot_peak, multiply_add_peak, pair_dot_peak

WIDTH, HEADS, INNER, SIDE, PATCH, OUT, HIDDEN = 1408, 16, 5632, 336, 14, 4096, 256
ROWS = (SIDE // PATCH) ** 2 + 1
PEAKS = {"int8": integer_dot_peak, "bf16": pair_dot_peak, "f32": multiply_add_peak}


def configuration(layers: int) -> dict[str, Any]:
    """Llama 4's vision part on a text model that is as small as can be."""
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "image_token_index": 2,
        "vision_config": {
            "hidden_size": WIDTH,
            "num_hidden_layers": layers,
            "num_attention_heads": HEADS,
            "intermediate_size": INNER,
            "image_size": SIDE,
            "patch_size": PATCH,
            "vision_output_dim": OUT,
            "projector_input_dim": OUT,
            "projector_output_dim": OUT,
            "pixel_shuffle_ratio": 0.5,
            "rope_theta": 10000,
        },
        "text_config": {
            "model_type": "llama4_text",
            "vocab_size": 64,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "intermediate_size": 64,
            "intermediate_size_mlp": 64,
            "moe_layers": [],
        },
    }


def write_checkpoint(directory: Path, layers: int) -> None:
    """A published checkpoint with random weights."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, cols: int) -> np.ndarray:
        return rng.standard_normal((rows, cols), np.float32) / np.float32(np.sqrt(cols))

    text, vision = "language_model.model.", "vision_model."
    one = np.ones
    tensors = {
        text + "embed_tokens.weight": matrix(64, HIDDEN),
        text + "norm.weight": one(HIDDEN, np.float32),
        "language_model.lm_head.weight": matrix(64, HIDDEN),
        text + "layers.0.input_layernorm.weight": one(HIDDEN, np.float32),
        text + "layers.0.post_attention_layernorm.weight": one(HIDDEN, np.float32),
        text + "layers.0.self_attn.q_proj.weight": matrix(256, HIDDEN),
        text + "layers.0.self_attn.k_proj.weight": matrix(128, HIDDEN),
        text + "layers.0.self_attn.v_proj.weight": matrix(128, HIDDEN),
        text + "layers.0.self_attn.o_proj.weight": matrix(HIDDEN, 256),
        text + "layers.0.feed_forward.gate_proj.weight": matrix(64, HIDDEN),
        text + "layers.0.feed_forward.up_proj.weight": matrix(64, HIDDEN),
        text + "layers.0.feed_forward.down_proj.weight": matrix(HIDDEN, 64),
        vision + "class_embedding": matrix(1, WIDTH)[0],
        vision + "positional_embedding_vlm": matrix(ROWS, WIDTH),
        vision + "patch_embedding.linear.weight": matrix(WIDTH, 3 * PATCH * PATCH),
        vision + "vision_adapter.mlp.fc1.weight": matrix(OUT, 4 * WIDTH),
        vision + "vision_adapter.mlp.fc2.weight": matrix(OUT, OUT),
        "multi_modal_projector.linear_1.weight": matrix(HIDDEN, OUT),
    }

    def layer_norm(name: str) -> None:
        tensors[f"{name}.weight"] = one(WIDTH, np.float32)
        tensors[f"{name}.bias"] = np.zeros(WIDTH, np.float32)

    def linear(name: str, rows: int, cols: int) -> None:
        tensors[f"{name}.weight"] = matrix(rows, cols)
        tensors[f"{name}.bias"] = np.zeros(rows, np.float32)

    layer_norm(vision + "layernorm_pre")
    layer_norm(vision + "layernorm_post")
    for j in range(layers):
        block = f"{vision}model.layers.{j}."
        layer_norm(block + "input_layernorm")
        layer_norm(block + "post_attention_layernorm")
        for name in "qkvo":
            linear(f"{block}self_attn.{name}_proj", WIDTH, WIDTH)
        linear(block + "mlp.fc1", INNER, WIDTH)
        linear(block + "mlp.fc2", WIDTH, INNER)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(configuration(layers)))


def operations(layers: int) -> float:
    """Multiplications and additions of one tile in matrix products, attention included."""
    tokens = (ROWS - 1) // 4
    per_layer = 2 * ROWS * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER) + 4 * ROWS * ROWS * WIDTH
    ends = 2 * ROWS * WIDTH * 3 * PATCH * PATCH
    ends += 2 * tokens * (4 * WIDTH * OUT + OUT * OUT + OUT * HIDDEN)
    return layers * per_layer + ends


def torch_towers(layers: int, threads: int) -> dict[str, Callable[[np.ndarray], object]]:
    """The same tower in transformers: name -> function of the pixels."""
    import torch
    from transformers import Llama4VisionConfig, Llama4VisionModel

    torch.set_num_threads(threads)
    config = Llama4VisionConfig(**configuration(layers)["vision_config"])
    towers: dict[str, Callable[[np.ndarray], object]] = {}
    for name in ("bfloat16", "float32"):
        dtype = getattr(torch, name)
        model = Llama4VisionModel(config).eval()
        model = model.bfloat16() if name == "bfloat16" else model.float()

        def run(pixels: np.ndarray, model: Any = model, dtype: Any = dtype) -> object:
            with torch.no_grad():
                return model(torch.from_numpy(pixels).to(dtype))

        towers[f"transformers {name}"] = run
    return towers


def feature_errors(
    towers: dict[str, Callable[[np.ndarray], object]], pixels: np.ndarray
) -> dict[str, float]:
    """Root mean square of what differs from the float32 features, beside that of the features."""
    if "llama4rs f32" not in towers:
        return {}
    exact = np.asarray(towers["llama4rs f32"](pixels))
    ours = [name for name in towers if name.startswith("llama4rs") and name != "llama4rs f32"]
    error = {name: np.asarray(towers[name](pixels)) - exact for name in ours}
    return {name: float(np.sqrt((error[name] ** 2).mean() / (exact**2).mean())) for name in ours}


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiles", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--weights", nargs="+", default=["int8", "bf16", "f32"], metavar="FORMAT")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    pixels = np.random.default_rng(1).standard_normal(
        (arguments.tiles, 3, SIDE, SIDE), dtype=np.float32
    )
    towers: dict[str, Callable[[np.ndarray], object]] = {}
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), arguments.layers)
        for weights in arguments.weights:
            policy = [("vision_model.*", weights), ("multi_modal_projector.*", weights)]
            options = {"threads": arguments.threads, "weights": weights, "policy": policy}
            towers[f"llama4rs {weights}"] = Engine(directory, **options).encode_image
        if arguments.torch:
            towers |= torch_towers(arguments.layers, arguments.threads)

        seconds: dict[str, list[float]] = {name: [] for name in towers}
        shares: dict[str, list[float]] = {name: [] for name in towers if "llama4rs" in name}
        count = operations(arguments.layers) * arguments.tiles
        for run in range(arguments.runs + 1):
            print(f"run {run} of {arguments.runs}", end="\r", flush=True)
            for name, tower in towers.items():
                peak = PEAKS.get(name.removeprefix("llama4rs "), multiply_add_peak)
                limit = statistics.median(peak(arguments.threads, 3))
                started = time.perf_counter()
                tower(pixels)
                taken = time.perf_counter() - started
                if run:  # the first one warms up
                    seconds[name].append(taken / arguments.tiles)
                    if name in shares:
                        shares[name].append(count / taken / limit)
        errors = feature_errors(towers, pixels)

    share = operations(34) / operations(arguments.layers)
    result: dict[str, Any] = {"layers": arguments.layers, "threads": arguments.threads}
    for name, values in seconds.items():
        median = statistics.median(values)
        speed = operations(arguments.layers) / median / 1e9
        result[name] = {
            "seconds_per_tile": {"min": min(values), "median": median, "max": max(values)},
            "gflops": speed,
            "seconds_per_tile_34_layers": median * share,
        }
        line = f"{median * share:.2f} s/tile at 34 layers"
        if name in shares:
            result[name]["share_of_peak"] = statistics.median(shares[name])
            line += f", {result[name]['share_of_peak']:.0%} of the peak"
        if name in errors:
            result[name]["error"] = errors[name]
            line += f", error {errors[name]:.2%}"
        print(
            f"{name:22} {median:.3f} s/tile ({min(values):.3f} to {max(values):.3f}), "
            f"{speed:.0f} Gop/s, {line}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
