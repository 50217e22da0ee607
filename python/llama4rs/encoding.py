"""From a prompt of any kind to what the engine takes: token ids, and features for its images."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .counts import is_count
from .errors import RequestError, TokenizerError, shown
from .image_arguments import image_list, part_source
from .prompts import is_batch, is_conversation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .chat_template import ChatTemplate
    from .images import ImageSource
    from .tokenizer import Tokenizer
    from .vision import PromptImages

__all__ = ["EncodedPrompt", "PromptEncoder"]

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt for the engine.

    Attributes:
        token_ids: The prompt; images are expanded to their patch tokens.
        image_features: ``float32 [patches, hidden]``, a row for each patch token in order; None
            without images.
    """

    token_ids: Sequence[int]
    image_features: npt.NDArray[np.float32] | None = None


class PromptEncoder:
    """Encodes prompts for one model. Safe to use from many threads."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer | None,
        chat_template: ChatTemplate | None,
        images: PromptImages,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._images = images

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: There is none.
        """
        if self._tokenizer is None:
            raise TokenizerError(
                f"the model in {self._folder} has no tokenizer\n"
                "hint: put tokenizer.json or tokenizer.model into that directory, pass "
                "tokenizer=, or use token ids"
            )
        return self._tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """The format of conversations: the one given, the checkpoint's own, or the built-in one."""
        if self._chat_template is None:
            from .chat_template import ChatTemplate

            self._chat_template = ChatTemplate.from_tokenizer(self.tokenizer)
        return self._chat_template

    def encode(
        self,
        prompt: Any,
        *,
        tools: Tools | None = None,
        images: Sequence[ImageSource] | None = None,
        parse_special: bool = True,
        bos: bool = True,
    ) -> EncodedPrompt:
        """One prompt: a text, token ids, or a conversation (whose images are in its messages).

        Images of a text that marks no place for them come first. Token ids have a place for each,
        or are expanded already. A text gets BOS, unless `bos` says that it goes on with another.

        Raises:
            RequestError: An empty prompt, a batch, or a number that cannot be a token id.
            TokenizerError, ChatTemplateError, ImageError: As for `Llama4.generate`.
            TypeError: Tools or images in a place where they cannot be.
        """
        if is_batch(prompt):
            raise RequestError("a batch in a batch" if prompt else "a prompt is empty")
        sources: Sequence[Any] = image_list(images)
        token_ids: Sequence[int]
        if is_conversation(prompt):
            from .chat_template import image_parts

            if images is not None:
                raise TypeError("the images of a conversation belong into its messages")
            token_ids = self.chat_template.encode(self.tokenizer, prompt, tools)
            sources = [part_source(part) for part in image_parts(prompt)]
        elif tools is not None:
            raise TypeError("tools are for conversations; give a list of messages, or use chat()")
        elif isinstance(prompt, str):
            tokenizer = self.tokenizer
            bos = bos and tokenizer.bos_id is not None
            token_ids = tokenizer.encode(prompt, bos=bos, parse_special=parse_special)
        else:
            token_ids = _token_ids(prompt)
            if images is None:
                return EncodedPrompt(token_ids)
        return self.with_images(token_ids, sources, first=isinstance(prompt, str))

    def with_images(
        self, token_ids: Sequence[int], sources: Sequence[Any], *, first: bool = False
    ) -> EncodedPrompt:
        """Token ids that have a place for each image; with `first`, images that have none come
        before everything but BOS."""
        if not sources:
            self._images.check_none(token_ids)
            return EncodedPrompt(token_ids)
        return EncodedPrompt(*self._images.encode(token_ids, sources, first=first))


def _token_ids(prompt: Sequence[Any]) -> array[int]:
    """Integers of any kind as the core reads them fastest.

    Raises:
        RequestError: One is no token id of any model.
    """
    try:
        return array("I", prompt)
    except (OverflowError, TypeError):
        for index, item in enumerate(prompt):
            if not is_count(item, 0, (1 << 32) - 1):
                raise RequestError(
                    f"token id {shown(item)} is outside of the vocabulary (prompt[{index}])"
                ) from None
        raise
