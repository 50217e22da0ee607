"""Runs full contexts side by side and prints by how many bytes the process grew.

    python tests/rss_of_a_run.py MODEL KV_CACHE CONTEXT BATCH THREADS

The answer, one line of JSON, is beside what `llama4rs.plan` says; `tests/test_plan.py` compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import llama4rs
from llama4rs._llama4rs import Engine


def resident_bytes() -> int:
    """Memory of this process, files that it mapped included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Opens the model, fills the contexts, compares."""
    model, kv_cache = sys.argv[1:3]
    context, batch, threads = map(int, sys.argv[3:6])
    before = resident_bytes()
    options = {"kv_cache": kv_cache, "threads": threads, "prefix_cache_bytes": 0}
    engine = Engine(model, max_context=context, **options)
    vocabulary = llama4rs.inspect(model)["config"]["vocab_size"]
    random = np.random.default_rng(0)
    # Long enough that the first sequence still decodes when the last prompt is read.
    new = context // 512 * batch + 16
    prompts = random.integers(0, vocabulary, (batch, context - new)).tolist()
    running = [engine.submit(prompt, max_tokens=new) for prompt in prompts]
    kv_bytes = grown = 0
    while running:
        for request in running:
            request.next()
            kv_bytes = max(kv_bytes, engine.kv_bytes_in_use() or 0)
        grown = max(grown, resident_bytes() - before)
        running = [request for request in running if request.finish_reason is None]
    plan = llama4rs.plan(model, context=context, batch=batch, probe=False, **options)
    planned = {"planned": plan.total_bytes, "planned_kv": plan.kv_bytes}
    print(json.dumps({"grown": grown, "kv": kv_bytes, **planned}))


if __name__ == "__main__":
    main()
