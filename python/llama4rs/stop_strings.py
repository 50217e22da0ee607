"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Finds the first stop string in text that arrives in pieces.

    Text that may turn out to be the beginning of a stop string is held back until it is known.

    Example:
        >>> stop = StopStrings(["END"])
        >>> stop.push("one E"), stop.push("N"), stop.push("ough"), stop.push(" END two")
        ('one ', '', 'ENough', ' ')
        >>> stop.found
        'END'
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that was met. Everything after it is dropped."""

    def push(self, text: str) -> str:
        """Takes the next piece; returns the text that is now sure to belong to the output."""
        if self.found is not None:
            return ""
        self._held += text
        # The one that is complete first, however the text was cut into pieces.
        found = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(at + len(stop), at, stop) for at, stop in found if at >= 0]
        if ends:
            _, at, self.found = min(ends)
            sure, self._held = self._held[:at], ""
            return sure
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        sure, self._held = self._held[:cut], self._held[cut:]
        return sure

    def flush(self) -> str:
        """The text that was held back, at the end of the output."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
