"""`ChatTemplate`: messages in, text or token ids out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ChatTemplateError, shown
from ..tokenizer import Tokenizer
from .environment import STAND_INS, compiled, environment, rendered
from .injection import Swap, needed_characters, strings
from .messages import Message, checked_tools, image_parts, normalize_messages

__all__ = ["IMAGE_TOKEN", "ChatTemplate"]

IMAGE_TOKEN = "<|image|>"
"""What a template writes in the place of one image."""

_BUILTIN = Path(__file__).parent.parent / "templates" / "llama4.jinja"
_RESERVED = ("bos_token", "eos_token", STAND_INS)

JSONValue = Any


class ChatTemplate:
    """A prompt format: messages in, text or token ids out.

    Args:
        source: A Jinja template; None for the built-in one.
        tool_source: Another template for prompts with tools; None to use ``source`` for all.
        bos_token: Text of the token that starts a prompt.
        eos_token: Text of the token that ends a turn; the built-in template does not use it.

    Raises:
        ChatTemplateError: The template has a syntax error.

    >>> template = ChatTemplate()
    >>> template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=False)
    '<|begin_of_text|><|header_start|>user<|header_end|>\\n\\nHi<|eot|>'
    """

    def __init__(
        self,
        source: str | None = None,
        *,
        tool_source: str | None = None,
        bos_token: str = "<|begin_of_text|>",
        eos_token: str = "<|eot|>",
    ) -> None:
        given = (text for text in (source, tool_source) if text is not None)
        for text in (*given, bos_token, eos_token):
            if not isinstance(text, str):
                raise ChatTemplateError(
                    f"a chat template and the names of its tokens are texts, got {shown(text)}"
                )
        self.is_builtin = source is None
        self.source = _BUILTIN.read_text("utf-8") if source is None else source
        self.bos_token = bos_token
        self.eos_token = eos_token
        jinja = environment()
        self._template = compiled(jinja, self.source)
        self._tool_source = tool_source or self.source
        self._tool_template = compiled(jinja, tool_source) if tool_source else self._template

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The template that came with a tokenizer's checkpoint, else the built-in one.

        Raises:
            ChatTemplateError: The checkpoint's template has a syntax error.
        """
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(f"a chat template comes with a Tokenizer, got {shown(tokenizer)}")
        return cls(
            tokenizer.chat_template,
            tool_source=tokenizer.chat_template_for_tools,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """A template from a Jinja file.

        Raises:
            ChatTemplateError: The file cannot be read, or has a syntax error.
        """
        try:
            return cls(Path(path).read_text("utf-8"))
        except (OSError, ValueError, TypeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ChatTemplateError(
                f"cannot read the chat template {shown(path)}: {reason}\n"
                "hint: give a file; ChatTemplate(text) takes the template itself"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Compiled templates cannot be copied.
        source = None if self.is_builtin else self.source
        tool_source = None if self._tool_source == self.source else self._tool_source
        return _made, (source, tool_source, self.bos_token, self.eos_token)

    def render(
        self,
        messages: Iterable[Message],
        tools: Iterable[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: JSONValue,
    ) -> str:
        """The prompt as text, for reading. For the model use :meth:`encode`: text alone does not
        say which special token names a user typed.

        Args:
            messages: The conversation, see :func:`normalize_messages`.
            tools: JSON descriptions of the functions on offer.
            add_generation_prompt: End with the header of the assistant's next message.
            kwargs: Variables for the template. The built-in one knows ``tools_in_user_message``
                (default True) and ``quote_tool_results`` (default False).

        Raises:
            ChatTemplateError: A message is malformed, or the template fails or drops an image.
        """
        text, swap = self._render(
            {"|"}, messages, tools, add_generation_prompt, self.bos_token, self.eos_token, kwargs
        )
        return swap.back(text)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Iterable[Message],
        tools: Iterable[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: JSONValue,
    ) -> list[int]:
        """The prompt as token ids: one BOS first, and one ``<|image|>`` id for each image.

        Special tokens come from the template only; names of special tokens in messages, tools and
        ``kwargs`` are encoded as text. Arguments and errors as for :meth:`render`.
        """
        text, swap = self._render(
            needed_characters(tokenizer.special_tokens),
            messages,
            tools,
            add_generation_prompt,
            tokenizer.bos_token,
            tokenizer.eos_token,
            kwargs,
        )
        ids: list[int] = []
        for run, special in tokenizer.split_special(text):
            ids += tokenizer.encode(swap.back(run))
            if special is not None:
                ids.append(special)
        bos = tokenizer.bos_id
        if bos is None:
            return ids
        start = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        return [bos, *ids[start:]]

    def _render(
        self,
        needed: set[str],
        messages: Iterable[Message],
        tools: Iterable[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        bos_token: str,
        eos_token: str,
        kwargs: Mapping[str, JSONValue],
    ) -> tuple[str, Swap]:
        """The template's output with stand-ins in it, and what takes them out."""
        for name in _RESERVED:
            if name in kwargs:
                raise ChatTemplateError(f"{name!r} cannot be passed as a template variable")
        conversation = normalize_messages(messages)
        offered = checked_tools(tools)
        template = self._tool_template if offered else self._template
        source = self._tool_source if offered else self.source
        try:
            given = (conversation, offered, dict(kwargs))
            swap = Swap(needed, [source, bos_token, eos_token, *strings(given)])
            conversation, offered, extra = swap.into(given)
        except RecursionError:
            raise ChatTemplateError("messages or tools are nested too deeply") from None
        text = rendered(
            template,
            messages=conversation,
            tools=offered,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token,
            eos_token=eos_token,
            **extra,
            **{STAND_INS: swap.stand_ins},
        )
        num_images = len(image_parts(conversation))
        num_written = text.count(IMAGE_TOKEN)
        if num_images != num_written:
            raise ChatTemplateError(
                f"the messages have {num_images} images and the chat template wrote {num_written} "
                f"{IMAGE_TOKEN} for them; the template does not support images in these places"
            )
        return text, swap


def _made(
    source: str | None, tool_source: str | None, bos_token: str, eos_token: str
) -> ChatTemplate:
    return ChatTemplate(source, tool_source=tool_source, bos_token=bos_token, eos_token=eos_token)
