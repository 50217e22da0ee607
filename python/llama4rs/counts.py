"""Options that are whole numbers."""

from __future__ import annotations

import operator

from .errors import RequestError

__all__ = ["MOST_THREADS", "check_count"]

MOST_THREADS = 1024


def check_count(name: str, value: int | None, *, least: int = 1, most: int = (1 << 63) - 1) -> None:
    """Makes sure that an option is None or a whole number in a range.

    Raises:
        RequestError: It is something else.

    Example:
        >>> check_count("threads", -1, most=MOST_THREADS)
        Traceback (most recent call last):
        ...
        llama4rs.errors.RequestError: threads must be an integer from 1 to 1024, got -1
    """
    if value is None:
        return
    try:
        good = not isinstance(value, bool) and least <= operator.index(value) <= most
    except TypeError:
        good = False
    if not good:
        upto = "2**63 - 1" if most == (1 << 63) - 1 else most
        raise RequestError(f"{name} must be an integer from {least} to {upto}, got {value!r}")
