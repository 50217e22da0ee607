"""The parts of gpu.py, each in a process of its own: `python gpu_parts.py PART OPTIONS`.

Rows are JSON, one a line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end import operations_per_token, spread
from gpu_shapes import Shapes, scout_text_config

from llama4rs._llama4rs import Engine, GpuProbe, Request, plan_tensors, synth
from llama4rs.device import nvrtc_folders

Row = dict[str, Any]

WEIGHTS = "int4/g128"
# Room beside weights, keys and values: activations, logits, what the driver takes.
SPARE_BYTES = 3 << 30

# Shares of the limit that are wanted.
SINGLE_GOAL = 0.78
BATCH_GOAL = 0.75
DEPTH_GOAL = 0.80
PRODUCT_GOAL = 0.85
PREFILL_GOAL = 0.45


class Part:
    """What the parts have in common."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.shapes = Shapes(options["tiny"])
        self.ordinal, self.rounds = options["device"], options["rounds"]
        self.work = Path(options["work"])
        self.deadline = time.monotonic() + options["seconds"]
        ceilings = options["ceilings"]
        self.bandwidth, self.operations = ceilings["bandwidth"], ceilings["operations"]
        self.note = "limits assumed" if ceilings.get("assumed") else None
        self.gpu = {"device": f"cuda:{self.ordinal}", "nvrtc_folders": nvrtc_folders()}

    def probe(self) -> GpuProbe:
        """The device."""
        return GpuProbe(self.ordinal, nvrtc_folders())

    def probe_by_mma(self) -> GpuProbe:
        """The device, the products of prompts by ``mma`` also where ``wgmma`` would be used."""
        before = os.environ.get("LLAMA4RS_CUDA_WGMMA", "")
        os.environ["LLAMA4RS_CUDA_WGMMA"] = "0"
        try:
            return self.probe()
        finally:
            os.environ["LLAMA4RS_CUDA_WGMMA"] = before

    def work_row(self, name: str, measured: dict[str, Any], **more: Any) -> Row:
        """Bytes or operations per second beside what the ceilings allow, whichever limits."""
        seconds = measured["seconds"]
        median = statistics.median(seconds)
        times = (measured["bytes"] / self.bandwidth, measured["operations"] / self.operations)
        if times[0] >= times[1]:
            value, unit, limit = measured["bytes"] / median / 1e9, "GB/s", self.bandwidth / 1e9
        else:
            value = measured["operations"] / median / 1e12
            unit, limit = "TFLOP/s", self.operations / 1e12
        return self.row(name, value, unit, limit, seconds=spread(seconds), **more)

    def row(self, name: str, value: float, unit: str, limit: float | None, **more: Any) -> Row:
        """A row; without a limit it has no share."""
        row = {"name": name, "value": value, "unit": unit, **more}
        if limit:
            row |= {"limit": limit, "share": limit / value if unit == "s" else value / limit}
        return row | ({"note": self.note} if self.note and "note" not in more else {})


def attempts(*works: tuple[str, Callable[[], Row]]) -> Iterator[Row]:
    """A row of each, or why there is none."""
    for name, work in works:
        try:
            yield work()
        except Exception as error:  # a part goes on whatever one row meets
            yield {"name": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}


def check(part: Part) -> Iterator[Row]:
    """Whether the GPU is right."""
    shapes, probe = part.shapes, part.probe()
    free, total = probe.memory()
    yield {
        "name": f"device, products of prompts: {probe.prompt_products}",
        "ok": True,
        "device": probe.name,
        "free": free,
        "total": total,
    }
    # Enough tiles for the kernels of prompts.
    rows, cols = (40, 520) if shapes.tiny else (12000, 5120)
    for weights in ("int4/g32", "int4/g64", "int4/g128", "int8/g64", "bf16"):
        for tokens in (8, 16, 33, 70) if shapes.tiny else (8, 16, 70, 300):
            found = probe.differing_products(weights, rows, cols, tokens)
            name = f"same bits: {weights}, {tokens} rows"
            yield {"name": name, "ok": found == 0, "differing": found}

    ids = np.random.default_rng(5).integers(0, 31000, 40 if shapes.tiny else 700).tolist()
    exact = {"kv_cache": "bf16", "arithmetic": "exact"}
    path = "synth:tiny"
    expected = Engine(path, device="cpu", **exact).logits(ids)
    for arithmetic, tolerance in (("exact", 1e-3), ("fast", 2e-2)):
        engine = Engine(path, **part.gpu, kv_cache="bf16", arithmetic=arithmetic)
        # The median row: where a router hesitates, rounding sends a token to another expert.
        errors = np.linalg.norm(engine.logits(ids) - expected, axis=1)
        error = float(np.median(errors / np.linalg.norm(expected, axis=1)))
        name = f"logits beside the CPU, {arithmetic}"
        yield {"name": name, "ok": error < tolerance, "relative_error": error}
        if arithmetic == "fast":
            cuts = Engine(path, **part.gpu, kv_cache="bf16", step_tokens=7)
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


def ceilings(part: Part) -> Iterator[Row]:
    """What this card reaches; limits are of it."""
    shapes, probe, n = part.shapes, part.probe(), part.shapes.square
    part.note = None

    def copy() -> Row:
        measured = probe.copy(shapes.copy_bytes, rounds=part.rounds)
        rate = measured["bytes"] / statistics.median(measured["seconds"])
        return part.row("copy", rate / 1e9, "GB/s", None, device=probe.name)

    def multiply() -> Row:
        try:
            from gpu_torch import Torch

            torch = Torch(part.ordinal, shapes.tiny)
            seconds, source = torch.matmul(n, n, n, part.rounds), torch.name
        except ImportError:
            seconds = probe.matmul("bf16", [n], n, n, rounds=part.rounds)["seconds"]
            source = "own product"
        rate = 2 * n**3 / statistics.median(seconds)
        return part.row("bf16 product", rate / 1e12, "TFLOP/s", None, source=source)

    yield from attempts(("copy", copy), ("bf16 product", multiply))


def kernels(part: Part) -> Iterator[Row]:
    """Operations of Scout, one at a time."""
    shapes, probe, rounds = part.shapes, part.probe(), part.rounds
    hidden, inner = shapes.hidden, shapes.inner
    products = {
        "gate, up": ([inner, inner], hidden),
        "down": ([hidden], inner),
        "qkv": (shapes.qkv, hidden),
        "o": ([hidden], shapes.heads * shapes.head_dim),
    }
    works: list[tuple[str, Callable[[], Row]]] = []

    def add(name: str, measure: Callable[[], dict[str, Any]], goal: float | None = None) -> None:
        more = {"goal": goal} if goal else {}
        works.append((name, lambda: part.work_row(name, measure(), **more)))

    if probe.prompt_products.startswith("wgmma"):
        by_mma, tokens = part.probe_by_mma(), shapes.tokens[-1]
        for name, (rows, cols) in products.items():
            add(
                f"{name} {WEIGHTS}, {tokens} tokens, by mma",
                lambda r=rows, c=cols: by_mma.matmul(WEIGHTS, r, c, tokens, rounds=rounds),
            )
    for tokens in shapes.tokens:
        for name, (rows, cols) in products.items():
            add(
                f"{name} {WEIGHTS}, {tokens} tokens",
                lambda r=rows, c=cols, t=tokens: probe.matmul(WEIGHTS, r, c, t, rounds=rounds),
                PRODUCT_GOAL if tokens == 1 and name in ("gate, up", "down") else None,
            )
        sizes = (shapes.experts, tokens, hidden, inner)
        add(
            f"routed experts {WEIGHTS}, {tokens} tokens",
            lambda s=sizes: probe.experts(WEIGHTS, *s, rounds=rounds),
        )
    for tokens in shapes.tokens[:2]:
        add(
            f"lm_head int8/g128, {tokens} tokens",
            lambda t=tokens: probe.matmul("int8/g128", [shapes.vocab], hidden, t, rounds=rounds),
        )
    heads = (shapes.heads, shapes.kv_heads, shapes.head_dim)
    per_token = shapes.kv_heads * shapes.head_dim * 4
    for kv in ("bf16", "int8"):
        for context in shapes.contexts:
            for sequences in shapes.sequences:
                if sequences * context * per_token <= shapes.most_cache:
                    add(
                        f"attention {kv}, {sequences} x {context}",
                        lambda kv=kv, s=sequences, c=context: probe.attend(
                            kv, *heads, s, c, 1, rounds=rounds
                        ),
                    )
        for rows, context in shapes.prefills:
            add(
                f"attention {kv}, last {rows} of {context}",
                lambda kv=kv, r=rows, c=context: probe.attend(kv, *heads, 1, c, r, rounds=5),
            )
    for rows in shapes.sequences:
        add(f"add and norm, {rows} rows", lambda r=rows: probe.add_norm(r, hidden, rounds=rounds))
        for draw in (False, True):
            kind = "draw from the nucleus" if draw else "largest logit"
            add(
                f"{kind}, {rows} rows",
                lambda r=rows, d=draw: probe.sample(r, shapes.vocab, d, rounds=rounds),
            )
    yield from attempts(*works)


def peers(part: Part) -> Iterator[Row]:
    """The kernels' work in PyTorch."""
    from gpu_torch import Torch

    shapes, rounds = part.shapes, part.rounds
    torch = Torch(part.ordinal, shapes.tiny)
    hidden, inner = shapes.hidden, shapes.inner
    works: list[tuple[str, Callable[[], Row]]] = []

    def add(name: str, seconds: Callable[[], list[float]], size: float, operations: float) -> None:
        name = f"{torch.name}: {name}"
        made = {"bytes": size, "operations": operations}
        works.append((name, lambda: part.work_row(name, {"seconds": seconds(), **made})))

    yield {"name": f"{torch.name}: int4 product", **torch.check_int4(64, 512)}
    for tokens in shapes.tokens:
        for name, rows, cols in (("gate, up", 2 * inner, hidden), ("down", hidden, inner)):
            for kind, bits, work in (("bf16", 16, torch.matmul), ("int4/g128", 4.25, torch.int4)):
                add(
                    f"{name} {kind}, {tokens} tokens",
                    lambda work=work, r=rows, c=cols, t=tokens: work(r, c, t, rounds),
                    rows * cols * bits / 8 + tokens * (cols + rows) * 2,
                    2 * rows * cols * tokens,
                )
    heads = (shapes.heads, shapes.kv_heads, shapes.head_dim)
    per_key = shapes.kv_heads * shapes.head_dim * 4
    for context in shapes.contexts:
        for sequences in shapes.sequences:
            if sequences * context * per_key <= shapes.most_cache:
                add(
                    f"attention, {sequences} x {context}",
                    lambda s=sequences, c=context: torch.attend(heads, s, c, 1, rounds),
                    sequences * context * per_key,
                    4 * shapes.head_dim * shapes.heads * sequences * context,
                )
    for rows, context in shapes.prefills:
        rows = context if rows == context else rows
        add(
            f"attention, last {rows} of {context}",
            lambda r=rows, c=context: torch.attend(heads, 1, c, r, 5),
            context * per_key,
            2 * shapes.head_dim * shapes.heads * rows * (2 * context - rows + 1),
        )
    yield from attempts(*works)


class Model:
    """A model with random weights in the engine, and what its steps need."""

    def __init__(self, part: Part, path: str, kv: str) -> None:
        self.part = part
        started = time.perf_counter()
        self.engine = Engine(
            path,
            **part.gpu,
            weights=None if Path(path).exists() else WEIGHTS,
            kv_cache=kv,
            step_tokens=part.shapes.prompt,
            prefix_cache_bytes=0,
        )
        self.seconds_to_open = time.perf_counter() - started
        # Pages stay with the engine when their sequence ends: the next one takes them.
        self.free = self.engine.device_free_bytes or 0
        self.config: dict[str, Any] = json.loads(self.engine.config_json)
        summary = self.engine.summary()
        self.tensors = summary["tensors"]
        self.weight_bytes = summary["weight_bytes"]
        self.global_bytes = summary["kv_bytes_per_token_beyond_chunk"]
        self.chunked_bytes = summary["kv_bytes_per_token"] - self.global_bytes
        self.rng = np.random.default_rng(1)

    def prompt(self, length: int) -> list[int]:
        """Random tokens."""
        drawn: list[int] = self.rng.integers(0, self.config["vocab_size"], length).tolist()
        return drawn

    def cache_bytes(self, depth: int) -> int:
        """Keys and values of one sequence, in whole pages and chunks."""
        chunk = min(depth, self.config["attention_chunk_size"])
        bytes_needed: int = (depth + 64) * self.global_bytes + (chunk + 64) * self.chunked_bytes
        return bytes_needed

    def step_bytes(self, sequences: int, depth: int) -> float:
        """What one step of decoding must read."""
        from engines import expected_share

        share = expected_share(self.config, sequences)
        weights = sum(
            tensor["bytes"] * (share if ".experts." in tensor["name"] else 1)
            for tensor in self.tensors
            if tensor["name"] != "embed_tokens"
        )
        in_chunk = depth % self.config["attention_chunk_size"]
        seen = depth * self.global_bytes + in_chunk * self.chunked_bytes
        return float(weights + sequences * seen)

    def room_for(self, depth: int) -> int:
        """How many sequences of this depth fit beside the weights."""
        spare = 1 << 20 if self.part.shapes.tiny else SPARE_BYTES
        return max(0, self.free - spare) // self.cache_bytes(depth)

    def begin(self, sequences: int, depth: int, tokens: int) -> list[Request]:
        """Requests that make `tokens` tokens up to this depth and have made their first one."""
        length = (depth - tokens) // 64 * 64 + 1
        requests = [
            self.engine.submit(self.prompt(length), max_tokens=tokens, filled_to=length - 1)
            for _ in range(sequences)
        ]
        for request in requests:
            while (event := request.next()) is not None and event.token_id is None:
                pass
        return requests

    def decode(self, sequences: int, depth: int) -> Row:
        """Tokens per second of all sequences together, their texts filled and not computed."""
        part, steps = self.part, self.part.shapes.steps
        name = f"decode {sequences} x {depth}, kv {self.engine.summary()['kv_cache']}"
        room = self.room_for(depth)
        if room < sequences:
            needed = sequences * self.cache_bytes(depth) / 1e9
            missing = f"needs {needed:.1f} GB, {self.free / 1e9:.1f} GB are free"
            return {"name": name, "failed": missing}
        # The last sequence begins some steps after the first.
        requests = self.begin(sequences, depth, steps + 2 * sequences + 8)
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            for request in requests:
                request.next()
            seconds.append(time.perf_counter() - started)
        for request in requests:
            request.cancel()
        rate = sequences / statistics.median(seconds)
        limit = sequences * part.bandwidth / self.step_bytes(sequences, depth - steps // 2)
        goal = DEPTH_GOAL if depth > part.shapes.depth else SINGLE_GOAL
        goal = BATCH_GOAL if sequences > 1 else goal
        return part.row(name, rate, "tokens/s", limit, goal=goal, seconds=spread(seconds))

    def prefill(self, length: int, rounds: int) -> Row:
        """Tokens per second of one prompt up to its first new token."""
        part = self.part
        seconds = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            tokens_of(self.engine, [self.prompt(length)], 1)
            seconds.append(time.perf_counter() - started)
        seconds = seconds[1:]
        width = self.config["num_attention_heads"] * self.config["head_dim"]
        # Half of the keys on average; a chunk holds all of such a prompt.
        attention = 4 * width * length / 2 * self.config["num_hidden_layers"]
        per_token = operations_per_token(self.config) + attention
        rate = length / statistics.median(seconds)
        limit = part.operations / per_token
        name = f"prompt of {length}, {self.config['num_hidden_layers']} layers"
        return part.row(name, rate, "tokens/s", limit, goal=PREFILL_GOAL, seconds=spread(seconds))


def open_model(part: Part, kv: str) -> Model:
    """The whole model, if it fits."""
    config = json.dumps(scout_text_config(48, part.shapes.vocab))
    weights = sum(tensor["bytes"] for tensor in plan_tensors(config, WEIGHTS))
    free, total = part.probe().memory()
    if weights + SPARE_BYTES > free and not part.shapes.tiny:
        needs = f"{weights / 1e9:.1f} GB of weights, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        raise MemoryError(needs)
    return Model(part, f"synth:{part.shapes.model}", kv)


def decode(part: Part, kv: str = "bf16") -> Iterator[Row]:
    """Scout as a whole."""
    shapes = part.shapes
    model = open_model(part, kv)
    rate = model.weight_bytes / model.seconds_to_open / 1e9
    yield part.row("making and bringing the weights", rate, "GB/s", None, note="no disk")
    few = 1 if shapes.tiny else 3
    works: list[tuple[str, Callable[[], Row]]] = [
        ("decode 1", lambda: model.decode(1, shapes.depth)),
        ("prefill", lambda: model.prefill(shapes.prompt - 8, few)),
        ("decode 8", lambda: model.decode(8 if not shapes.tiny else 2, shapes.depth)),
    ]
    for depth in shapes.depths:
        works.append((f"decode 1 x {depth}", lambda d=depth: model.decode(1, d)))
        fitting = depth
        while fitting > shapes.depth and not model.room_for(fitting):
            fitting //= 2
        if fitting not in (depth, *shapes.depths):
            works.append((f"decode 1 x {fitting}", lambda d=fitting: model.decode(1, d)))
    yield from attempts(*works)


def decode_int8(part: Part) -> Iterator[Row]:
    """The same with half of the keys' and values' bytes in global layers."""
    yield from decode(part, "int8")


def batch(part: Part) -> Iterator[Row]:
    """As many sequences as fit."""
    shapes = part.shapes
    model = open_model(part, "int8")
    wanted, fitting = shapes.most_batch, model.room_for(shapes.depth)
    yield from attempts(("batch", lambda: model.decode(wanted, shapes.depth)))
    if 0 < fitting < wanted:
        most = fitting // 4 * 4 or fitting
        yield from attempts(("batch that fits", lambda: model.decode(most, shapes.depth)))


def packed(part: Part) -> Path:
    """A packed model on disk, in the page cache."""
    path = part.work / part.shapes.packed
    if not path.exists():
        synth(str(path), shape=part.shapes.packed, weights=WEIGHTS)
    return path


def load(part: Part) -> Iterator[Row]:
    """Opening a packed model, and the first token of a process."""
    path, tiny = packed(part), part.work / "small"
    if not tiny.exists():
        synth(str(tiny), shape="tiny", weights=WEIGHTS)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))

    def start(model: Path) -> dict[str, float]:
        command = [
            sys.executable,
            __file__,
            "first-token",
            json.dumps({"path": str(model)} | part.gpu),
        ]
        started = time.time()
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        times: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
        return {"total": times["first_token"] - started, "open": times["open"]}

    few = 1 if part.shapes.tiny else 3
    for model in (tiny, path):
        start(model)  # compiles kernels, fills the page cache
    small, large = [start(tiny) for _ in range(few)], [start(path) for _ in range(few)]
    opened = statistics.median(run["open"] for run in large)
    nothing = statistics.median(run["open"] for run in small)
    yield part.row(
        f"opening {size / 1e9:.1f} GB from the page cache", size / opened / 1e9, "GB/s", None
    )
    upload = max(opened - nothing, 1e-9)
    upload_rate = size / upload / 1e9
    yield part.row("of that, beyond a tiny model", upload_rate, "GB/s", None, note="goal 10")
    total = statistics.median(run["total"] for run in large)
    yield part.row("first token of a new process", total, "s", None)
    beyond = statistics.median(run["total"] - run["open"] for run in large) + nothing
    yield part.row("of that, beyond bringing the weights", beyond, "s", None, note="goal 1.5")
    alone = statistics.median(run["total"] for run in small)
    yield part.row("first token of a new process, tiny model", alone, "s", None)


def first_token(options: dict[str, Any]) -> None:
    """Opens a model and makes one token; times on stdout."""
    path = options.pop("path")
    started = time.perf_counter()
    engine = Engine(path, **options)
    opened = time.perf_counter() - started
    tokens_of(engine, [list(range(1, 17))], 1)
    print(json.dumps({"open": opened, "first_token": time.time()}))


def transformers(part: Part) -> Iterator[Row]:
    """A prompt in transformers, and here with as many layers."""
    from gpu_torch import Torch

    shapes, torch = part.shapes, Torch(part.ordinal, part.shapes.tiny)
    layers, length = (1, 40) if shapes.tiny else (4, 8184)
    few = 1 if shapes.tiny else 3

    def ours() -> Row:
        return Model(part, str(packed(part)), "bf16").prefill(length, few)

    def theirs() -> Row:
        seconds = torch.prefill(layers, length, few, shapes.tiny)
        rate = length / statistics.median(seconds)
        name = f"{torch.name}, transformers: prompt of {length}, {layers} layers, bf16"
        return part.row(name, rate, "tokens/s", None, seconds=spread(seconds))

    yield from attempts(("prompt in transformers", theirs), ("prompt here", ours))


def profile(part: Part) -> Iterator[Row]:
    """Where the time of a step goes, kernel by kernel, as PyTorch's profiler sees it."""
    from gpu_torch import kernel_seconds

    shapes = part.shapes
    model, steps = Model(part, f"synth:{shapes.packed}", "bf16"), shapes.steps
    for sequences in shapes.sequences[:2]:
        requests = model.begin(sequences, shapes.depth, 2 * steps + 2 * sequences + 8)

        def decode(requests: list[Request] = requests) -> None:
            for request in requests * steps:
                request.next()

        decode()  # graphs are made
        started = time.perf_counter()
        found = kernel_seconds(decode)
        step = (time.perf_counter() - started) / steps
        for request in requests:
            request.cancel()
        name = f"profile: {sequences} x {shapes.depth}"
        if not found:
            yield {"name": name, "failed": "PyTorch's profiler saw no kernels"}
            continue
        for kernel, seconds in sorted(found.items(), key=lambda item: -sum(item[1])):
            note = f"{len(seconds) / steps:.1f} launches"
            time_of = sum(seconds) / steps * 1e6
            yield part.row(f"{name}, {kernel}", time_of, "us/step", None, note=note)
        note = f"{sum(map(sum, found.values())) / steps * 1e6:.4g} us in kernels"
        yield part.row(f"{name}, a step", step * 1e6, "us/step", None, note=note)


def counts(part: Part) -> Iterator[Row]:
    """What kernels ask of memory."""
    os.environ["LLAMA4RS_SIM_FOOTPRINT"] = "1"
    from gpu_counts import rows

    yield from rows(part.probe())


WORK: dict[str, Callable[[Part], Iterator[Row]]] = {
    "check": check,
    "ceilings": ceilings,
    "decode": decode,
    "kernels": kernels,
    "peers": peers,
    "decode-int8": decode_int8,
    "batch": batch,
    "load": load,
    "transformers": transformers,
    "profile": profile,
    "counts": counts,
}


def main(name: str, options: dict[str, Any]) -> None:
    """Runs a part until its time is over."""
    if name == "first-token":
        first_token(options)
        return
    part, cut = Part(options), False
    rows = WORK[name](part)
    try:
        for row in rows:
            print(json.dumps(row, default=str), flush=True)
            if time.monotonic() > part.deadline:
                cut = True
                left = {"name": f"the rest of {name}", "failed": "the part's time was over"}
                print(json.dumps(left), flush=True)
                break
    except (ImportError, MemoryError) as error:
        print(json.dumps({"name": name, "failed": str(error)}), flush=True)
    print(json.dumps({"end": True, "cut": cut}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
