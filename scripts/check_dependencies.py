"""Checks that crates depend on each other in one direction only.

The allowed edges are those of ARCHITECTURE.md: a crate may use crates of lower
floors, and no crate of its own floor unless listed here.
"""

from __future__ import annotations

import json
import subprocess
import sys

PREFIX = "llama4rs-"
ALLOWED = {
    "tensor": set(),
    "checkpoint": {"tensor"},
    "cpu": {"tensor"},
    "cuda-sim": set(),
    "cuda": {"tensor"},
    "kv-cache": {"tensor"},
    "model": {"tensor", "checkpoint", "kv-cache"},
    "engine": {"tensor", "kv-cache", "model"},
    "python": {"tensor", "checkpoint", "cpu", "cuda", "kv-cache", "engine", "model"},
}


def main() -> int:
    """Prints every edge that is not allowed; returns how many there are."""
    output = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--no-deps"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    problems = []
    for package in json.loads(output)["packages"]:
        name = package["name"].removeprefix(PREFIX)
        if name not in ALLOWED:
            problems.append(f"{package['name']}: not listed in {__file__}")
            continue
        for dependency in package["dependencies"]:
            target = dependency["name"]
            # Tests may reach across: development dependencies are free.
            if not target.startswith(PREFIX) or dependency["kind"] == "dev":
                continue
            if target.removeprefix(PREFIX) not in ALLOWED[name]:
                problems.append(f"{package['name']} must not use {target}")
    print("\n".join(problems) or "crate dependencies: fine")
    return len(problems)


if __name__ == "__main__":
    sys.exit(main())
