"""Reading a model into the page cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llama4rs


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A directory with files of several large pages, of one byte more than a small one, of none."""
    for name, size in (("a", 5 << 20), ("b", 4097), ("c", 0)):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(size))
    return tmp_path


def test_every_file_is_read(weights: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = llama4rs.warm(weights, progress=lambda *state: told.append(state))
    assert (found["files"], found["bytes"]) == (3, (5 << 20) + 4097)
    assert found["large_page_bytes"] is None or found["large_page_bytes"] <= found["bytes"]
    assert [what for what, _, _ in told] == ["reading a.safetensors"] * 3 + [
        "reading b.safetensors"
    ]
    assert [done for _, done, _ in told] == [0, 2 << 20, 4 << 20, 5 << 20]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_what_was_dropped_is_in_the_cache_again(weights: Path) -> None:
    """Counted by the system: a process that maps the file finds its pages there."""
    file = weights / "a.safetensors"
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    llama4rs.warm(weights)
    program = (
        "import resource, sys; data = open(sys.argv[1], 'rb').read();"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_inblock)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program, file], capture_output=True)
    assert int(done.stdout) * 512 < 1 << 20


def test_bad_directories(tmp_path: Path) -> None:
    with pytest.raises(llama4rs.CheckpointNotFoundError, match="has no weights"):
        llama4rs.warm(tmp_path)
    with pytest.raises(llama4rs.CheckpointNotFoundError, match="nowhere"):
        llama4rs.warm(tmp_path / "nowhere")


def test_a_model_beyond_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(llama4rs.RequestError, match="of memory"):
        llama4rs.warm(tmp_path)


def test_interrupted_by_its_progress(weights: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama4rs.warm(weights, progress=stop)
