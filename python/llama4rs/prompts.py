"""What may be given as a prompt, and how it becomes token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from .errors import RequestError

__all__ = ["Batch", "Message", "Prompt", "is_batch", "is_conversation", "plain_prompt"]

Message: TypeAlias = Mapping[str, Any]
"""``{"role": ..., "content": ...}``; see `llama4rs.ChatTemplate` for all that is understood."""

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]
"""A raw text, token ids, or a conversation."""

Batch: TypeAlias = list[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]]
"""Several prompts of one kind; a list."""

_ACCEPTED = "a string, a list of token ids, a list of messages, or a list of several of these"


def plain_prompt(prompt: Any) -> Any:
    """`prompt` with arrays turned into lists.

    Raises:
        RequestError: It is no prompt and no batch.
    """
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        raise RequestError("a conversation is a list of messages; put this one into a list")
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise RequestError(f"a prompt is {_ACCEPTED}; got {type(prompt).__name__}")
    kinds = {_kind(item) for item in prompt}
    if len(kinds) > 1 or "other" in kinds:
        names = sorted({type(item).__name__ for item in prompt})
        raise RequestError(f"a prompt is {_ACCEPTED}; got a list of {' and '.join(names)}")
    return prompt


def is_batch(prompt: Prompt | Batch) -> bool:
    """Whether this is a list of prompts; ``[]`` is an empty one."""
    return not isinstance(prompt, str) and (not prompt or _kind(prompt[0]) == "prompt")


def is_conversation(prompt: Prompt) -> bool:
    """Whether this is a list of messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and _kind(prompt[0]) == "message"


def _kind(item: object) -> str:
    if isinstance(item, Mapping):
        return "message"
    if isinstance(item, bool):
        return "other"
    if hasattr(item, "__index__"):
        return "id"
    if isinstance(item, (str, Sequence)) or hasattr(item, "tolist"):
        return "prompt"
    return "other"
