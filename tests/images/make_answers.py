"""Asks the image processor of transformers and stores its answers; needs torch and torchvision.

    python tests/images/make_answers.py

Sizes and canvases are taken down where the processor computes them, from its own calls.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.llama4 import image_processing_llama4 as reference
from transformers.models.llama4.processing_llama4 import Llama4Processor

sys.path.insert(0, str(Path(__file__).parents[1]))

from images.cases import (
    ANSWERS,
    CANVAS_SETTINGS,
    MODE_CASES,
    NORMALIZATIONS,
    NUM_TOKEN_CASES,
    PIXEL_CASES,
    TOKEN_NAMES,
    TOKEN_SETTINGS,
    Setting,
    mode_picture,
    sampled,
    sizes,
)
from images.pictures import picture

Answers = dict[str, npt.NDArray[Any]]


def main() -> None:
    torch.set_num_threads(1)
    answers = canvas_answers() | pixel_answers() | normalization_answers() | token_answers()
    ANSWERS.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(ANSWERS, **answers)
    print(f"{ANSWERS}: {ANSWERS.stat().st_size} bytes")


def processor(setting: Setting, **changes: Any) -> reference.Llama4ImageProcessor:
    size = {"height": setting.tile_size, "width": setting.tile_size}
    return reference.Llama4ImageProcessor(
        size=size,
        max_patches=setting.max_tiles,
        resize_to_max_canvas=setting.resize_to_max_canvas,
        **changes,
    )


# ----------------------------------------------------------------------------------------- canvas


class StopError(Exception):
    """The size is known; nothing more is wanted of the processor."""


def canvas_answers() -> Answers:
    """For each setting [number, 6]: width, height, rows, columns, resized width and height."""
    return {
        f"canvas/{i}": np.array(
            [[w, h, *canvas(int(w), int(h), setting)] for w, h in sizes(setting)], dtype=np.uint16
        )
        for i, setting in enumerate(CANVAS_SETTINGS)
    }


def canvas(width: int, height: int, setting: Setting) -> tuple[int, int, int, int]:
    seen: list[Any] = []
    choose = reference.get_best_fit

    def note_canvas(*args: Any, **kwargs: Any) -> Any:
        seen.append(choose(*args, **kwargs))
        return seen[-1]

    def note_size(image: Any, size: Any, **_: Any) -> Any:
        seen.append(size)
        raise StopError

    made = processor(setting, disable_grouping=True)
    made.resize = note_size
    reference.get_best_fit = note_canvas
    try:
        black = torch.zeros(1, dtype=torch.uint8).expand(3, height, width)
        made(black, do_convert_rgb=False, input_data_format="channels_first")
    except StopError:
        pass
    finally:
        reference.get_best_fit = choose
    rows, cols = (int(side) // setting.tile_size for side in seen[0])
    return rows, cols, int(seen[1].width), int(seen[1].height)


# ----------------------------------------------------------------------------------------- pixels


def pixel_answers() -> Answers:
    """Bytes of the tiles, before they are normalized."""
    answers: Answers = {}
    for i, (width, height, setting) in enumerate(PIXEL_CASES):
        image = Image.fromarray(picture(width, height, i))
        answers[f"pixels/{i}"] = sampled(raw_tiles(image, setting))
    for case in MODE_CASES:
        answers[f"modes/{case}"] = raw_tiles(mode_picture(case), Setting(56, 16))
    return answers


def raw_tiles(image: Image.Image, setting: Setting) -> npt.NDArray[np.uint8]:
    made = processor(setting, do_rescale=False, do_normalize=False)
    tiles = made(image, return_tensors="pt")["pixel_values"]
    assert tiles.dtype == torch.uint8
    return tiles.numpy()


def normalization_answers() -> Answers:
    """What becomes of each byte, [3, 256]."""
    levels = np.resize(np.arange(256, dtype=np.uint8), (56, 56, 1)).repeat(3, axis=2)
    answers: Answers = {}
    for name, (mean, std) in NORMALIZATIONS.items():
        made = processor(Setting(56, 16), image_mean=list(mean), image_std=list(std))
        values = made(Image.fromarray(levels), return_tensors="pt")["pixel_values"]
        answers[f"normalization/{name}"] = values.float().numpy().reshape(3, -1)[:, :256]
    return answers


# ----------------------------------------------------------------------------------------- tokens


def token_answers() -> Answers:
    """Prompts with placeholders, and what the processor makes of them for images of given sizes.

    ``lengths`` [cases, 4]: setting, prompt tokens, images, tokens of the answer; the other arrays
    hold the cases one after the other.
    """
    random = np.random.default_rng(7)
    tokenizer = small_tokenizer()
    processors = [
        Llama4Processor(processor(setting), tokenizer, patch_size=14, pixel_shuffle_ratio=0.5)
        for setting in TOKEN_SETTINGS
    ]
    prompts, image_sizes, expanded, lengths = [], [], [], []
    for case in range(NUM_TOKEN_CASES):
        index = 2 if case % 20 == 0 else case % 2
        tile = TOKEN_SETTINGS[index].tile_size
        chosen = random.integers(1, 5 * tile, (1 + case % 5, 2))
        words = [
            *random.choice(["a", "b", "c"], random.integers(0, 12)),
            *["<|image|>"] * len(chosen),
        ]
        random.shuffle(words)
        text = " ".join(words)
        images = [Image.new("RGB", (int(w), int(h))) for w, h in chosen]
        prompts.append(tokenizer(text)["input_ids"])
        image_sizes.append(chosen)
        expanded.append(processors[index](images=images, text=text)["input_ids"][0])
        lengths.append([index, len(prompts[-1]), len(chosen), len(expanded[-1])])
    return {
        "tokens/ids": np.array(
            [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in TOKEN_NAMES], dtype=np.uint8
        ),
        "tokens/lengths": np.array(lengths, dtype=np.uint16),
        "tokens/prompts": np.concatenate(prompts).astype(np.uint8),
        "tokens/sizes": np.concatenate(image_sizes).astype(np.uint16),
        "tokens/expanded": np.concatenate(expanded).astype(np.uint8),
    }


def small_tokenizer() -> PreTrainedTokenizerFast:
    """A few words, and the special tokens of images."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2, "c": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(
        [AddedToken(f"<|{name}|>", lstrip=True, rstrip=True) for name in TOKEN_NAMES]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


if __name__ == "__main__":
    main()
