"""Runs full contexts side by side and prints by how many bytes the process grew.

    python tests/rss_of_a_run.py MODEL [--kv bf16,int8] [--contexts 512,8192] [--batches 1,4]
                                 [--kv-read none,map,copy] [--step-tokens 512] [--threads 2]
                                 [--dir DIR] [--json]

Each row is a process of its own: what `llama4rs.plan` says, and what the process took at most
(VmRSS, so mapped weights and mapped pages of keys and values as far as they were touched). The
program itself is left out, and the vision part, which reads nothing here.
`tests/test_plan.py` compares. MODEL is a directory, or ``cria`` for the demo model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import llama4rs
from llama4rs._llama4rs import Engine
from llama4rs.planning.sources import model_sizes


def resident_bytes() -> int:
    """Memory of this process, files that it mapped included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def measure(case: dict[str, Any]) -> dict[str, int]:
    """Opens the model, fills the contexts, compares."""
    model, context, batch = case["model"], case["context"], case["batch"]
    with tempfile.TemporaryDirectory(dir=case["dir"]) as kv_dir:
        options = {key: case[key] for key in ("kv_cache", "threads", "step_tokens")}
        options |= {"prefix_cache_bytes": 0}
        files = {} if case["kv_read"] == "none" else {"kv_dir": kv_dir, "kv_read": case["kv_read"]}
        random = np.random.default_rng(0)
        # Long enough that the first sequence still decodes when the last prompt is read.
        new = min(context // 2, context // case["step_tokens"] * batch + 16)
        shape = model_sizes(model).shape
        prompts = random.integers(0, shape.vocab_size, (batch, context - new)).tolist()
        llama4rs.Llama4(threads=1).generate("Once", max_tokens=1)  # brings in the program itself
        before = resident_bytes()
        engine = Engine(model, max_context=context, **options, **files)
        running = [engine.submit(prompt, max_tokens=new) for prompt in prompts]
        kv_bytes = grown = 0
        while running:
            for request in running:
                request.next()
                kv_bytes = max(kv_bytes, engine.kv_bytes_in_use() or 0)
            grown = max(grown, resident_bytes() - before)
            running = [request for request in running if request.finish_reason is None]
        plan = llama4rs.plan(model, context=context, batch=batch, probe=False, **options)
    return {
        "planned": plan.total_bytes - sum(p.bytes for p in plan.components if p.name == "vision"),
        "grown": grown,
        "weights": plan.weight_bytes,
        "planned_kv": plan.kv_bytes,
        "kv": kv_bytes,
    }


def demo_model() -> str:
    """The directory of the model in the package."""
    return str(llama4rs.Llama4().path)


def main() -> None:
    """Measures every combination."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--kv", default="bf16")
    parser.add_argument("--contexts", default="8192")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--kv-read", default="none")
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dir", help="where files of keys and values go; the system's choice")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(json.loads(args.case))))
        return
    numbers = [map(int, option.split(",")) for option in (args.contexts, args.batches)]
    cases = itertools.product(*numbers, args.kv.split(","), args.kv_read.split(","))
    for context, batch, kv_cache, kv_read in cases:
        case = {"context": context, "batch": batch, "kv_cache": kv_cache, "kv_read": kv_read}
        model = demo_model() if args.model == "cria" else args.model
        shared = {key: getattr(args, key) for key in ("step_tokens", "threads", "dir")}
        command = [sys.executable, __file__, "--case", json.dumps(case | shared | {"model": model})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout)
        if args.json:
            print(json.dumps(case | found), flush=True)
            continue
        sizes = " | ".join(f"{found[key] / 1e6:.1f}" for key in ("planned", "grown"))
        error = found["planned"] / found["grown"] - 1
        print(
            f"| {context} x {batch} | {kv_cache} | {kv_read} | {sizes} | {error:+.1%} |", flush=True
        )


if __name__ == "__main__":
    main()
