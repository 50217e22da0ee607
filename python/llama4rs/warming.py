"""A packed model in the page cache, in large pages."""

from __future__ import annotations

import mmap
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import CheckpointError, CheckpointNotFoundError, RequestError
from .hub import resolve_model
from .progress import Progress, progress_bar
from .summary import byte_count

__all__ = ["warm"]

_LARGE_PAGE = 2 << 20


def warm(path: str | os.PathLike[str], *, progress: Progress | bool = False) -> dict[str, Any]:
    """Reads a packed model into the page cache, in large pages where the system has them.

    How a file came into the cache decides in which pages it lies there: written in small pieces, or
    read when memory was short, in pages of 4 kB, of which a core reads a third fewer bytes per
    second than of pages of 2 MB, and decoding is as much slower. So what the cache holds of the
    model is dropped, but for what other processes have mapped, and read again through a map that
    asks for large pages.

    Args:
        path: A directory made by `pack`.
        progress: True shows a bar; or a function called as ``progress(what, done, total)``.

    Returns:
        ``files``, ``bytes``, ``large_page_bytes`` (those of them that now lie in large pages; None
        where the system does not tell) and ``seconds``.

    Raises:
        CheckpointNotFoundError: There is no such directory, or no weights are in it.
        CheckpointError: A file cannot be read.
        RequestError: The model is larger than the machine's memory.
    """
    folder = resolve_model(path, local_files_only=True)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointNotFoundError(f"{folder} has no weights: no *.safetensors is there")
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total > memory:
        raise RequestError(
            f"{folder} has {byte_count(total)}, this machine {byte_count(memory)} of memory: what "
            "is read first would be dropped for what is read last"
        )
    started, done = time.perf_counter(), 0
    large: list[int | None] = []
    with progress_bar(progress) as report:
        for file, size in sizes.items():
            try:
                large.append(_warm_file(file, size, done, total, report))
            except OSError as error:
                raise CheckpointError(f"{file}: {error.strerror or error}") from error
            done += size
    known = [found for found in large if found is not None]
    return {
        "files": len(files),
        "bytes": total,
        "large_page_bytes": sum(known) if len(known) == len(large) else None,
        "seconds": time.perf_counter() - started,
    }


def _warm_file(
    file: Path, size: int, before: int, total: int, report: Progress | None
) -> int | None:
    """Reads one file; bytes in large pages."""
    if size == 0:
        return 0
    with file.open("rb") as opened:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # without large pages the file is read all the same
                    mapped.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, size, _LARGE_PAGE):
                # Every page: where the system has no large ones, the first does not bring the rest.
                _ = mapped[at : min(at + _LARGE_PAGE, size) : mmap.PAGESIZE]
                if report is not None:
                    report(f"reading {file.name}", before + at, total)
            return _large_page_bytes(file)


def _large_page_bytes(file: Path) -> int | None:
    """Bytes of a mapped file that this process sees in large pages; None where nobody knows."""
    try:
        lines = Path("/proc/self/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    found, of_file, name = 0, False, str(file.resolve())
    for line in lines:
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            of_file = line.endswith(name)
        elif of_file and head == "FilePmdMapped:":
            found += int(rest.split()[0]) * 1024
    return min(found, file.stat().st_size)  # twice where this process has the model open
