"""Characters that special token names need, swapped for others that occur nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["Swap", "needed_characters", "strings"]


class Swap:
    """Swaps the characters that special token names need for characters that occur nowhere."""

    def __init__(self, needed: set[str], texts: list[str]) -> None:
        used = set().union(*map(set, texts)) if texts else set()
        free = (char for char in _candidates() if char not in used)
        self._into = {ord(char): next(free) for char in sorted(needed)}
        self._back = {ord(stand_in): char for char, stand_in in self._into.items()}
        self.stand_ins = "".join(self._into.values())

    def into(self, value: Any) -> Any:
        """A copy of a JSON value with stand-ins in all its strings."""
        if isinstance(value, str):
            return value.translate(self._into)
        if isinstance(value, Mapping):
            return {self.into(key): self.into(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.into(item) for item in value]
        return value

    def back(self, text: str) -> str:
        return text.translate(self._back)


def _candidates() -> Iterator[str]:
    """Characters for stand-ins: rare ones that Python calls printable, then private ones."""
    yield from map(chr, range(0x1D800, 0x1DA00))
    yield from map(chr, range(0xF0000, 0x10FFFE))


def needed_characters(special_tokens: Iterable[str]) -> set[str]:
    """Characters such that every special token name has at least one of them.

    ``|`` for names like ``<|eot|>``, which leaves ``<`` and ``>`` in peace, because templates look
    for tags in messages.
    """
    needed: set[str] = {"|"}
    for name in special_tokens:
        if "|" not in name:
            needed.add(next((char for char in name if not char.isspace()), name[0]))
    return needed


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)
