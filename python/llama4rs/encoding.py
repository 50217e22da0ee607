"""From a prompt of any kind to what the engine takes: token ids, and features for its images."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ImageError, RequestError, TokenizerError, option_errors
from .prompts import is_batch, is_conversation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ._llama4rs import Engine
    from .chat import ChatTemplate
    from .images import ImageSource
    from .tokenizer import Tokenizer

__all__ = ["EncodedPrompt", "PromptEncoder"]

Tools = Sequence[Mapping[str, Any]]

_FEATURE_CACHE_BYTES = 256 << 20
_URL = re.compile(r"(https?|data):", re.IGNORECASE)


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

    def image_options(self) -> dict[str, Any]:
        """Keyword arguments for the engine; none without images."""
        return {} if self.image_features is None else {"image_features": self.image_features}


class PromptEncoder:
    """Encodes prompts for one model. Safe to use from many threads."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        tokenizer: Tokenizer | None,
        chat_template: ChatTemplate | None,
        *,
        allow_urls: bool,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._images = _ImageReader(folder, engine, allow_urls=allow_urls)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; a `TokenizerError` if there is none."""
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
            from .chat import ChatTemplate

            self._chat_template = ChatTemplate.from_tokenizer(self.tokenizer)
        return self._chat_template

    def encode(
        self,
        prompt: Any,
        *,
        tools: Tools | None = None,
        images: Sequence[ImageSource] | None = None,
        parse_special: bool = True,
    ) -> EncodedPrompt:
        """One prompt: a text, token ids, or a conversation (whose images are in its messages)."""
        if is_batch(prompt):
            raise RequestError("a batch in a batch" if prompt else "a prompt is empty")
        if is_conversation(prompt):
            from .chat import image_parts

            if images is not None:
                raise TypeError("the images of a conversation belong into its messages")
            token_ids = self.chat_template.encode(self.tokenizer, prompt, tools)
            sources = [_part_source(part) for part in image_parts(prompt)]
            return self._images.encode(token_ids, sources, self._tokenizer)
        if tools is not None:
            raise TypeError("tools are for conversations; give a list of messages, or use chat()")
        if isinstance(prompt, str):
            tokenizer = self.tokenizer
            bos = tokenizer.bos_id is not None
            token_ids = tokenizer.encode(prompt, bos=bos, parse_special=parse_special)
        else:
            token_ids = [token_id.__index__() for token_id in prompt]
        return self._images.encode(token_ids, images or (), self._tokenizer)


class _ImageReader:
    """Images to features. The last ones are kept, since a conversation shows them in each turn."""

    def __init__(self, folder: Path, engine: Engine, *, allow_urls: bool) -> None:
        self._folder = folder
        self._engine = engine
        self._allow_urls = allow_urls
        self._lock = threading.Lock()
        self._features: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()

    def encode(
        self, token_ids: Sequence[int], sources: Sequence[Any], tokenizer: Tokenizer | None
    ) -> EncodedPrompt:
        """Puts the images in the place of the ``<|image|>`` tokens of a prompt."""
        if not sources:
            return EncodedPrompt(token_ids)
        import numpy as np

        from . import images

        config = images.ImageConfig.from_directory(self._folder)
        ids = images.ImageTokens()
        if tokenizer is not None:
            ids = images.ImageTokens.from_special_tokens(tokenizer.special_tokens)
        pictures = [images.load_image(source, allow_urls=self._allow_urls) for source in sources]
        plans = [images.plan_image(*picture.size, config) for picture in pictures]
        expanded = images.expand_placeholders(token_ids, plans, ids)
        features = []
        for picture in pictures:
            tiles = images.preprocess(picture, config)
            digest = hashlib.sha256(tiles.data).digest()
            known = self._recall(digest)
            if known is None:
                with option_errors():
                    known = self._engine.encode_image(images.normalize(tiles, config))
                self._remember(digest, known)
            features.append(known)
        return EncodedPrompt(expanded, np.concatenate(features))

    def _recall(self, digest: bytes) -> npt.NDArray[np.float32] | None:
        with self._lock:
            if digest in self._features:
                self._features.move_to_end(digest)
            return self._features.get(digest)

    def _remember(self, digest: bytes, features: npt.NDArray[np.float32]) -> None:
        with self._lock:
            self._features[digest] = features
            size = sum(kept.nbytes for kept in self._features.values())
            while size > _FEATURE_CACHE_BYTES and len(self._features) > 1:
                size -= self._features.popitem(last=False)[1].nbytes


def _part_source(part: Mapping[str, Any]) -> Any:
    """What an image part of a message holds: ``{"type": "image", "image": source}``, with ``path``
    or ``url`` in place of ``image``, or ``{"type": "image_url", "image_url": {"url": ...}}``."""
    if part["type"] == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
    else:
        for key in ("image", "path"):
            if part.get(key) is not None:
                return part[key]
        url = part.get("url")
    # Whoever may only name URLs must not be able to name files.
    if not isinstance(url, str) or not _URL.match(url):
        raise ImageError(
            "an image part without an image\n"
            'hint: write {"type": "image", "image": path, bytes, PIL image or array}, or '
            '{"type": "image_url", "image_url": {"url": "data:..."}}'
        )
    return url
