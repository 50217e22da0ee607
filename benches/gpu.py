"""Is the GPU right, and how near to its limits? Needs a GPU (or, with --tiny, the simulated one).

    python benches/gpu.py [--device N] [--parts check,ceilings,kernels,peers,model]
                          [--layers 4,8] [--kv bf16] [--rounds 20] [--work DIR]
                          [--json FILE] [--note TEXT] [--tiny]

check      tensor cores give the same bits for any number of rows; a small model agrees with the
           CPU; requests give the same tokens alone and together
ceilings   what this card copies, and (with torch) multiplies: shares below are of these
kernels    operations of Llama 4 Scout, one at a time, with random data made on the device; each is
           captured into a graph with other weights every time, and a replay is timed by events
peers      the same work in PyTorch, when it is installed: int4 and bf16 products, attention
model      prompts and decoding through the engine: random models with some of Scout's layers
           (`llama4rs synth`, under --work), and the line through two depths drawn on to 48 layers

A share is the time that the ceilings allow over the time that it took, the longer of bytes over
copied bytes per second and operations over operations per second. Everything ends up in --json.
--tiny makes everything small: it proves the script, its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end import operations_per_token, spread
from engines import Llama4rs

import llama4rs
from llama4rs._llama4rs import Engine, GpuProbe, synth
from llama4rs.device import cuda_devices, nvrtc_folders

PARTS = ("check", "ceilings", "kernels", "peers", "model")
LAYERS = 48

Row = dict[str, Any]


class Shapes:
    """The sizes that are measured: Scout's, or tiny ones."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.hidden, self.inner = (256, 128) if tiny else (5120, 8192)
        self.heads, self.kv_heads, self.head_dim = (5, 1, 128) if tiny else (40, 8, 128)
        self.experts = 4 if tiny else 16
        self.vocab = 1003 if tiny else 202048
        self.tokens = (1, 9, 70) if tiny else (1, 4, 8, 16, 32, 64, 128, 512, 4096)
        self.copy_bytes = 1 << 16 if tiny else 4 << 30
        self.contexts = (130,) if tiny else (1024, 8192, 131072, 1048576)
        self.sequences = (1, 2) if tiny else (1, 8, 64)
        self.prefills = ((40, 100),) if tiny else ((2048, 2048), (8192, 8192), (2048, 131072))
        self.prompts = (20,) if tiny else (2048, 8000)
        self.steps = 3 if tiny else 64
        self.batches = (1, 2) if tiny else (1, 8, 32)
        self.square = 256 if tiny else 8192
        # Memory of keys and values that one attention may take.
        self.most_cache = 1 << 24 if tiny else 24 << 30

    @property
    def qkv(self) -> list[int]:
        """Outputs of the projections before attention."""
        width = self.kv_heads * self.head_dim
        return [self.heads * self.head_dim, width, width]


def check(shapes: Shapes, probe: GpuProbe, device: str, work: Path) -> Iterator[Row]:
    """Whether the GPU is right."""
    rows, cols = (40, 520) if shapes.tiny else (1000, 5120)
    for weights in ("int4/g32", "int4/g64", "int4/g128", "int8/g64", "bf16"):
        for tokens in (8, 16, 33, 70) if shapes.tiny else (8, 16, 64, 70, 300):
            found = probe.differing_products(weights, rows, cols, tokens)
            name = f"same bits: {weights}, {tokens} rows"
            yield {"name": name, "ok": found == 0, "differing": found}

    path = work / "tiny"
    if not path.exists():
        synth(str(path), shape="tiny", weights="int4/g64")
    ids = np.random.default_rng(5).integers(0, 31000, 40 if shapes.tiny else 700).tolist()
    gpu = {"device": device, "nvrtc_folders": nvrtc_folders()}
    exact = {"kv_cache": "bf16", "arithmetic": "exact"}
    expected = Engine(str(path), device="cpu", **exact).logits(ids)
    for arithmetic, tolerance in (("exact", 1e-3), ("fast", 2e-2)):
        engine = Engine(str(path), **gpu, kv_cache="bf16", arithmetic=arithmetic)
        # The median row: where a router hesitates, rounding sends a token to another expert.
        errors = np.linalg.norm(engine.logits(ids) - expected, axis=1)
        error = float(np.median(errors / np.linalg.norm(expected, axis=1)))
        name = f"logits beside the CPU, {arithmetic}"
        yield {"name": name, "ok": error < tolerance, "relative_error": error}
        if arithmetic == "fast":
            cuts = Engine(str(path), **gpu, kv_cache="bf16", step_tokens=7)
            same = bool(np.array_equal(cuts.logits(ids), engine.logits(ids)))
            yield {"name": "the same logits in steps of 7", "ok": same}
            prompts = [ids[:5], ids[3:30], ids[7:19]]
            alone = [tokens_of(engine, [prompt], 4)[0] for prompt in prompts]
            together = tokens_of(engine, prompts, 4)
            yield {"name": "the same tokens alone and together", "ok": alone == together}


def tokens_of(engine: Engine, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """Greedy tokens of requests that run side by side."""
    requests = [engine.submit(prompt, max_tokens=count) for prompt in prompts]
    tokens: list[list[int]] = []
    for request in requests:
        tokens.append([])
        while (event := request.next()) is not None:
            if event.token_id is not None:
                tokens[-1].append(event.token_id)
    return tokens


class Ceilings:
    """What this card reaches; shares are taken of it."""

    def __init__(self, shapes: Shapes, probe: GpuProbe, peers: Peers | None, rounds: int) -> None:
        measured = probe.copy(shapes.copy_bytes, rounds=rounds)
        self.bandwidth = measured["bytes"] / statistics.median(measured["seconds"])
        self.source = "torch.matmul" if peers else "own bf16 product"
        n = shapes.square
        if peers:
            seconds, operations = statistics.median(peers.matmul(n, n, n, rounds)), 2 * n**3
        else:
            measured = probe.matmul("bf16", [n], n, n, rounds=rounds)
            seconds, operations = statistics.median(measured["seconds"]), measured["operations"]
        self.operations = operations / seconds

    def row(self, name: str, measured: dict[str, Any], **more: Any) -> Row:
        """One line of the table."""
        seconds = measured["seconds"]
        median = statistics.median(seconds)
        limit = max(measured["bytes"] / self.bandwidth, measured["operations"] / self.operations)
        return {
            "name": name,
            "seconds": spread(seconds),
            "bytes_per_second": measured["bytes"] / median,
            "operations_per_second": measured["operations"] / median,
            "share": limit / median,
            **more,
        }


def kernels(shapes: Shapes, probe: GpuProbe, rounds: int, ceilings: Ceilings) -> Iterator[Row]:
    """Operations of Scout, one at a time."""
    hidden, inner = shapes.hidden, shapes.inner
    for weights in ("int4/g64", "int4/g128"):
        products = {
            "qkv": (shapes.qkv, hidden),
            "o": ([hidden], shapes.heads * shapes.head_dim),
            "gate, up": ([inner, inner], hidden),
            "down": ([hidden], inner),
        }
        for tokens in shapes.tokens:
            for name, (rows, cols) in products.items():
                measured = probe.matmul(weights, rows, cols, tokens, rounds=rounds)
                yield ceilings.row(f"{name} {weights}, {tokens} tokens", measured)
            measured = probe.experts(weights, shapes.experts, tokens, hidden, inner, rounds=rounds)
            yield ceilings.row(f"experts {weights}, {tokens} tokens", measured)
    for tokens in shapes.tokens[:5]:
        measured = probe.matmul("int8/g64", [shapes.vocab], hidden, tokens, rounds=rounds)
        yield ceilings.row(f"lm_head int8/g64, {tokens} tokens", measured)

    sizes = (shapes.heads, shapes.kv_heads, shapes.head_dim)
    per_token = shapes.kv_heads * shapes.head_dim * 4
    for kv in ("bf16", "int8"):
        for context in shapes.contexts:
            for sequences in shapes.sequences:
                if sequences * context * per_token > shapes.most_cache:
                    continue
                measured = probe.attend(kv, *sizes, sequences, context, 1, rounds=rounds)
                yield ceilings.row(f"attention {kv}, {sequences} x {context}", measured)
        for rows, context in shapes.prefills:
            measured = probe.attend(kv, *sizes, 1, context, rows, rounds=rounds)
            yield ceilings.row(f"attention {kv}, last {rows} of {context}", measured)
    for rows in shapes.sequences:
        measured = probe.add_norm(rows, hidden, rounds=rounds)
        yield ceilings.row(f"add and norm, {rows} rows", measured)
        for draw in (False, True):
            measured = probe.sample(rows, shapes.vocab, draw, rounds=rounds)
            name = "draw from the nucleus" if draw else "largest logit"
            yield ceilings.row(f"{name}, {rows} rows", measured)


class Peers:
    """The same work in PyTorch."""

    def __init__(self, device: int) -> None:
        import torch

        if not torch.cuda.is_available():
            raise ImportError("torch has no CUDA device")
        torch.cuda.set_device(device)
        self.torch = torch
        self.version = f"{torch.__version__}, CUDA {torch.version.cuda}"

    def seconds(self, operations: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
        """Seconds of one operation: all are captured into a graph, which is replayed."""
        torch = self.torch
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for operation in operations:
                operation()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for operation in operations:
                operation()
        graph.replay()
        times = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / len(operations))
        return times

    def random(self, *shape: int) -> Any:
        """Random bf16 on the device."""
        return self.torch.randn(shape, device="cuda", dtype=self.torch.bfloat16)

    @staticmethod
    def copies(weight_bytes: float) -> int:
        """Copies of so many bytes that no cache holds them."""
        return min(64, max(4, int(160e6 // weight_bytes)))

    def matmul(self, rows: int, cols: int, tokens: int, rounds: int) -> list[float]:
        """cuBLAS bf16."""
        x = self.random(tokens, cols)
        weights = [self.random(rows, cols) for _ in range(self.copies(rows * cols * 2))]
        return self.seconds([lambda w=w: x @ w.T for w in weights], rounds)

    def int4(self, rows: int, cols: int, tokens: int, rounds: int) -> list[float]:
        """PyTorch's int4 product, groups of 64."""
        torch = self.torch
        x = self.random(tokens, cols)
        weights = []
        for _ in range(self.copies(rows * cols / 2)):
            codes = torch.randint(0, 256, (rows, cols // 2), device="cuda", dtype=torch.uint8)
            packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
            weights.append((packed, self.random(cols // 64, rows, 2)))
        product = torch.ops.aten._weight_int4pack_mm
        return self.seconds([lambda w=w: product(x, w[0], 64, w[1]) for w in weights], rounds)

    def attend(
        self, shapes: Shapes, sequences: int, context: int, rows: int, rounds: int
    ) -> list[float]:
        """Scaled dot product attention, causal where there are as many rows as keys."""
        functional = self.torch.nn.functional
        q = self.random(sequences, shapes.heads, rows, shapes.head_dim)
        k, v = (self.random(sequences, shapes.kv_heads, context, shapes.head_dim) for _ in range(2))
        causal = rows == context

        def operation() -> Any:
            return functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, enable_gqa=True
            )

        return self.seconds([operation] * 4, rounds)


def peer_rows(shapes: Shapes, peers: Peers, rounds: int, ceilings: Ceilings) -> Iterator[Row]:
    """The kernels' work in PyTorch."""
    hidden, inner = shapes.hidden, shapes.inner
    for tokens in shapes.tokens:
        for name, rows, cols in (("gate, up", 2 * inner, hidden), ("down", hidden, inner)):
            for kind, bits, work in (("bf16", 16, peers.matmul), ("int4", 4.5, peers.int4)):
                size = rows * cols * bits / 8 + tokens * (cols + rows) * 2
                yield attempt(
                    ceilings,
                    f"torch {name} {kind}, {tokens} tokens",
                    lambda work=work, r=rows, c=cols, t=tokens: work(r, c, t, rounds),
                    size,
                    2 * rows * cols * tokens,
                )
    per_key = shapes.kv_heads * shapes.head_dim * 4
    for context in shapes.contexts:
        for sequences in shapes.sequences:
            if sequences * context * per_key > shapes.most_cache:
                continue
            yield attempt(
                ceilings,
                f"torch attention, {sequences} x {context}",
                lambda s=sequences, c=context: peers.attend(shapes, s, c, 1, rounds),
                sequences * context * per_key,
                4 * shapes.head_dim * shapes.heads * sequences * context,
            )
    for rows, context in shapes.prefills:
        if rows == context:
            yield attempt(
                ceilings,
                f"torch attention, last {rows} of {context}",
                lambda r=rows, c=context: peers.attend(shapes, 1, c, r, rounds),
                context * per_key,
                2 * shapes.head_dim * shapes.heads * rows * (rows + 1),
            )


def attempt(
    ceilings: Ceilings,
    name: str,
    work: Callable[[], list[float]],
    size: float,
    operations: float,
) -> Row:
    """A row of a peer, or why there is none: its operations come and go with its versions."""
    try:
        seconds = work()
    except (RuntimeError, AttributeError, TypeError) as error:
        return {"name": name, "failed": str(error).splitlines()[0]}
    return ceilings.row(name, {"seconds": seconds, "bytes": size, "operations": operations})


def model(
    shapes: Shapes,
    device: str,
    work: Path,
    depths: Sequence[int],
    kv: str,
    rounds: int,
    ceilings: Ceilings,
) -> Iterator[Row]:
    """Prompts and decoding through the engine."""
    found: dict[str, dict[int, float]] = {}
    for depth in depths:
        shape = "tiny" if shapes.tiny else f"scout-layers={depth}"
        path = work / shape
        if not path.exists():
            print(f"making {path}", flush=True)
            synth(str(path), shape=shape, weights="int4/g128")
        context = max(shapes.prompts) * max(shapes.batches) + 4096
        engine = Llama4rs(
            path,
            1,
            context,
            time.perf_counter,
            device=device,
            nvrtc_folders=nvrtc_folders(),
            kv_cache=kv,
            prefix_cache_bytes=0,
        )
        rng = np.random.default_rng(1)
        vocab = engine.config["vocab_size"]

        def prompts(count: int, length: int) -> list[list[int]]:
            drawn: list[list[int]] = rng.integers(0, vocab, (count, length)).tolist()  # noqa: B023
            return drawn

        engine.prefill(prompts(1, shapes.prompts[0])[0])
        for length in shapes.prompts:
            seconds = [engine.prefill(prompts(1, length)[0]) for _ in range(rounds)]
            needed = length * operations_per_token(engine.config) / ceilings.operations
            name = f"prompt of {length}, {depth} layers"
            found.setdefault(f"prompt of {length}", {})[depth] = statistics.median(seconds)
            yield model_row(name, seconds, length, needed)
        for batch in shapes.batches:
            length = shapes.prompts[0]
            seconds = [
                engine.decode_batch(prompts(batch, length), shapes.steps) / shapes.steps
                for _ in range(rounds)
            ]
            needed = engine.bytes_per_step(batch, length) / ceilings.bandwidth
            name = f"decoding {batch} x {length}, {depth} layers"
            key = f"decoding {batch} x {length}"
            found.setdefault(key, {})[depth] = statistics.median(seconds)
            yield model_row(name, seconds, batch, needed)
    for name, times in found.items():
        if len(times) > 1:
            low, high = min(times), max(times)
            layer = (times[high] - times[low]) / (high - low)
            whole = times[high] + layer * (LAYERS - high)
            yield {
                "name": f"{name}, drawn on to {LAYERS} layers",
                "seconds": {"median": whole},
                "seconds_per_layer": layer,
            }


def model_row(name: str, seconds: list[float], tokens: int, needed: float) -> Row:
    """One line: how fast, and the share of what the ceilings allow."""
    median = statistics.median(seconds)
    return {
        "name": name,
        "seconds": spread(seconds),
        "tokens_per_second": tokens / median,
        "share": needed / median,
    }


def show(row: Row) -> None:
    """One line of the table."""
    text = f"{row['name']:44}"
    if "ok" in row:
        more = {key: value for key, value in row.items() if key not in ("name", "ok")}
        text += f" {'ok' if row['ok'] else 'WRONG'} {more or ''}"
    elif "failed" in row:
        text += f" not measured: {row['failed']}"
    else:
        text += f" {row['seconds']['median'] * 1e6:11.1f} us"
        if "min" in row["seconds"]:
            low, high = row["seconds"]["min"] * 1e6, row["seconds"]["max"] * 1e6
            text += f" ({low:.1f} to {high:.1f})"
        if "bytes_per_second" in row:
            text += f" {row['bytes_per_second'] / 1e9:8.0f} GB/s"
            text += f" {row['operations_per_second'] / 1e12:7.1f} TFLOP/s"
        if "tokens_per_second" in row:
            text += f" {row['tokens_per_second']:9.1f} tokens/s"
        if "share" in row:
            text += f" {row['share']:6.1%} of the limit"
    print(text, flush=True)


def main() -> None:
    """Runs the parts and prints a table; fails if a check does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--layers", default="4,8", help="depths of the models")
    parser.add_argument("--kv", default="bf16", help="elements of keys and values in the models")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--work", type=Path, help="where models are made, and kept")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--note", default="", help="kept with the figures")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts takes some of {', '.join(PARTS)}")
    shapes, rounds = Shapes(arguments.tiny), arguments.rounds
    depths = [4] if arguments.tiny else [int(depth) for depth in arguments.layers.split(",")]
    device = f"cuda:{arguments.device}"
    probe = GpuProbe(arguments.device, nvrtc_folders())
    try:
        peers: Peers | None = Peers(arguments.device)
    except ImportError as error:
        print(f"no peers: {error}")
        peers = None

    results: list[Row] = []
    report = {
        "date": date.today().isoformat(),
        "gpu": probe.name,
        "devices": cuda_devices(),
        "system": platform.system(),
        "tiny": arguments.tiny,
        "note": arguments.note,
        "versions": {"llama4rs": llama4rs.__version__, "torch": peers.version if peers else None},
        "results": results,
    }

    def collect(rows: Iterator[Row]) -> None:
        for row in rows:
            show(row)
            results.append(row)
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=1, default=str) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if "check" in parts:
            collect(check(shapes, probe, device, work))
        if set(parts) - {"check"}:
            ceilings = Ceilings(shapes, probe, peers, rounds)
            report["ceilings"] = vars(ceilings)
            print(
                f"{probe.name}: copies {ceilings.bandwidth / 1e9:.0f} GB/s, "
                f"multiplies {ceilings.operations / 1e12:.0f} TFLOP/s ({ceilings.source})"
            )
        if "kernels" in parts:
            collect(kernels(shapes, probe, rounds, ceilings))
        if "peers" in parts and peers:
            collect(peer_rows(shapes, peers, rounds, ceilings))
        if "model" in parts:
            few = min(rounds, 5)
            collect(model(shapes, device, work, depths, arguments.kv, few, ceilings))
    wrong = [row["name"] for row in results if row.get("ok") is False]
    if wrong:
        raise SystemExit(f"WRONG: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
