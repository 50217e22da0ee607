"""Keys and values take memory while a sequence has them, and give it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama4rs._llama4rs import Engine
from llama4rs.synth import synth

STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Memory of this process."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
@pytest.mark.parametrize("kv_cache", ["f32", "int8"])
def test_memory_comes_back_when_a_request_ends(tmp_path: Path, kv_cache: str) -> None:
    path = tmp_path / "tiny"
    synth(path, shape="tiny", weights="f32", threads=2)
    engine = Engine(str(path), kv_cache=kv_cache, threads=2, prefix_cache_bytes=0)

    def run(tokens: int) -> tuple[int, int]:
        """Most bytes of pages, and the memory of the process at that moment."""
        request = engine.submit([i % 997 for i in range(tokens)], max_tokens=2)
        most = used = 0
        while request.next() is not None:
            if (pages := engine.kv_bytes_in_use() or 0) >= most:
                most, used = pages, resident_bytes()
        return most, used

    # Buffers of a whole step are there from now on.
    run(1024)
    before = resident_bytes()
    pages, used = run(16_000)
    after = resident_bytes()
    assert pages > 8 << 20
    assert used - before > 0.8 * pages
    assert after - before < 0.4 * pages
    assert engine.kv_bytes_in_use() == 0
