"""Decoding at depth, and reopening a long text from disk.

    python benches/long_context.py [MODEL] [--depths 1K,8K,32K,128K,1M] [--kv bf16,int8]
                                   [--kv-read map] [--threads N] [--steps 16] [--runs 3]
                                   [--cold] [--dir DIR] [--json FILE]

For each depth a store of keys and values is made, then a process of its own opens the model on it,
asks for one token after that many tokens, and decodes. Nothing is computed for the text itself: the
store is *synthetic*. Its pages are those of a short text that the model really read, repeated under
the names of a longer text, so they have the right bytes for any model and format; only what the
model says is meaningless. Every run checks that all of the text was found.

Reported: seconds to open the model; seconds to find the text (every token and the checksum of every
page is compared, by all threads) and, with those, to its first token; tokens per second after that;
memory of the process by kind; and the bytes of keys and values that one token's attention reads.
Every run checks that as many bytes were read from the files, by the engine's own count and by the
system's (``rchar`` of ``/proc/self/io``).

Needs the packages blake3 and xxhash beside llama4rs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAGE_TOKENS = 64
SEGMENT_PAGES = 128
HEADER_BYTES = 256
FOOTER_BYTES = 64
SECTION, PAGE = 64 << 10, 4 << 10
CHAIN = "llama4rs kv page chain 1"


# ---------------------------------------------------------------------------- the synthetic store


@dataclass(frozen=True)
class Donor:
    """Pages that a model really computed, and the fingerprint under which it looks for them."""

    fingerprint: bytes
    first: bytes
    others: list[bytes]


def read_donor(directory: Path) -> Donor:
    """The pages of the global layers in the store's one segment of a short text."""
    (path,) = directory.glob("global-0-*.kv")
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data, 24)
    table = HEADER_BYTES + count * PAGE_TOKENS * 8
    offset = aligned(table + count * 16, SECTION)
    pages = []
    for page in range(count):
        (size,) = struct.unpack_from("<Q", data, table + 16 * page)
        pages.append(data[offset : offset + size])
        offset = aligned(offset + size, PAGE)
    return Donor(data[48:80], pages[0], pages[1:])


def page_bytes(path: Path) -> int:
    """Bytes of all pages of a segment."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data, 24)
    table = HEADER_BYTES + count * PAGE_TOKENS * 8
    return sum(size for size, _ in struct.iter_unpack("<QQ", data[table : table + count * 16]))


def aligned(offset: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-offset // to) * to


def write_store(directory: Path, donor: Donor, tokens: np.ndarray) -> int:
    """Segments for all of `tokens`, whole pages; returns the bytes of their pages."""
    from blake3 import blake3
    from xxhash import xxh3_64_intdigest

    checksums = [xxh3_64_intdigest(page) for page in (donor.first, *donor.others)]
    keys = tokens.astype("<u8").reshape(-1, PAGE_TOKENS)
    parent = blake3(donor.fingerprint, derive_key_context=CHAIN).digest()
    total = 0
    for start in range(0, len(keys), SEGMENT_PAGES):
        part = keys[start : start + SEGMENT_PAGES]
        chain = [parent]
        for page in part:
            chain.append(blake3(page.tobytes(), key=chain[-1]).digest())
        donors = [page and 1 + page % len(donor.others) for page in range(start, start + len(part))]
        pages = [donor.others[i - 1] if i else donor.first for i in donors]
        offset = aligned(HEADER_BYTES + len(part) * (PAGE_TOKENS * 8 + 16), SECTION)
        places = []
        for page in pages:
            places.append(offset)
            offset = aligned(offset + len(page), PAGE)
        length = offset + FOOTER_BYTES
        header = struct.pack(
            "<8sIIIIIIQQ32s32s32s32s",
            *(b"L4RSKVS\n", 1, 0, 0, PAGE_TOKENS, len(part), 0, start, length),
            *(donor.fingerprint, parent, chain[1], chain[-1]),
        ).ljust(HEADER_BYTES, b"\0")
        table = b"".join(
            struct.pack("<QQ", len(page), checksums[i])
            for i, page in zip(donors, pages, strict=True)
        )
        meta = header + part.tobytes() + table
        footer = struct.pack("<8sQQ", b"L4RSKVE\n", length, xxh3_64_intdigest(meta))
        name = f"global-{start}-{len(part)}-{chain[1][:16].hex()}-{chain[-1][:16].hex()}.kv"
        with (directory / name).open("wb") as file:
            file.write(meta)
            for place, page in zip(places, pages, strict=True):
                file.seek(place)
                file.write(page)
            file.seek(offset)
            file.write(footer.ljust(FOOTER_BYTES, b"\0"))
        parent = chain[-1]
        total += sum(map(len, pages))
    return total


# ----------------------------------------------------------------------------- one measured process


def text(tokens: int, vocab: int) -> np.ndarray:
    """The text of every depth is a beginning of the same random one."""
    return np.random.default_rng(0).integers(0, min(vocab, 800), tokens)


def memory() -> dict[str, int]:
    """Bytes of this process in memory, by kind."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon", "RssFile")}


def bytes_read() -> int:
    """Bytes that this process has read from files so far."""
    fields = dict(line.split(":") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def run_once(options: dict[str, Any]) -> dict[str, Any]:
    """Opens the model on the store, reads the whole text from it and decodes."""
    import llama4rs

    begun = time.perf_counter()
    llm = llama4rs.Llama4(
        options["model"],
        kv_cache=options["kv"],
        kv_dir=options["dir"],
        kv_read=options["kv_read"],
        threads=options["threads"],
        max_context=options["depth"] + 4096,
    )
    opened = time.perf_counter()
    prompt = text(options["depth"] + 1, llm.config.vocab_size).tolist()
    before, read_before = memory(), bytes_read()
    asked = time.perf_counter()
    stream = llm.stream(prompt, max_tokens=options["steps"] + 1, temperature=0, ignore_eos=True)
    next(iter(stream))
    first = time.perf_counter()
    read = bytes_read() - read_before
    for _ in stream:
        pass
    done = time.perf_counter()
    usage = stream.output.usage
    return {
        "open_seconds": opened - begun,
        "first_token_seconds": first - asked,
        "tokens_per_second": (usage.completion_tokens - 1) / (done - first),
        "cached_tokens": usage.cached_tokens,
        "find_seconds": stream.output.timings.queue_seconds,
        "bytes_read": read,
        "counted": llm._engine.kv_bytes_read(),
        "before": before,
        "after": memory(),
    }


def child(options: dict[str, Any]) -> dict[str, Any]:
    """`run_once` in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def drop_from_page_cache(directory: Path) -> None:
    """Lets the next reader of these files wait for the disk."""
    for path in directory.glob("*.kv"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --------------------------------------------------------------------------------------- the report


def depth_of(name: str) -> int:
    """``"8K"`` is 8192, ``"1M"`` is 2**20."""
    scale = {"K": 1 << 10, "M": 1 << 20}.get(name[-1].upper())
    return int(name[:-1]) * scale if scale else int(name)


def measure(model: str | None, kv: str, depth: int, args: argparse.Namespace) -> dict[str, Any]:
    """One depth in one format."""
    import llama4rs

    with tempfile.TemporaryDirectory(dir=args.dir, prefix="llama4rs-kv-") as name:
        directory = Path(name)
        options = {
            "model": model,
            "kv": kv,
            "kv_read": args.kv_read,
            "dir": name,
            "threads": args.threads,
            "depth": depth,
            "steps": args.steps,
        }
        llm = llama4rs.Llama4(model, kv_cache=kv, kv_dir=directory, threads=args.threads)
        chunk = llm.config.get("attention_chunk_size") or PAGE_TOKENS
        vocab = llm.config.vocab_size
        real = depth if depth % chunk else 5 * PAGE_TOKENS
        llm.generate([*text(real, vocab).tolist(), 1], max_tokens=1, temperature=0)
        del llm
        if depth % chunk:  # not at a boundary of the chunked layers: the text itself is read
            kv_bytes = sum(page_bytes(path) for path in directory.glob("global-*.kv"))
            needed = kv_bytes + sum(page_bytes(path) for path in directory.glob("chunked-*.kv"))
        else:
            donor = read_donor(directory)
            for path in directory.glob("*.kv"):
                path.unlink()
            needed = kv_bytes = write_store(directory, donor, text(depth, vocab))
        runs = []
        for _ in range(args.runs):
            if args.cold:
                drop_from_page_cache(directory)
            runs.append(child(options))
    for run in runs:
        if run["cached_tokens"] != depth:
            raise SystemExit(f"{run['cached_tokens']} of {depth} tokens were found in the store")
        counted = run["counted"]
        if counted["pages"] != needed:
            raise SystemExit(f"{counted['pages']} bytes of pages were read, {needed} are needed")
        if not 0 <= run["bytes_read"] - sum(counted.values()) < 1 << 20:
            raise SystemExit(f"the system counts {run['bytes_read']} bytes, the engine {counted}")
    middle = {
        key: statistics.median(run[key] for run in runs)
        for key in ("open_seconds", "find_seconds", "first_token_seconds", "tokens_per_second")
    }
    return {"depth": depth, "kv": kv, "kv_bytes": kv_bytes, **middle, "runs": runs}


def show(result: dict[str, Any]) -> None:
    """One line."""
    after, before = result["runs"][-1]["after"], result["runs"][-1]["before"]
    print(
        f"{result['depth']:8} {result['kv']:5} open {result['open_seconds'] * 1e3:6.1f} ms  "
        f"found {result['find_seconds']:6.3f} s "
        f"({result['kv_bytes'] / result['find_seconds'] / 1e9:5.2f} GB/s)  "
        f"first token {result['first_token_seconds']:6.3f} s  "
        f"decode {result['tokens_per_second']:7.1f} tokens/s  "
        f"keys and values {result['kv_bytes'] / 1e6:8.1f} MB  "
        f"anonymous +{(after['RssAnon'] - before['RssAnon']) / 1e6:.0f} MB  "
        f"mapped +{(after['RssFile'] - before['RssFile']) / 1e6:.0f} MB",
        flush=True,
    )


def main() -> None:
    """Measures every depth in every format and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="a directory; cria when left out")
    parser.add_argument("--depths", default="1K,8K,32K,128K,1M")
    parser.add_argument("--kv", default="bf16")
    parser.add_argument("--kv-read", default="map", choices=["map", "copy"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="read the files from the disk")
    parser.add_argument("--dir", type=Path, help="where to make the stores; the system's choice")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_once(json.loads(args.child))))
        return
    results = []
    for kv in args.kv.split(","):
        for depth in map(depth_of, args.depths.split(",")):
            results.append(measure(args.model, kv, depth, args))
            show(results[-1])
    if args.json:
        report = {"model": args.model or "cria", "threads": args.threads, "results": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
