"""The inputs of the stored answers: token lists and random pixel tiles."""

from typing import Any

import numpy as np

from oracle.layer_kinds import is_multimodal, text_config, tokens_per_tile
from oracle.random_numbers import bell, integers

Config = dict[str, Any]

TEXT_PROMPT_LENGTHS = (43, 60)
"""Both cross at least five attention chunks of seven or eight tokens."""
NUM_GREEDY_TOKENS = 26
"""At least three more chunk borders."""
IMAGE_PROMPTS = {"one_image": (1,), "three_images": (3, 1, 5)}
"""Prompt name -> tiles of each image. An image cut into n > 1 tiles adds one global tile."""


def text_prompts(config: Config) -> dict[str, list[int]]:
    """Prompt name -> token ids."""
    return {
        f"{length}_tokens": _words(config, f"prompt of {length}", length)
        for length in TEXT_PROMPT_LENGTHS
    }


def image_prompts(config: Config) -> dict[str, tuple[list[int], np.ndarray]]:
    """Prompt name -> token ids and the float32 tiles [N, 3, size, size] they refer to."""
    return {
        name: (_image_prompt_ids(config, name, tiles), _tiles(config, name, sum(tiles)))
        for name, tiles in IMAGE_PROMPTS.items()
    }


def _image_prompt_ids(config: Config, name: str, tiles_per_image: tuple[int, ...]) -> list[int]:
    """Words, then for each image: begin, patch tokens, end, words."""
    ids = _words(config, f"{name} opening", 5)
    for image, num_tiles in enumerate(tiles_per_image):
        patches = [config["image_token_index"]] * (num_tiles * tokens_per_tile(config))
        ids += [config["boi_token_index"], *patches, config["eoi_token_index"]]
        ids += _words(config, f"{name} after {image}", 6)
    return ids


def _words(config: Config, key: str, count: int) -> list[int]:
    reserved_for_images = 8 if is_multimodal(config) else 0
    below = text_config(config)["vocab_size"] - reserved_for_images
    return integers(key, count, below).tolist()


def _tiles(config: Config, key: str, num_tiles: int) -> np.ndarray:
    """Noise in the range of normalised pixels, -1..1."""
    size = config["vision_config"]["image_size"]
    noise = 0.5 * bell(f"{key} pixels", (num_tiles, 3, size, size))
    return noise.clip(-1, 1).astype(np.float32)
