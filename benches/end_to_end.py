"""Prefill and decode speed of a model beside the limits of the machine, measured in the same run.

    python benches/end_to_end.py MODEL... [--peer FILE.gguf] [--threads N] [--cores 2,3] [--runs 5]
                                 [--tests prefill-512,decode] [--depth 8000,32000] [--kv int8]
                                 [--kv-dir DIR] [--startup] [--json FILE] [--note TEXT]

MODEL is a directory made by `llama4rs synth`; several (other formats of the same shape) and the
peer take turns. Every run measures the limits just before: what the threads read from memory in
large pages, and their integer dot products, with which all of these engines compute (with bf16
weights: products of pairs). The limit of a decode step is the longer one of the times to read its
weights, keys and values and to do its operations; that of a prompt is its operations, attention
left out. Figures are medians with minimum and maximum; shares of the limit are computed run by
run. --json adds to a list of reports, after each test. --depth adds decoding behind long prompts,
whose keys and values --kv-dir keeps from one run to the next (the peer's stay in files beside its
model). --startup adds start and memory (`startup.py`).

--cpu-time counts the processor time of one thread, and the limits are the best rounds of each run,
the median of all runs: what others take of the processor does not count then, what they take of
the memory bus does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import startup
from engines import Llama4rs, LlamaCpp, Measured

import llama4rs
from llama4rs._llama4rs import cpu_features, integer_dot_peak, pair_dot_peak, read_bandwidth

PROBE_BYTES = 512 << 20
PROBE_ROUNDS = 5


@dataclass(frozen=True)
class Test:
    """One thing to measure: with `steps`, decoding; without, reading the prompt."""

    name: str
    prompt: int
    steps: int = 0
    sequences: int = 1

    def begin(self, engine: Measured, runs: int) -> None:
        """What comes before the runs: prompts of single sequences are read only once."""
        if self.steps and self.sequences == 1:
            rng = np.random.default_rng(self.prompt)
            prompt = rng.integers(0, engine.config["vocab_size"], self.prompt)
            engine.begin(prompt.tolist(), (runs + 1) * self.steps)

    def tokens_per_second(self, engine: Measured, rng: np.random.Generator) -> float:
        """Runs the test once."""
        if self.steps and self.sequences == 1:
            return self.steps / engine.decode(self.steps)
        shape = (self.sequences, self.prompt)
        prompts = rng.integers(0, engine.config["vocab_size"], shape).tolist()
        if not self.steps:
            return self.prompt / engine.prefill(prompts[0])
        return self.sequences * self.steps / engine.decode_batch(prompts, self.steps)

    def depth(self, runs: int) -> int:
        """Tokens before a step, in the middle of the runs."""
        single = self.sequences == 1
        return self.prompt + self.steps * (runs + 2 if single else 1) // 2

    def limit(self, engine: Measured, runs: int, bandwidth: float, peak: float) -> float:
        """Tokens per second that the machine allows."""
        operations = peak / operations_per_token(engine.config)
        if not self.steps:
            return operations
        reads = engine.bytes_per_step(self.sequences, self.depth(runs))
        return min(self.sequences * bandwidth / reads, operations)


TESTS = (
    Test("prefill-512", 512),
    Test("prefill-2048", 2048),
    Test("decode", 32, steps=64),
    Test("decode-batch-8", 16, steps=32, sequences=8),
    Test("decode-batch-32", 16, steps=16, sequences=32),
)


def depth_test(depth: int) -> Test:
    """Decoding behind a long prompt."""
    return Test(f"decode-depth-{depth}", depth, steps=32)


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
    test: Test, engines: Sequence[Measured], threads: int, runs: int, cpu_time: bool
) -> list[dict[str, Any]]:
    """Runs one test in turns on all engines."""
    rng = np.random.default_rng(0)
    for engine in engines:  # page in the weights, grow the buffers
        print(f"{test.name}: {engine.name} gets ready   ", end="\r", flush=True)
        test.begin(engine, runs)
        test.tokens_per_second(engine, rng)
    rates: list[list[float]] = [[] for _ in engines]
    limits: list[list[tuple[float, float]]] = [[] for _ in engines]
    best_or_median = max if cpu_time else statistics.median
    for run in range(runs):
        for i, engine in enumerate(engines):
            print(f"{test.name}: run {run + 1} of {runs}, {engine.name}   ", end="\r", flush=True)
            bandwidth = best_or_median(read_bandwidth(PROBE_BYTES, threads, PROBE_ROUNDS))
            peak_of = pair_dot_peak if engine.name.endswith("bf16") else integer_dot_peak
            peak = best_or_median(peak_of(threads, PROBE_ROUNDS))
            limits[i].append((bandwidth, peak))
            rates[i].append(test.tokens_per_second(engine, rng))
    bandwidths, peaks = zip(*(limit for some in limits for limit in some), strict=True)
    if cpu_time:
        middle = (statistics.median(bandwidths), statistics.median(peaks))
        limits = [[middle] * runs for _ in engines]
    results = []
    for engine, rate, limit in zip(engines, rates, limits, strict=True):
        engine.end()
        shares = [r / test.limit(engine, runs, *at) for r, at in zip(rate, limit, strict=True)]
        results.append(
            {
                "test": test.name,
                "engine": engine.name,
                "tokens_per_second": spread(rate),
                "share_of_limit": spread(shares),
                "bytes_per_step": engine.bytes_per_step(test.sequences, test.depth(runs)),
                "read_bandwidth": spread(bandwidths),
                "operations_peak": spread(peaks),
            }
        )
    return results


def measure_startup(engines: Sequence[Measured], threads: int, runs: int) -> list[dict[str, Any]]:
    """Start and memory of every engine in processes of their own, in turns."""
    found: list[list[dict[str, float]]] = [[] for _ in engines]
    config = engines[0].path
    for run in range(runs):
        for i, engine in enumerate(engines):
            print(f"startup: run {run + 1} of {runs}, {engine.name}   ", end="\r", flush=True)
            kind = engine.name.split()[0]
            found[i].append(startup.measure(kind, engine.path, config, threads))
    return [
        {"engine": engine.name, **{name: spread([run[name] for run in some]) for name in some[0]}}
        for engine, some in zip(engines, found, strict=True)
    ]


def mapped_bandwidth(path: Path, threads: int) -> dict[str, Any]:
    """What the threads read from the model's largest file as the page cache holds it."""
    file = max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    return spread(read_bandwidth(PROBE_BYTES, threads, PROBE_ROUNDS, path=file))


def large_page_share(path: Path) -> float:
    """The share of a model's mapped bytes that this process sees in pages of 2 MB."""
    present = large = 0
    of_model = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            of_model = bool(rest) and Path(rest[-1]).parent == path.resolve()
        elif of_model and name == "Rss:":
            present += int(rest[0])
        elif of_model and name == "FilePmdMapped:":
            large += int(rest[0])
    return large / max(present, 1)


def show(result: dict[str, Any]) -> None:
    """One line."""
    rate, share = result["tokens_per_second"], result["share_of_limit"]
    print(
        f"{result['test']:18} {result['engine']:20} {rate['median']:7.1f} tokens/s "
        f"({rate['min']:.1f} to {rate['max']:.1f}), {share['median']:.0%} of the limit "
        f"({share['min']:.0%} to {share['max']:.0%})",
        flush=True,
    )


def show_startup(result: dict[str, Any]) -> None:
    """One line."""
    seconds, idle = result["start_seconds"], result["idle_processors"]
    sizes = {name: result[f"{name}_bytes"]["median"] / 1e6 for name in ("peak", "own", "file")}
    print(
        f"startup         {result['engine']:20} {seconds['median']:.2f} s "
        f"({seconds['min']:.2f} to {seconds['max']:.2f}), memory {sizes['peak']:.0f} MB at most, "
        f"of its own {sizes['own']:.0f} MB, of files {sizes['file']:.0f} MB; "
        f"idle {idle['median']:.1%} of a processor",
        flush=True,
    )


def save(path: Path, earlier: list[dict[str, Any]], report: dict[str, Any]) -> None:
    """Writes the earlier reports and this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*earlier, report], indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = lambda text: [int(number) for number in text.split(",") if number]  # noqa: E731
    names = [test.name for test in TESTS]
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--peer", type=Path, metavar="FILE.gguf")
    parser.add_argument("--threads", type=int, default=cpu_features()["threads"])
    parser.add_argument("--cores", type=numbers, default=[], help="run on these, such as 2,3")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tests", default=",".join(names), help="some of " + ", ".join(names))
    parser.add_argument("--depth", type=numbers, default=[], help="tokens before decoding")
    parser.add_argument("--kv", help="format of our keys and values, such as int8")
    parser.add_argument("--kv-dir", type=Path, metavar="DIR", help="keeps long prompts")
    parser.add_argument("--startup", action="store_true", help="measure start and memory")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--cpu-time", action="store_true", help="for one thread on a busy machine")
    parser.add_argument("--note", default="", help="kept with the figures")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time measures one thread: add --threads 1")
    wanted = [name for name in arguments.tests.split(",") if name]
    if unknown := set(wanted) - set(names):
        parser.error(f"--tests takes some of {', '.join(names)}, not {', '.join(unknown)}")
    arguments.tests = [test for test in TESTS if test.name in wanted]
    if arguments.kv_dir and arguments.tests:
        parser.error("--kv-dir would answer the other tests from memory: add --tests ''")
    arguments.tests += [depth_test(depth) for depth in arguments.depth]
    return arguments


def main() -> None:
    """Runs the benchmark and prints a table."""
    arguments = parse_arguments()
    if arguments.cores:
        os.sched_setaffinity(0, arguments.cores)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    tests, threads, runs = arguments.tests, arguments.threads, arguments.runs
    lengths = [test.sequences * (test.prompt + test.steps * (runs + 1) + 2) for test in tests]
    context = max(lengths, default=startup.CONTEXT)
    options = {"kv_cache": arguments.kv, "kv_dir": arguments.kv_dir}
    ours = [Llama4rs(path, threads, context, clock, **options) for path in arguments.models]
    engines: list[Measured] = [*ours]
    versions = {"llama4rs": llama4rs.__version__}
    if arguments.peer:
        peer = LlamaCpp(arguments.peer, engines[0].config, threads, context, clock)
        versions["llama-cpp-python"] = peer.version
        engines.append(peer)

    results: list[dict[str, Any]] = []
    report = {
        "date": date.today().isoformat(),
        "model": arguments.models[0].name,
        "threads": threads,
        "pinned_to": arguments.cores,
        "cores": os.cpu_count(),
        "instruction_set": cpu_features()["instruction_set"],
        "system": platform.system(),
        "note": arguments.note,
        "kv_cache": ours[0].engine.summary()["kv_cache"],
        "clock": "processor time" if arguments.cpu_time else "wall time",
        "versions": versions,
        "operations_per_prompt_token": operations_per_token(engines[0].config),
        "mapped_read_bandwidth": {
            engine.name: mapped_bandwidth(engine.path, threads)
            for engine in engines[: len(arguments.models)]
        },
        "results": results,
    }
    path = arguments.json
    earlier = json.loads(path.read_text()) if path and path.exists() else []
    for test in tests:
        for result in measure(test, engines, threads, runs, arguments.cpu_time):
            show(result)
            results.append(result)
        if path:
            save(path, earlier, report)
    report["large_page_share"] = {one.name: large_page_share(one.path) for one in ours}
    if path:
        save(path, earlier, report)
    if arguments.startup:
        report["startup"] = measure_startup(engines, threads, runs)
        for result in report["startup"]:
            show_startup(result)
        if path:
            save(path, earlier, report)
    for name, unit in (("read_bandwidth", "GB/s"), ("operations_peak", "GOP/s")):
        values = [value / 1e9 for result in results for value in result[name]["values"]]
        if values:
            print(
                f"{name} of {threads} threads: {statistics.median(values):.1f} {unit} "
                f"({min(values):.1f} to {max(values):.1f})"
            )
    for name, rates in report["mapped_read_bandwidth"].items():
        share = report["large_page_share"][name]
        print(
            f"the same from the mapped file of {name}: {rates['median'] / 1e9:.1f} GB/s; "
            f"{share:.0%} of the model's mapped bytes lie in large pages"
        )


if __name__ == "__main__":
    main()
