"""Where an image stands in a prompt: one placeholder there, a row of tokens for the model.

One tile, with ``n`` tokens a tile::

    <|image_start|> <|image|> n·<|patch|> <|image_end|>

A grid of R x C tiles, here 2 x 2::

    <|image_start|>
    n·<|patch|> <|tile_x_separator|> n·<|patch|> <|tile_y_separator|>
    n·<|patch|> <|tile_x_separator|> n·<|patch|> <|tile_y_separator|>
    <|image|> n·<|patch|> <|image_end|>

Vision features go to the ``<|patch|>`` places in order, so the overview's come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ..errors import ImageError, TokenizerError
from .plan import ImagePlan

__all__ = [
    "ImageTokens",
    "check_patches",
    "check_places",
    "expand_placeholders",
    "image_prompt_tokens",
]


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """Ids of the six special tokens of images; the defaults are those of Scout and Maverick.

    ``image`` is the placeholder in a prompt. ``patch`` is what vision features replace.
    """

    image_start: int = 200080
    image_end: int = 200081
    tile_x_separator: int = 200084
    tile_y_separator: int = 200085
    image: int = 200090
    patch: int = 200092

    @classmethod
    def from_special_tokens(cls, special_tokens: Mapping[str, int]) -> ImageTokens:
        """The ids in a tokenizer's mapping from name to id (`Tokenizer.special_tokens`).

        Raises:
            TokenizerError: A name is missing.
        """
        names = {field.name: f"<|{field.name}|>" for field in fields(cls)}
        missing = [name for name in names.values() if name not in special_tokens]
        if missing:
            raise TokenizerError(f"the tokenizer cannot write images: it has no {missing[0]}")
        return cls(**{field: special_tokens[name] for field, name in names.items()})


def image_prompt_tokens(plan: ImagePlan, ids: ImageTokens) -> list[int]:
    """The tokens of one image, `ImagePlan.num_tokens` of them.

    >>> from llama4rs.images import plan_image
    >>> len(image_prompt_tokens(plan_image(512, 512), ImageTokens()))
    727
    """
    tile = [ids.patch] * plan.tokens_per_tile
    tokens = [ids.image_start]
    if plan.canvas.has_overview:
        row = [*tile, ids.tile_x_separator] * plan.canvas.cols
        row[-1] = ids.tile_y_separator
        tokens += row * plan.canvas.rows
    return [*tokens, ids.image, *tile, ids.image_end]


def expand_placeholders(
    token_ids: Sequence[int], plans: Sequence[ImagePlan], ids: ImageTokens
) -> list[int]:
    """A prompt with each ``<|image|>`` replaced by the tokens of its image, in order.

    Raises:
        ImageError: More images than placeholders or fewer, or a prompt that is expanded already.
    """
    if ids.patch in token_ids:
        raise ImageError("the prompt holds <|patch|> tokens: its images are expanded already")
    check_places(token_ids, len(plans), ids)
    remaining = iter(plans)
    expanded: list[int] = []
    for token in token_ids:
        if token == ids.image:
            expanded += image_prompt_tokens(next(remaining), ids)
        else:
            expanded.append(token)
    return expanded


def check_places(token_ids: Sequence[int], num_images: int, ids: ImageTokens) -> None:
    """Make sure that a prompt has one ``<|image|>`` for each image.

    Raises:
        ImageError: It has not.
    """
    num_places = token_ids.count(ids.image)
    if num_places != num_images:
        raise ImageError(
            f"{_count(num_images, 'image')} for {_count(num_places, '<|image|> placeholder')} "
            "in the prompt\nhint: give one image for each placeholder, in order"
        )


def check_patches(token_ids: Sequence[int], plans: Sequence[ImagePlan], ids: ImageTokens) -> None:
    """Make sure that an expanded prompt has one ``<|patch|>`` for each row of features.

    Raises:
        ImageError: It has not.
    """
    num_places = token_ids.count(ids.patch)
    num_features = sum(plan.num_patch_tokens for plan in plans)
    if num_places != num_features:
        raise ImageError(
            f"{_count(len(plans), 'image')} with {_count(num_features, 'vision token')} for "
            f"{_count(num_places, '<|patch|> token')} in the prompt"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
