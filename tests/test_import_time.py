"""`import llama4rs` is quick, because what only some users need is imported when they need it."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = (
    "PIL",
    "asyncio",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "rich",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
)

PROGRAM = f"""
import json, sys, time
began = time.perf_counter()
import llama4rs
seconds = time.perf_counter() - began
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"seconds": seconds, "heavy": heavy}}))
"""


def test_import_leaves_heavy_modules_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout)
    print(f"import llama4rs: {found['seconds']:.3f} s (aim: 0.15 s)")
    assert found["heavy"] == []
