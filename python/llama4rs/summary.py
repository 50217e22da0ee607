"""Tables of sizes and formats, as plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["byte_count", "groups_text", "number", "summary_text", "table_text", "tensor_groups"]

_UNITS = ("B", "kB", "MB", "GB", "TB")


def number(count: int) -> str:
    """A count in three or four digits.

    Example:
        >>> number(950), number(7_100_000), number(107_769_861_120)
        ('950', '7.10 M', '107.8 B')
    """
    return _scaled(count, ("", "k", "M", "B", "T"))


def byte_count(size: int) -> str:
    """A size in three or four digits; 1 kB is 1000 bytes.

    Example:
        >>> byte_count(950), byte_count(57_700_000_000)
        ('950 B', '57.7 GB')
    """
    return _scaled(size, _UNITS)


def _scaled(count: int, units: Sequence[str]) -> str:
    value, unit = float(count), units[0]
    for bigger in units[1:]:
        if value < 999.95:
            break
        value, unit = value / 1000, bigger
    digits = 0 if unit == units[0] else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}".rstrip()


def tensor_groups(tensors: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tensors of `inspect` or `pack` added up over layers.

    Returns:
        ``group``, ``format``, ``tensors`` (their number), ``bytes`` and ``relative_error`` (root
        of the mean square over all numbers, None where that is not known) of each group.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    squares: dict[tuple[str, str], list[tuple[float | None, int]]] = {}
    for tensor in tensors:
        group = re.sub(r"\.\d+(?=\.|$)", ".*", tensor["name"])
        key = group, tensor["format"]
        entry = groups.setdefault(key, {"group": group, "format": key[1], "tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor["bytes"]
        squares.setdefault(key, []).append((tensor["relative_error"], math.prod(tensor["shape"])))
    for key, entry in groups.items():
        entry["relative_error"] = _mean_error(squares[key])
    return list(groups.values())


def _mean_error(parts: Sequence[tuple[float | None, int]]) -> float | None:
    total, numbers = 0.0, 0
    for error, count in parts:
        if error is None:
            return None
        total += error * error * count
        numbers += count
    return math.sqrt(total / max(numbers, 1))


def groups_text(groups: Sequence[Mapping[str, Any]]) -> str:
    """The table of tensor groups; without the column of errors where none is known."""
    rows: list[list[str]] = [["tensors", "format", "error", "bytes"]]
    for entry in groups:
        error = entry["relative_error"]
        shown = "" if error is None else "exact" if error == 0 else f"{error:.2%}"
        rows.append([entry["group"], entry["format"], shown, byte_count(entry["bytes"])])
    if all(entry["relative_error"] is None for entry in groups):
        rows = [[name, form, size] for name, form, _, size in rows]
    return table_text(rows, right=range(2, len(rows[0])))


def table_text(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Aligned columns, two blanks between them; those numbered in `right` end at one line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = frozenset(right)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def summary_text(sizes: Mapping[str, Any], *, max_context: int, weights: str, device: str) -> str:
    """What `Llama4.summary` returns; `sizes` is the core's ``Engine.summary()``."""
    active = number(sizes["active_parameters"])
    cache = sizes["kv_bytes_per_token"]
    facts = [
        ("parameters", f"{number(sizes['parameters'])} ({active} active per token)"),
        ("weights", f"{weights}, {byte_count(sizes['weight_bytes'])}"),
        ("keys and values", f"{sizes['kv_cache']}, {byte_count(cache)} per token"),
        ("context", f"{max_context} tokens"),
        ("device", device),
    ]
    return f"{table_text(facts)}\n\n{groups_text(tensor_groups(sizes['tensors']))}"
