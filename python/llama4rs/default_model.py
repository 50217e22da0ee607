"""The demo model behind `llama4rs.generate`, opened when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from .asynchronous import AsyncTextStream
from .llm import Llama4

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import BatchOptions, ChatOptions, GenerateOptions, PromptOptions
    from .outputs import Output
    from .prompts import Batch, Message, Prompt
    from .sampling import SamplingParams
    from .streaming import TextStream

__all__ = ["astream", "chat", "default_model", "generate", "stream"]

_lock = threading.Lock()
_model: Llama4 | None = None


def default_model() -> Llama4:
    """cria, the tiny Llama 4 that comes with the package; one for the whole process.

    Raises:
        CheckpointNotFoundError: The package was installed without its data.
    """
    global _model
    with _lock:
        if _model is None:
            _model = Llama4()
        return _model


@overload
def generate(
    prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[GenerateOptions]
) -> Output: ...


@overload
def generate(
    prompt: Batch, params: SamplingParams | None = None, **options: Unpack[BatchOptions]
) -> list[Output]: ...


def generate(prompt: Any, params: SamplingParams | None = None, **options: Any) -> Any:
    """`Llama4.generate` of the demo model.

    Example:
        >>> import llama4rs
        >>> llama4rs.generate("Once upon a time", max_tokens=5).usage.completion_tokens
        5
    """
    return default_model().generate(prompt, params, **options)


def stream(
    prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[PromptOptions]
) -> TextStream:
    """`Llama4.stream` of the demo model.

    Example:
        >>> import llama4rs
        >>> text = ""
        >>> for piece in llama4rs.stream("Once upon a time", max_tokens=5):
        ...     text += piece  # or print(piece, end="", flush=True)
    """
    return default_model().stream(prompt, params, **options)


def astream(
    prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[PromptOptions]
) -> AsyncTextStream:
    """`Llama4.astream` of the demo model."""
    return AsyncTextStream(lambda: stream(prompt, params, **options))


def chat(
    messages: str | Sequence[Message],
    params: SamplingParams | None = None,
    **options: Unpack[ChatOptions],
) -> Output:
    """`Llama4.chat` of the demo model.

    Example:
        >>> import llama4rs
        >>> llama4rs.chat("Tell me a story.", max_tokens=5).message["role"]
        'assistant'
    """
    return default_model().chat(messages, params, **options)
