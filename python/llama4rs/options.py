"""The keyword arguments of requests, as type checkers see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .sampling import SamplingOptions

if TYPE_CHECKING:
    from .encoding import Tools
    from .images import ImageSource

__all__ = ["BatchOptions", "ChatOptions", "GenerateOptions", "PromptOptions"]


class _TextOptions(SamplingOptions, total=False):
    parse_special: bool
    skip_special: bool


class PromptOptions(_TextOptions, total=False):
    """Of ``Llama4.stream``."""

    images: Sequence[ImageSource] | None
    tools: Tools | None


class GenerateOptions(PromptOptions, total=False):
    """Of ``Llama4.generate``."""

    progress: bool


class BatchOptions(_TextOptions, total=False):
    """Of ``Llama4.generate`` for a list of prompts."""

    images: Sequence[Sequence[ImageSource] | None] | None
    tools: Tools | None
    progress: bool


class ChatOptions(SamplingOptions, total=False):
    """Of ``Llama4.chat``."""

    images: Sequence[ImageSource] | None
    tools: Tools | None
