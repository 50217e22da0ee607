"""What this machine has: memory that a process may use, and room on its disks."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "this_machine"]


@dataclass(frozen=True)
class Machine:
    """Limits in bytes; None where the system does not say.

    Args:
        memory_total: Of the machine.
        memory_available: What can be had without swapping, within `memory_limit`.
        memory_limit: Of this process' control group, such as a container's.
        disk_free: Where packed weights would be.
    """

    memory_total: int | None = None
    memory_available: int | None = None
    memory_limit: int | None = None
    disk_free: int | None = None


def this_machine(folder: Path, root: Path = Path("/")) -> Machine:
    """Memory and disk of this machine, as they are now.

    Args:
        folder: A directory, which need not exist yet, on the disk in question.
        root: Of the file system with ``proc`` and ``sys``, for tests.
    """
    total, available = _meminfo(root / "proc/meminfo")
    limit, room = _group_limits(root)
    if room is not None:
        available = room if available is None else min(available, room)
    return Machine(total, available, limit, _disk_free(folder))


def _meminfo(path: Path) -> tuple[int | None, int | None]:
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return _sysconf_total(), None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    total, available = (_kilobytes(values.get(name)) for name in ("MemTotal", "MemAvailable"))
    return total, available


def _kilobytes(value: str | None) -> int | None:
    words = (value or "").split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def _sysconf_total() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _group_limits(root: Path) -> tuple[int | None, int | None]:
    """The smallest limit of the groups that this process is in, and the least room in one."""
    limits, rooms = [], []
    for folder, names in _groups(root):
        limit, used = (_number(folder / name) for name in names[:2])
        # Version 1 writes a number beyond all memory for "none".
        if limit is None or limit >= 1 << 60:
            continue
        limits.append(limit)
        cached = _stat(folder / "memory.stat", names[2])
        rooms.append(max(0, limit - max(0, (used or 0) - cached)))
    return min(limits, default=None), min(rooms, default=None)


def _groups(root: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """Directories of control groups, from this process' own up to the root's, and their files."""
    found = []
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0":
            base, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for length in range(len(parts), -1, -1):
            found.append(((root / base).joinpath(*parts[:length]), names))
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def _stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return 0
    values = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
    return int(values[0]) if values and values[0].isdigit() else 0


def _disk_free(folder: Path) -> int | None:
    folder = folder.absolute()
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None
