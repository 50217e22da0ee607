"""Options that are whole numbers."""

from __future__ import annotations

import operator

from .errors import RequestError, shown

__all__ = ["MOST_THREADS", "check_count", "is_count"]

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
    if value is not None and not is_count(value, least, most):
        upto = "2**63 - 1" if most == (1 << 63) - 1 else most
        raise RequestError(f"{name} must be an integer from {least} to {upto}, got {shown(value)}")


def is_count(value: object, least: int, most: int) -> bool:
    """Whether this is a whole number in a range; True and False are none."""
    try:
        return not isinstance(value, bool) and least <= operator.index(value) <= most  # type: ignore[arg-type]
    except TypeError:
        return False
