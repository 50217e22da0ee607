"""The exceptions of llama4rs: one base class, and the builtin class a user would expect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Llama4Error(Exception):
    """Base class of every error that llama4rs raises on purpose."""


class CheckpointError(Llama4Error, ValueError):
    """A model directory is damaged, incomplete, of another architecture or of impossible sizes."""


class CheckpointNotFoundError(Llama4Error, FileNotFoundError):
    """A model directory or one of the files that it needs does not exist."""


class PackError(Llama4Error, ValueError):
    """A checkpoint cannot be packed as asked (NaN weights, existing destination, full disk)."""


class TokenizerError(Llama4Error, ValueError):
    """A tokenizer file is damaged or of an unknown kind, or the model has no tokenizer."""


class ChatTemplateError(Llama4Error, ValueError):
    """A conversation cannot be put into the prompt format."""


class ImageError(Llama4Error, ValueError):
    """Not an image, a damaged or too large one, or not as many images as the prompt has places."""


class SessionError(Llama4Error, ValueError):
    """A saved session is damaged or of another model, or a session is busy."""


class RequestError(Llama4Error, ValueError):
    """A request that can never run: option out of range, empty or too long prompt."""


class DeviceError(Llama4Error, RuntimeError):
    """A GPU cannot be used: no driver, no device, one that is too old or too small, or no NVRTC."""


class OutOfMemoryError(Llama4Error, MemoryError):
    """Memory for weights, key/value pages or activations is not to be had."""


def shown(value: object) -> str:
    """What a caller gave, as an error message shows it: in one short piece, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # such as an integer of more than 4300 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


@contextmanager
def numbered(what: str, index: int, count: int) -> Iterator[None]:
    """Says of an error which of several things of a kind it is about."""
    try:
        yield
    except Llama4Error as error:
        if count == 1:
            raise
        raise type(error)(f"{what} {index + 1} of {count}: {error}") from error


@contextmanager
def option_errors() -> Iterator[None]:
    """Turns the builtin errors of the core about an option's value into `RequestError`.

    Raises:
        RequestError: In place of a ``ValueError`` or ``OverflowError``.
    """
    try:
        yield
    except Llama4Error:
        raise
    except (ValueError, OverflowError) as error:
        raise RequestError(str(error)) from error
