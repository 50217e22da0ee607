"""What may be given as a prompt, and how it becomes token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import RequestError
from .image_arguments import image_list

if TYPE_CHECKING:
    from .images import ImageSource

__all__ = [
    "Batch",
    "Message",
    "Prompt",
    "conversation",
    "is_batch",
    "is_conversation",
    "plain_prompt",
]

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
    from ._llama4rs import are_plain_integers

    given = prompt
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        raise RequestError("a conversation is a list of messages; put this one into a list")
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise RequestError(f"a prompt is {_ACCEPTED}; got {type(given).__name__}")
    if are_plain_integers(prompt):
        return prompt
    # One of each type: there may be millions of tokens.
    items = dict(zip(map(type, prompt), prompt, strict=True)).values()
    kinds = {_kind(item) for item in items}
    if len(kinds) > 1 or "other" in kinds:
        names = sorted({type(item).__name__ for item in items})
        raise RequestError(f"a prompt is {_ACCEPTED}; got a list of {' and '.join(names)}")
    return prompt


def is_batch(prompt: Prompt | Batch) -> bool:
    """Whether this is a list of prompts; ``[]`` is an empty one."""
    return not isinstance(prompt, str) and (not prompt or _kind(prompt[0]) == "prompt")


def is_conversation(prompt: Prompt) -> bool:
    """Whether this is a list of messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and _kind(prompt[0]) == "message"


def conversation(
    messages: str | Sequence[Message], images: Sequence[ImageSource] | None
) -> Sequence[Message]:
    """What `chat` was given, as a list of messages.

    Raises:
        TypeError: Images beside a list of messages, or no list of images.
        RequestError: It is something else.
    """
    if isinstance(messages, str):
        pictures = [{"type": "image", "image": image} for image in image_list(images)]
        text = {"type": "text", "text": messages}
        return [{"role": "user", "content": [*pictures, text]}]
    if images is not None:
        raise TypeError("the images of a conversation belong into its messages")
    if not is_conversation(plain_prompt(messages)):
        raise RequestError(
            "chat takes a string or a list of messages such as "
            "{'role': 'user', 'content': 'Hello'}; use generate for other prompts"
        )
    return messages


def _kind(item: object) -> str:
    if isinstance(item, Mapping):
        return "message"
    if isinstance(item, bool):
        return "other"
    if isinstance(item, Sequence) or getattr(item, "ndim", None):
        return "prompt"
    if hasattr(item, "__index__"):
        return "id"
    return "other"
