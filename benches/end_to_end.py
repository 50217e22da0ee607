"""Prefill and decode speed of a model beside the limits of the machine, measured in the same run.

    python benches/end_to_end.py MODEL... [--peer FILE.gguf] [--threads N] [--runs 5]
                                 [--tests prefill-512,decode] [--json FILE] [--note TEXT]

MODEL is a directory made by `llama4rs synth`; several (other formats of the same shape) and the
peer take turns. Every run measures the limits just before: what the threads read from memory, and
their integer dot products, with which all of these engines compute. The limit of a decode step is
the longer one of the times to read its weights, keys and values and to do its operations; that of a
prompt is its operations, attention left out. Figures are medians with minimum and maximum; shares
of the limit are computed run by run. --json adds to a list of reports, after each test.

--cpu-time counts the processor time of one thread, and the limits are the best rounds of each run,
the median of all runs: what others take of the processor does not count then, what they take of
the memory bus does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from engines import Llama4rs, LlamaCpp, Measured

import llama4rs
from llama4rs._llama4rs import cpu_features, integer_dot_peak, read_bandwidth

PROBE_BYTES = 512 << 20
PROBE_ROUNDS = 5


@dataclass(frozen=True)
class Test:
    """One thing to measure: with `steps`, decoding; without, reading the prompt."""

    name: str
    prompt: int
    steps: int = 0
    sequences: int = 1
    repeated: bool = False

    def tokens_per_second(self, engine: Measured, rng: np.random.Generator, vocab: int) -> float:
        """Runs the test once."""
        seeded = np.random.default_rng(self.prompt) if self.repeated else rng
        prompts = seeded.integers(0, vocab, (self.sequences, self.prompt)).tolist()
        if not self.steps:
            return self.prompt / engine.prefill(prompts[0])
        if self.sequences == 1:
            return self.steps / engine.decode(prompts[0], self.steps)
        return self.sequences * self.steps / engine.decode_batch(prompts, self.steps)

    def limit(
        self, engine: Measured, config: dict[str, Any], bandwidth: float, peak: float
    ) -> float:
        """Tokens per second that the machine allows."""
        operations = peak / operations_per_token(config)
        if not self.steps:
            return operations
        reads = engine.bytes_per_step(self.sequences, self.prompt + self.steps // 2)
        return min(self.sequences * bandwidth / reads, operations)


TESTS = (
    Test("prefill-512", 512),
    Test("prefill-2048", 2048),
    Test("decode", 32, steps=64),
    Test("decode-8k", 8000, steps=32, repeated=True),
    Test("decode-batch-8", 32, steps=32, sequences=8),
)


def operations_per_token(config: dict[str, Any]) -> float:
    """Two for each weight of the decoder's matrices that a prompt token meets; no attention."""
    hidden, head = config["hidden_size"], config["head_dim"]
    heads = 2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"]
    weights = 0
    for i in range(config["num_hidden_layers"]):
        weights += hidden * head * heads
        if (i + 1) % config["interleave_moe_layer_step"]:
            weights += 3 * hidden * config["intermediate_size_mlp"]
        else:
            used = config["num_experts_per_tok"] + 1
            weights += 3 * hidden * config["intermediate_size"] * used
            weights += hidden * config["num_local_experts"]
    return 2.0 * weights


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum and all values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def measure(
    test: Test,
    engines: Sequence[Measured],
    config: dict[str, Any],
    threads: int,
    runs: int,
    cpu_time: bool,
) -> list[dict[str, Any]]:
    """Runs one test on all engines in turns."""
    rng = np.random.default_rng(0)
    vocab = config["vocab_size"]
    for engine in engines:  # page in the weights, grow the buffers, read long prompts once
        test.tokens_per_second(engine, rng, vocab)
    rates: list[list[float]] = [[] for _ in engines]
    limits: list[list[tuple[float, float]]] = [[] for _ in engines]
    best_or_median = max if cpu_time else statistics.median
    for run in range(runs):
        for i, engine in enumerate(engines):
            print(f"{test.name}: run {run + 1} of {runs}, {engine.name}   ", end="\r", flush=True)
            bandwidth = best_or_median(read_bandwidth(PROBE_BYTES, threads, PROBE_ROUNDS))
            peak = best_or_median(integer_dot_peak(threads, PROBE_ROUNDS))
            limits[i].append((bandwidth, peak))
            rates[i].append(test.tokens_per_second(engine, rng, vocab))
    bandwidths, peaks = zip(*(limit for some in limits for limit in some), strict=True)
    if cpu_time:
        middle = (statistics.median(bandwidths), statistics.median(peaks))
        limits = [[middle] * runs for _ in engines]
    shares = [
        [
            rate / test.limit(engine, config, *limit)
            for rate, limit in zip(rates[i], limits[i], strict=True)
        ]
        for i, engine in enumerate(engines)
    ]
    return [
        {
            "test": test.name,
            "engine": engine.name,
            "tokens_per_second": spread(rate),
            "share_of_limit": spread(share),
            "bytes_per_step": engine.bytes_per_step(test.sequences, test.prompt + test.steps // 2),
            "read_bandwidth": spread(bandwidths),
            "integer_dot_peak": spread(peaks),
        }
        for engine, rate, share in zip(engines, rates, shares, strict=True)
    ]


def show(result: dict[str, Any]) -> None:
    """One line."""
    rate, share = result["tokens_per_second"], result["share_of_limit"]
    print(
        f"{result['test']:15} {result['engine']:20} {rate['median']:7.1f} tokens/s "
        f"({rate['min']:.1f} to {rate['max']:.1f}), {share['median']:.0%} of the limit "
        f"({share['min']:.0%} to {share['max']:.0%})",
        flush=True,
    )


def save(path: Path, earlier: list[dict[str, Any]], report: dict[str, Any]) -> None:
    """Writes the earlier reports and this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*earlier, report], indent=1) + "\n")


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--peer", type=Path, metavar="FILE.gguf")
    parser.add_argument("--threads", type=int, default=cpu_features()["threads"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tests", default=",".join(test.name for test in TESTS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--cpu-time", action="store_true", help="for one thread on a busy machine")
    parser.add_argument("--note", default="", help="kept with the figures")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time measures one thread: add --threads 1")
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    wanted = arguments.tests.split(",")
    tests = [test for test in TESTS if test.name in wanted]
    if len(tests) != len(wanted):
        parser.error(f"--tests takes some of {', '.join(test.name for test in TESTS)}")

    context = max(test.sequences * (test.prompt + test.steps + 2) for test in tests)
    threads = arguments.threads
    engines: list[Measured] = [Llama4rs(path, threads, context, clock) for path in arguments.models]
    config = engines[0].config
    versions = {"llama4rs": llama4rs.__version__}
    if arguments.peer:
        peer = LlamaCpp(arguments.peer, config, threads, context, clock)
        versions["llama-cpp-python"] = peer.version
        engines.append(peer)

    results: list[dict[str, Any]] = []
    report = {
        "date": date.today().isoformat(),
        "model": arguments.models[0].name,
        "threads": threads,
        "cores": cpu_features()["threads"],
        "instruction_set": cpu_features()["instruction_set"],
        "system": platform.system(),
        "note": arguments.note,
        "clock": "processor time" if arguments.cpu_time else "wall time",
        "versions": versions,
        "operations_per_prompt_token": operations_per_token(config),
        "results": results,
    }
    path = arguments.json
    earlier = json.loads(path.read_text()) if path and path.exists() else []
    for test in tests:
        for result in measure(test, engines, config, threads, arguments.runs, arguments.cpu_time):
            show(result)
            results.append(result)
        if path:
            save(path, earlier, report)
    for name, unit in (("read_bandwidth", "GB/s"), ("integer_dot_peak", "GOP/s")):
        values = [value / 1e9 for result in results for value in result[name]["values"]]
        print(
            f"{name} of {threads} threads: {statistics.median(values):.1f} {unit} "
            f"({min(values):.1f} to {max(values):.1f})"
        )


if __name__ == "__main__":
    main()
