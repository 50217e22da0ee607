"""Numbers of tokens, as people write them."""

from __future__ import annotations

import math
import operator
import re

from ..counts import check_count
from ..errors import RequestError, shown

__all__ = ["parse_tokens", "positive", "token_count"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_tokens(text: int | str) -> int:
    """A number of tokens: ``8192``, ``"8K"``, ``"1M"``, ``"10M"``; 1K is 1024, 1M is 1024K.

    Raises:
        RequestError: Something else, or nothing.

    Example:
        >>> parse_tokens("128K"), parse_tokens("1M"), parse_tokens("1.5k"), parse_tokens("10_000")
        (131072, 1048576, 1536, 10000)
    """
    if not isinstance(text, str):
        return positive("context", text)
    match = re.fullmatch(r"\s*(\d[\d_,]*(?:\.\d+)?)\s*([KMG]?)\s*", text.upper())
    if match is None:
        raise RequestError(f"a number of tokens is written 8192, 128K or 1M, got {shown(text)}")
    number = float(re.sub("[_,]", "", match[1])) * _UNITS[match[2]]
    if not math.isfinite(number) or not number.is_integer():
        raise RequestError(f"{shown(text)} is no whole number of tokens")
    return positive("context", int(number))


def token_count(tokens: int) -> str:
    """A number of tokens as people write it; 1K is 1024, 1M is 1024K.

    Example:
        >>> token_count(1 << 20), token_count(131072), token_count(1000)
        ('1M', '128K', '1,000')
    """
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return f"{tokens:,}"


def positive(name: str, value: int) -> int:
    """`value`, which is a whole number above zero.

    Raises:
        RequestError: It is not.
    """
    if value is None:
        raise RequestError(f"{name} must be an integer, got None")
    check_count(name, value)
    return operator.index(value)
