"""Methods that are another one in another form."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeAlias, TypeVar

__all__ = ["Documented", "taking_arguments_of"]

Method = TypeVar("Method", bound=Callable[..., Any])

Documented: TypeAlias = Callable[..., None]
"""A method of a name and a docstring only."""


def taking_arguments_of(
    original: Callable[..., Any], documented: Documented, method: Method
) -> Method:
    """`method` with the name and the docstring of `documented`, and, for whoever asks, the
    parameters of `original`."""
    returns = method.__annotations__["return"]
    update_wrapper(method, documented)
    method.__signature__ = inspect.signature(original).replace(  # type: ignore[attr-defined]
        return_annotation=returns
    )
    return method
