"""Kills a process that stores keys and values, again and again, at random moments.

After every kill each text that it had said was stored must be there, to the last bit:

    python tests/kv_crash.py --kills 400
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kv_texts import CONFIG, PAGE, Reference, ask, tokens
from llama4rs._llama4rs import Engine, kv_list, kv_verify
from oracle.checkpoint import make_checkpoint

FORMATS = ["f32", "bf16", "int8", "int4"]
# After so many kills a new directory is taken.
KILLS_OF_A_DIRECTORY = 20


@dataclass
class Counts:
    """What a run saw."""

    kills: int = 0
    in_the_making: int = 0
    stored: int = 0
    checked: int = 0


def _text(choices: random.Random) -> tuple[str, int]:
    """Branches and length of a text; few of them, so that texts grow and fork."""
    return "a" * choices.randrange(6) + choices.choice("abc"), choices.randrange(64, 900, 45)


def _write(path: str, kv_dir: Path, kv_cache: str, seed: int, told: int) -> None:
    """What the child does until it is killed: stores texts, and says so afterwards."""
    engine = Engine(path, weights="f32", threads=1, kv_cache=kv_cache, kv_dir=kv_dir)
    choices = random.Random(seed)
    os.write(told, b"open\n")
    while True:
        branches, length = _text(choices)
        ask(engine, tokens(branches, length), max_tokens=0)
        os.write(told, f"{branches} {length}\n".encode())


def _killed(path: str, kv_dir: Path, kv_cache: str, seed: int) -> list[tuple[str, int]]:
    """Lets a child write for a moment and kills it; returns what it said was stored."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            _write(path, kv_dir, kv_cache, seed, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        assert told.readline() == b"open\n", "the child could not open the model"
        time.sleep(random.Random(seed).uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"the child ended by itself: {status}"
        lines = [line.decode() for line in told if line.endswith(b"\n")]
    return [(branches, int(length)) for branches, length in map(str.split, lines)]


def _check(
    path: str, kv_dir: Path, kv_cache: str, reference: Reference, texts: list[tuple[str, int]]
) -> None:
    engine = Engine(
        path, weights="f32", threads=1, kv_cache=kv_cache, kv_dir=kv_dir, prefix_cache_bytes=0
    )
    for branches, length in texts:
        # One token more, so that the whole text counts as a beginning.
        ids = [*tokens(branches, length), 1]
        answer, cached = ask(engine, ids, 1)
        assert cached == length // PAGE * PAGE, f"{branches} {length}: {cached} tokens are left"
        assert answer == reference.ask(ids, 1), f"{branches} {length}: another answer"


def run(kills: int, seed: int = 0) -> Counts:
    """Kills `kills` children; raises `AssertionError` when something stored was lost or wrong."""
    counts = Counts()
    choices = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        make_checkpoint(path, CONFIG, 5)
        references = {
            kv_cache: Reference(str(path), weights="f32", kv_cache=kv_cache) for kv_cache in FORMATS
        }
        kv_dir = Path(folder) / "kv"
        stored: list[tuple[str, int]] = []
        for number in range(kills):
            if number % KILLS_OF_A_DIRECTORY == 0:
                shutil.rmtree(kv_dir, ignore_errors=True)
                stored, kv_cache = [], choices.choice(FORMATS)
            new = _killed(str(path), kv_dir, kv_cache, choices.randrange(1 << 32))
            counts.kills += 1
            counts.stored += len(new)
            counts.in_the_making += any(kv_dir.glob(".tmp-*"))
            stored += new
            texts = new[-4:] + choices.sample(stored, min(3, len(stored)))
            _check(str(path), kv_dir, kv_cache, references[kv_cache], texts)
            counts.checked += len(texts)
            assert kv_verify(kv_dir)["problems"] == []
            assert all(file["problem"] is None for file in kv_list(kv_dir))
    return counts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    counts = run(options.kills, options.seed)
    print(f"{counts}, {time.monotonic() - start:.0f} s: nothing was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
