"""The images of prompts: what users give, to tokens in the prompt and features for the engine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import (
    CheckpointError,
    ImageError,
    RequestError,
    TokenizerError,
    numbered,
    option_errors,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from ._llama4rs import Engine
    from .config import Config
    from .image_cache import ImageCache
    from .images import ImageConfig, ImagePlan, ImageSource, ImageTokens
    from .tokenizer import Tokenizer

__all__ = ["PromptImages"]

_NETWORK_URL = re.compile(r"https?://", re.IGNORECASE)


class PromptImages:
    """Puts images into the prompts of one model. Safe to use from many threads.

    Args:
        folder: The model's directory.
        config: Its configuration.
        engine: Encodes tiles.
        tokenizer: Knows the special tokens of images; without it only prompts work in which the
            images are expanded already.
        cache: Where features are kept.
        allow_urls: Whether images may be fetched from the network.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        engine: Engine,
        tokenizer: Tokenizer | None,
        *,
        cache: ImageCache,
        allow_urls: bool,
    ) -> None:
        self.cache = cache
        self.supported = "vision_config" in config
        """Whether the model has a vision part."""
        self._folder = folder
        self._config = config
        self._engine = engine
        self._tokenizer = tokenizer
        self._allow_urls = allow_urls

    def plan(self, width: int, height: int) -> ImagePlan:
        """Tiles and tokens of an image of this size."""
        from .images import plan_image

        return plan_image(width, height, self._settings)

    def encode(
        self, token_ids: Sequence[int], sources: Sequence[ImageSource], *, first: bool = False
    ) -> tuple[Sequence[int], npt.NDArray[np.float32]]:
        """A prompt with its images expanded to tokens, and the features for the engine.

        Everything that can be wrong is found before the first image is encoded. Images are decoded
        one after the other, and encoded one after the other: what stays of each is its tiles
        (bytes), then its features.

        Args:
            token_ids: With an ``<|image|>`` token for each image, or expanded already.
            sources: The images in order, at least one.
            first: Put the images before everything but BOS if the prompt has no place for any.

        Raises:
            ImageError: Not an image, or not as many as the prompt has places.
            RequestError: The model does not read images, or the prompt becomes too long.
            TokenizerError: The ids of the special tokens of images are not known.
        """
        from . import images

        self._check_supported()
        is_expanded = self._patch_id in token_ids
        ids = images.ImageTokens(patch=self._patch_id) if is_expanded else self._special_ids
        if not is_expanded:
            if first and ids.image not in token_ids:
                token_ids = self._with_places_first(token_ids, len(sources), ids)
            images.check_places(token_ids, len(sources), ids)

        plans: list[ImagePlan] = []
        tiles: list[npt.NDArray[np.uint8]] = []
        num_tokens = len(token_ids)
        for index, source in enumerate(sources):
            plan, image = self._prepared(source, index, len(sources))
            plans.append(plan)
            tiles.append(image)
            if not is_expanded:
                num_tokens += plan.num_tokens - 1
                self._check_room(num_tokens, index, len(sources))
        if is_expanded:
            images.check_patches(token_ids, plans, ids)
        else:
            token_ids = images.expand_placeholders(token_ids, plans, ids)
        return token_ids, self._features(tiles, plans)

    def check_none(self, token_ids: Sequence[int]) -> None:
        """Make sure that a prompt without images has no place for one.

        Raises:
            ImageError: It has.
        """
        if not self.supported or self._tokenizer is None:
            return
        # Both occur in an image that is expanded.
        marks = {self._tokenizer.special_tokens.get("<|image|>"), self._config_id("image")}
        if not marks.isdisjoint(token_ids):
            raise ImageError(
                "the prompt has <|image|> or <|patch|> tokens and no images\n"
                "hint: give images=[...], or parse_special=False if that is mere text"
            )

    def _features(
        self, tiles: Sequence[npt.NDArray[np.uint8]], plans: Sequence[ImagePlan]
    ) -> npt.NDArray[np.float32]:
        """``[patches, hidden]`` of all images, which are encoded one by one."""
        if len(tiles) == 1:
            return self._encoded(tiles[0])
        import numpy as np

        num_rows = sum(plan.num_patch_tokens for plan in plans)
        features = np.empty((num_rows, self._config["hidden_size"]), dtype=np.float32)
        row = 0
        for image, plan in zip(tiles, plans, strict=True):
            features[row : row + plan.num_patch_tokens] = self._encoded(image)
            row += plan.num_patch_tokens
        return features

    def _encoded(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """``[patches, hidden]`` of one image, from the cache if it is there."""
        from .images import normalize

        key = hashlib.sha256(tiles.data).digest()
        features = self.cache.find(key)
        if features is None:
            with option_errors():
                features = self._engine.encode_image(normalize(tiles, self._settings))
            features.flags.writeable = False  # requests share it
            self.cache.keep(key, features)
        return features

    def _prepared(
        self, source: ImageSource, index: int, num_images: int
    ) -> tuple[ImagePlan, npt.NDArray[np.uint8]]:
        """An image's plan and its tiles. The decoded picture is gone afterwards."""
        from .images import plan_image, preprocess

        with numbered("image", index, num_images):
            picture = self._loaded(source)
            return plan_image(*picture.size, self._settings), preprocess(picture, self._settings)

    def _loaded(self, source: ImageSource) -> Image.Image:
        from .images import load_image

        if isinstance(source, str) and not self._allow_urls and _NETWORK_URL.match(source):
            raise ImageError(
                "fetching images from the network is off\nhint: open the model with "
                "allow_image_urls=True if whoever wrote this URL may choose what is fetched here"
            )
        return load_image(source, allow_urls=self._allow_urls)

    def _check_supported(self) -> None:
        if not self.supported:
            raise RequestError(
                f"the model in {self._folder} reads no images: it has no vision part"
            )

    def _check_room(self, num_tokens: int, index: int, num_images: int) -> None:
        limit = self._engine.max_context
        if num_tokens > limit:
            upto = "image" if num_images == 1 else f"first {index + 1} of {num_images} images"
            raise RequestError(
                f"with its {upto} the prompt has {num_tokens} tokens, and the context holds "
                f"{limit}\nhint: show fewer or smaller images, or open the model with a larger "
                "max_context"
            )

    def _with_places_first(
        self, token_ids: Sequence[int], num_images: int, ids: ImageTokens
    ) -> list[int]:
        bos = self._tokenizer.bos_id if self._tokenizer else None
        start = 1 if token_ids and token_ids[0] == bos else 0
        return [*token_ids[:start], *[ids.image] * num_images, *token_ids[start:]]

    @cached_property
    def _settings(self) -> ImageConfig:
        from .images import ImageConfig

        self._check_supported()
        return ImageConfig.from_directory(self._folder)

    @cached_property
    def _patch_id(self) -> int:
        """The token whose embeddings the engine replaces."""
        patch = self._config_id("image")
        if patch is None:
            raise CheckpointError(f"config.json in {self._folder} has no image_token_index")
        return patch

    @cached_property
    def _special_ids(self) -> ImageTokens:
        from .images import ImageTokens

        if self._tokenizer is not None:
            ids = ImageTokens.from_special_tokens(self._tokenizer.special_tokens)
            if ids.patch != self._patch_id:
                raise TokenizerError(
                    f"the tokenizer's <|patch|> is {ids.patch}, and in config.json "
                    f"image_token_index is {self._patch_id}: they are not of the same model"
                )
            return ids
        published = ImageTokens()
        known = (self._config_id("boi"), self._config_id("eoi"), self._patch_id)
        if known == (published.image_start, published.image_end, published.patch):
            return published
        raise TokenizerError(
            f"the model in {self._folder} has no tokenizer, so the ids of <|image|>, "
            "<|tile_x_separator|> and <|tile_y_separator|> are not known\nhint: pass tokenizer=, "
            f"or token ids with {self._patch_id} for every patch of the images"
        )

    def _config_id(self, name: str) -> int | None:
        token: int | None = self._config.get(f"{name}_token_index")
        return self._config.get(f"{name}_token_id") if token is None else token
