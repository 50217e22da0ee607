"""Is the GPU right, and how near to its limits? Needs a GPU (or, with --tiny, the simulated one).

    python benches/gpu.py --json FILE [--device N] [--parts check,ceilings,...] [--seconds 600]
                          [--resume] [--work DIR] [--rounds 20] [--note TEXT] [--tiny]

check        tensor cores give the same bits for any number of rows; a small model agrees with the
             CPU; requests give the same tokens alone and together
ceilings     what this card copies, and (with torch) multiplies: limits below are of these
decode       Llama 4 Scout, all 48 layers, int4/g128, random weights, through the engine: one and
             eight sequences at 8K, a prompt of 8K, one sequence at 128K and 1M, or as deep as fits;
             keys, values bf16
kernels      operations of Scout, one at a time, with random data made on the device; each is
             captured into a graph with other weights every time, a replay is timed by events
peers        the same work in PyTorch, when it is installed: int4 and bf16 products, attention
decode-int8  as decode, keys and values in int8
load         opening a packed model from the page cache, and the first token of a new process
batch        64 sequences of 8K, or as many as fit
transformers a prompt of 8K in transformers and here, the same four layers of Scout
profile      (with torch; not by default) time of each kernel in a step of four layers of Scout
counts       (simulated device only, not by default) what kernels ask of memory: gpu_counts.py

Each part runs in a process of its own with a limit of time, so that none can take the others with
it; what it finds is written to --json as it comes. --resume keeps the parts that are complete in
that file. A limit is what the ceilings allow for the bytes and operations that the work needs; a
goal is a share of it. --tiny makes everything small, with PyTorch on the CPU where there is no
card: a dry run, which proves the script from end to end; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from datetime import date
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Seconds that a part may take, in the order in which parts run.
PARTS = {
    "check": 75,
    "ceilings": 45,
    "decode": 150,
    "kernels": 75,
    "peers": 75,
    "decode-int8": 90,
    "load": 75,
    "batch": 90,
    "transformers": 75,
}
# Only where it is asked for.
EXTRA_PARTS = {"profile": 90, "counts": 600}
# A part that does not end by itself is killed so many seconds after its limit.
GRACE = 10

# Copies and dense bf16 products of cards that were measured before, where `ceilings` finds none.
ASSUMED = {"H200": (4.3e12, 788e12), "H100": (3.0e12, 798e12)}


def show(row: Row) -> None:
    """One line of the table."""
    text = f"{row['name']:50}"
    if "failed" in row:
        text += f" not measured: {row['failed']}"
    elif "within" in row:
        figures = {key: row[key] for key in row if key not in ("part", "name", "within")}
        text += f" {'ok' if row['within'] else 'BEYOND'} {figures}"
    elif "ok" in row:
        more = {key: value for key, value in row.items() if key not in ("part", "name", "ok")}
        text += f" {'ok' if row['ok'] else 'WRONG'} {more or ''}"
    else:
        text += f" {row['value']:10.4g} {row['unit']:9}"
        if row.get("limit"):
            text += f" limit {row['limit']:9.4g}, {row['share']:6.1%}"
        if row.get("goal"):
            met = row["share"] >= row["goal"]
            text += f" (goal {row['goal']:.0%}: {'met' if met else 'not met'})"
        if row.get("note"):
            text += f"; {row['note']}"
    print(text, flush=True)


class Report:
    """What was found so far, in a file."""

    def __init__(self, path: Path | None, resume: bool, arguments: argparse.Namespace) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "date": date.today().isoformat(),
            "system": platform.platform(),
            "tiny": arguments.tiny,
            "note": arguments.note,
            "complete": [],
            "seconds": {},
            "results": [],
        }
        if resume and path and path.exists():
            self.content = json.loads(path.read_text())
            complete = self.content["complete"]
            kept = [row for row in self.results if row["part"] in complete]
            self.content["results"] = kept

    @property
    def results(self) -> list[Row]:
        """All rows."""
        rows: list[Row] = self.content["results"]
        return rows

    def add(self, row: Row) -> None:
        """Shows and saves a row."""
        show(row)
        self.results.append(row)
        self.save()

    def save(self) -> None:
        """Writes the file whole."""
        if self.path:
            temporary = self.path.with_suffix(".part")
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")
            temporary.replace(self.path)

    def ceilings(self) -> dict[str, Any] | None:
        """What `ceilings` found; else what is known of such a card."""
        found = {row["name"]: row for row in self.results if row["part"] == "ceilings"}
        device = next((row["device"] for row in self.results if "device" in row), "")
        copied = found.get("copy", {}).get("value")
        multiplied = found.get("bf16 product", {}).get("value")
        if copied and multiplied:
            return {"bandwidth": copied * 1e9, "operations": multiplied * 1e12}
        known = [figures for name, figures in ASSUMED.items() if name in device]
        bandwidth, operations = known[0] if known else ASSUMED["H200"]
        return {"bandwidth": bandwidth, "operations": operations, "assumed": True}


def run_part(name: str, seconds: float, report: Report, options: dict[str, Any]) -> bool:
    """Runs one part in a process of its own; whether it came to its end."""
    options = {**options, "ceilings": report.ceilings(), "seconds": seconds}
    command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), name]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"LLAMA4RS_CUDA_CACHE": f"{options['work']}/kernels", **os.environ},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    # The last words are the reason of a failure.
    words: deque[str] = deque(maxlen=30)
    reader = threading.Thread(target=words.extend, args=(process.stderr,), daemon=True)
    reader.start()
    killer = threading.Timer(seconds + GRACE, process.kill)
    killer.start()
    ended = False
    for line in process.stdout:
        if line.startswith("{"):
            row = json.loads(line)
            if row.get("end"):
                ended = not row.get("cut")
            else:
                report.add({"part": name, **row})
        else:
            print(line, end="", flush=True)
    code = process.wait()
    killer.cancel()
    reader.join(timeout=5)
    took = time.monotonic() - started
    report.content["seconds"][name] = round(took, 1)
    if code != 0:
        last = words[-1].strip() if words else ""
        reason = f"took more than {seconds:.0f} s" if code == -9 else f"exit {code}: {last}"
        report.add({"part": name, "name": f"the rest of {name}", "failed": reason})
        print("".join(words), end="", file=sys.stderr, flush=True)
        ended = False
    if ended and name not in report.content["complete"]:
        report.content["complete"].append(name)
    report.save()
    print(f"-- {name}: {took:.0f} s", flush=True)
    return ended


def main() -> None:
    """Runs the parts and prints a table; fails if a check does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=600, help="for everything together")
    parser.add_argument("--resume", action="store_true", help="keep complete parts of --json")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--work", type=Path, help="where models are made, and kept")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--note", default="", help="kept with the figures")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    known = {**PARTS, **EXTRA_PARTS}
    if unknown := set(parts) - set(known):
        parser.error(f"--parts takes some of {', '.join(known)}, not {', '.join(unknown)}")
    if arguments.tiny:
        print("dry run: tiny sizes, the figures mean nothing")
    started = time.monotonic()
    report = Report(arguments.json, arguments.resume, arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        # The simulated device takes its time.
        slowness = 4 if arguments.tiny else 1
        options = {
            "device": arguments.device,
            "rounds": arguments.rounds,
            "work": str(work.resolve()),
            "tiny": arguments.tiny,
        }
        for name in parts:
            if name in report.content["complete"]:
                continue
            left = arguments.seconds - (time.monotonic() - started)
            if left < GRACE:
                row = {"part": name, "name": name, "failed": "no time was left: --resume"}
                report.add(row)
                continue
            run_part(name, min(known[name] * slowness, left), report, options)
    wrong = [row["name"] for row in report.results if row.get("ok") is False]
    failed = [row["name"] for row in report.results if "failed" in row]
    print(f"{time.monotonic() - started:.0f} s; not measured: {', '.join(failed) or 'nothing'}")
    if wrong:
        raise SystemExit(f"WRONG: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
