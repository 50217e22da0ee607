"""Prefill and decode speed of a model, beside the bytes that a decoded token must read.

    python benches/end_to_end.py [MODEL] [--prompt 512] [--decode 128] [--threads N] [--runs 5]
                                 [--json FILE]

Without MODEL the embedded demo model runs; its weights fit in the processor's cache, so its figures
say how small the overhead of a step is, not how fast memory is. Medians with minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import llama4rs
from llama4rs._llama4rs import Engine


def active_bytes(summary: dict[str, Any], config: dict[str, Any]) -> float:
    """Weight bytes that one decoded token reads: routed experts by share, one embedding row."""
    text = config.get("text_config", config)
    experts = text.get("num_local_experts") or 1
    share = (text.get("num_experts_per_tok") or 1) / experts
    total = 0.0
    for tensor in summary["tensors"]:
        name = tensor["name"]
        if name.startswith(("vision", "multi_modal")):
            continue
        if name == "embed_tokens" and not text.get("tie_word_embeddings"):
            continue
        total += tensor["bytes"] * (share if ".experts." in name else 1.0)
    return total


def measure(engine: Engine, prompt: list[int], decode: int) -> tuple[float, float]:
    """Seconds of prefill and of `decode` further tokens."""
    request = engine.submit(prompt, max_tokens=decode + 1)
    while request.next() is not None:
        pass
    timings = request.timings
    return timings["prefill"], timings["decode"]


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="packed or published directory; default: cria")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    path = arguments.model or str(Path(llama4rs.__file__).parent / "cria")
    started = time.perf_counter()
    engine = Engine(path, threads=arguments.threads)
    open_seconds = time.perf_counter() - started
    config = json.loads(engine.config_json)
    vocab = config.get("text_config", config)["vocab_size"]
    prompt = np.random.default_rng(0).integers(0, vocab, arguments.prompt).tolist()

    measure(engine, prompt, 8)  # warm up: page in the weights, grow the buffers
    prefill, decode = [], []
    for run in range(arguments.runs):
        print(f"run {run + 1} of {arguments.runs}", end="\r", flush=True)
        seconds = measure(engine, prompt, arguments.decode)
        prefill.append(len(prompt) / seconds[0])
        decode.append(arguments.decode / seconds[1])
    read = active_bytes(engine.summary(), config)
    result = {
        "model": path if arguments.model else "cria",
        "device": engine.device,
        "weights": engine.weights,
        "open_seconds": open_seconds,
        "prompt_tokens": len(prompt),
        "prefill_tokens_per_second": spread(prefill),
        "decode_tokens_per_second": spread(decode),
        "weight_bytes_per_decoded_token": read,
        "decode_gigabytes_per_second": read * statistics.median(decode) / 1e9,
    }
    for name, value in result.items():
        shown = " / ".join(f"{v:.1f}" for v in value.values()) if isinstance(value, dict) else value
        print(f"{name:32} {shown}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
