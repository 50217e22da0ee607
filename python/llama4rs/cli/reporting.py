"""From exceptions to one clean line and an exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from ..errors import Llama4Error

__all__ = ["fail", "reported", "warn"]

Command = TypeVar("Command", bound=Callable[..., Any])

_EXPECTED = (Llama4Error, OSError, MemoryError)
_INTERRUPTED = 130


def reported(command: Command) -> Command:
    """Wraps a command: expected errors become ``error: ...`` and exit code 1.

    ``LLAMA4RS_DEBUG=1`` lets the traceback through.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read the output has enough. Nothing more can be written, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except _EXPECTED as error:
            if os.environ.get("LLAMA4RS_DEBUG", "0") not in ("", "0"):
                raise
            fail(error)
            raise typer.Exit(1) from None

    return wrapper  # type: ignore[return-value]


def fail(error: BaseException) -> None:
    """Prints an error and what to do about it."""
    problem, _, hint = str(error).partition("\nhint: ")
    if isinstance(error, MemoryError) and not hint:
        problem = problem or "out of memory"
        hint = "try --weights int4, a smaller --max-context, or a smaller model"
    print(f"error: {problem or type(error).__name__}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def warn(message: str) -> None:
    """Prints a remark that is no error."""
    print(f"warning: {message}", file=sys.stderr)
