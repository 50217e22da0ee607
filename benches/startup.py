"""Start and memory of an engine in a process of its own.

    python benches/startup.py llama4rs|llama.cpp MODEL CONFIG_DIRECTORY THREADS

prints JSON. `measure` starts such processes and adds what only their parent can see.

Seconds to the first token run from the start of the process, interpreter and imports included, to
the first token of a prompt of 16; those of another prompt of 16, read right after, are taken off:
what is left is the price of starting. The model lies in the page cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = 16
STEPS = 32
CONTEXT = 2048
IDLE_SECONDS = 0.5


def memory() -> dict[str, int]:
    """Bytes of this process: at most, now of its own, now of files."""
    names = {"VmHWM": "peak_bytes", "RssAnon": "own_bytes", "RssFile": "file_bytes"}
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines)
    return {names[name[:-1]]: int(rest[0]) * 1024 for name, *rest in fields if name[:-1] in names}


def child(kind: str, path: Path, config: Path, threads: int) -> dict[str, Any]:
    """Starts the engine and makes some tokens."""
    from engines import Llama4rs, LlamaCpp, Measured

    engine: Measured
    if kind == "llama4rs":
        engine = Llama4rs(path, threads, CONTEXT, time.perf_counter)
    else:
        shape = json.loads((config / "config.json").read_text())
        engine = LlamaCpp(path, shape, threads, CONTEXT, time.perf_counter)
    engine.prefill(list(range(1, PROMPT + 1)))
    first_token = time.time()
    prefill = engine.prefill(list(range(101, PROMPT + 101)))
    engine.begin(list(range(201, PROMPT + 201)), STEPS)
    engine.decode(STEPS)
    found = memory()
    busy = time.process_time()
    time.sleep(IDLE_SECONDS)
    idle = (time.process_time() - busy) / IDLE_SECONDS
    return {"first_token": first_token, "prefill": prefill, "idle_processors": idle, **found}


def measure(kind: str, path: Path, config: Path, threads: int) -> dict[str, float]:
    """One process: seconds to start, bytes, processors that it keeps busy when idle."""
    command = [sys.executable, __file__, kind, str(path), str(config), str(threads)]
    started = time.time()
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    start = found.pop("first_token") - started - found.pop("prefill")
    return {"start_seconds": start, **found}


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
