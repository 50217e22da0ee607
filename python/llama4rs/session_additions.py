"""What a call adds to a session: its tokens, images and messages, encoded after what is there."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .encoding import EncodedPrompt
from .errors import ChatTemplateError, RequestError
from .image_arguments import part_source
from .prompts import is_conversation, plain_prompt
from .session_files import SessionState

if TYPE_CHECKING:
    from .encoding import PromptEncoder, Tools
    from .images import ImageSource
    from .prompts import Message, Prompt

__all__ = ["Addition", "added", "added_messages", "copied"]


class Addition:
    """A session as it will be.

    Attributes:
        state: With the new tokens.
        tokens: How many they are.
        closing: Tokens that end the assistant's message, where one comes.
    """

    def __init__(self, state: SessionState, tokens: int) -> None:
        self.state = state
        self.tokens = tokens
        self.closing: list[int] | None = None


def added(
    state: SessionState,
    encoder: PromptEncoder,
    piece: Prompt,
    images: Sequence[ImageSource] | None,
    tools: Tools | None,
    parse_special: bool,
) -> Addition:
    """A text, token ids or messages after `state`.

    Raises:
        As `Llama4.generate`; `ChatTemplateError` where the template cannot go on.
    """
    piece = plain_prompt(piece)
    if is_conversation(piece):
        if images is not None:
            raise TypeError("the images of a conversation belong into its messages")
        return added_messages(state, encoder, piece, tools, answer=False)  # type: ignore[arg-type]
    if tools is not None:
        raise TypeError("tools are for conversations; append a list of messages")
    encoded = EncodedPrompt([])
    if len(piece) or images:
        encoded = encoder.encode(
            piece, images=images, parse_special=parse_special, bos=not state.token_ids
        )
    return _grown(state, encoded)


def added_messages(
    state: SessionState,
    encoder: PromptEncoder,
    messages: Sequence[Message],
    tools: Tools | None,
    *,
    answer: bool,
) -> Addition:
    """Messages in the chat format, without what is there already; with `answer`, up to where
    the assistant's message begins.

    Raises:
        RequestError: Tools after the first messages.
        ChatTemplateError: A malformed conversation, or a template that cannot go on.
        ImageError: Not an image.
    """
    from .chat_template import image_parts, normalize_messages

    before = state.messages
    if tools is None:
        tools = state.tools
    elif before and copied(tools) != state.tools:
        raise RequestError("the tools of a session come with its first messages")
    new = normalize_messages(messages)
    after = [*before, *new]

    def encoded(messages: Sequence[Message], answer: bool) -> list[int]:
        return encoder.chat_template.encode(
            encoder.tokenizer, messages, tools, add_generation_prompt=answer
        )

    known = encoded(before, False) if before else []
    token_ids = encoded(after, answer)
    if token_ids[: len(known)] != known:
        raise ChatTemplateError(
            "the model's chat template writes earlier messages in another way when new ones "
            "come, so a session cannot go on\nhint: use chat() of the model itself"
        )
    token_ids = token_ids[len(known) :]
    if state.token_ids and not known and token_ids[:1] == [encoder.tokenizer.bos_id]:
        token_ids = token_ids[1:]
    sources = [part_source(part) for part in image_parts(messages)]
    addition = _grown(state, encoder.with_images(token_ids, sources))
    addition.state.messages = [*before, *copied(new)]
    addition.state.tools = copied(tools)
    if answer:
        addition.closing = _closing(encoder.tokenizer, encoded, after)
    return addition


def copied(value: Any) -> Any:
    """A copy of a JSON value: what the caller does to it later is not done to the session."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(item) for item in value]
    return value


def _grown(state: SessionState, encoded: EncodedPrompt) -> Addition:
    state = state.copy()
    state.token_ids.extend(array("I", encoded.token_ids))
    if encoded.image_features is not None:
        state.features.append(encoded.image_features)
    return Addition(state, len(encoded.token_ids))


def _closing(
    tokenizer: Any, encoded: Callable[[Sequence[Message], bool], list[int]], messages: list[Any]
) -> list[int]:
    """What the template writes after an assistant's message."""
    head = encoded(messages, True)
    whole = encoded([*messages, {"role": "assistant", "content": "x"}], False)
    head += tokenizer.encode("x")
    return whole[len(head) :] if whole[: len(head)] == head else []
