"""Options that are whole numbers, texts or paths."""

from __future__ import annotations

import operator
import os

from .errors import RequestError, shown

__all__ = ["MOST_THREADS", "check_count", "check_path", "check_text", "is_count"]

MOST_THREADS = 1024
_LONGEST_NAME = 100


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


def is_count(value: object, least: int, most: int | None = None) -> bool:
    """Whether this is a whole number in a range; True and False are none."""
    if isinstance(value, bool):
        return False
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return least <= number and (most is None or number <= most)


def check_text(name: str, value: str | None, *, optional: bool = True) -> None:
    """Makes sure that an option is a string that can be a name, or None where it is optional.

    Raises:
        RequestError: It is something else.
    """
    if optional and value is None:
        return
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise RequestError(f"{name} must be a short string, got {shown(value)}")


def check_path(name: str, value: str | os.PathLike[str] | None) -> None:
    """Makes sure that an option is None or can be the name of a file.

    Raises:
        RequestError: It is something else.
    """
    if not isinstance(value, str | os.PathLike | None) or value in ("", "\0"):
        raise RequestError(f"{name} must be a path, got {shown(value)}")
