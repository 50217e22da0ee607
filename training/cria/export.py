"""Write a checkpoint in the published layout, and check it against stock transformers."""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from cria.config import TEXT, VISION, published_config
from cria.model import Cria
from cria.quant import packed_bytes
from cria.questions import PICTURE_SETS, passkey_questions, picture_questions
from cria.tokenizer import load_tokenizer, special_ids, tokenizer_config
from cria.vision import to_pixels

FOLDER = Path(__file__).parent
TOLERANCE = 1e-4


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/cria"), help="folder of the run")
    parser.add_argument("--weights", default="best.pt", help="file with the weights in the run")
    parser.add_argument("--out", type=Path, default=FOLDER / "checkpoint")
    parser.add_argument("--no-check", action="store_true", help="do not compare with transformers")
    return parser.parse_args()


def write_json(path: Path, content: dict) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def preprocessor_config() -> dict:
    """Return `preprocessor_config.json`."""
    return {
        "processor_class": "Llama4Processor",
        "image_processor_type": "Llama4ImageProcessorFast",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": {"height": VISION.tile, "width": VISION.tile},
        "max_patches": VISION.max_tiles,
        "resize_to_max_canvas": False,
    }


def processor_config() -> dict:
    """Return `processor_config.json`."""
    return {
        "processor_class": "Llama4Processor",
        "patch_size": VISION.patch,
        "pixel_shuffle_ratio": 0.5,
        "fake_image_token": "<|image|>",
        "image_token": "<|image|>",
        "start_of_image_token": "<|image_start|>",
        "end_of_image_token": "<|image_end|>",
        "patch_token": "<|patch|>",
        "tile_x_separator_token": "<|tile_x_separator|>",
        "tile_y_separator_token": "<|tile_y_separator|>",
    }


def generation_config(ids: dict[str, int]) -> dict:
    """Return `generation_config.json`; greedy decoding is the default."""
    return {
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": [ids[t] for t in ("<|end_of_text|>", "<|eom|>", "<|eot|>")],
        "pad_token_id": ids["<|finetune_right_pad|>"],
        "do_sample": False,
    }


def write_checkpoint(model: Cria, tokenizer: Tokenizer, out: Path) -> None:
    """Write all files of the checkpoint into a new folder, then put it in place."""
    draft = out.with_name(out.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    ids = special_ids(tokenizer)
    tensors = {k: v.detach().bfloat16().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
    (draft / "model.safetensors").chmod(0o644)
    write_json(draft / "config.json", published_config(ids))
    write_json(draft / "generation_config.json", generation_config(ids))
    write_json(draft / "preprocessor_config.json", preprocessor_config())
    write_json(draft / "processor_config.json", processor_config())
    tokenizer.save(str(draft / "tokenizer.json"))
    (draft / "tokenizer_config.json").write_text(tokenizer_config())
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(draft, out)
    shutil.rmtree(old, ignore_errors=True)


def load_model(folder: Path) -> Cria:
    """Load an exported checkpoint in float32."""
    model = Cria(TEXT, VISION)
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(tensors)
    return model.eval()


@torch.no_grad()
def difference_from_transformers(folder: Path) -> float:
    """Return the largest logit difference from transformers on text and picture prompts."""
    from transformers import Llama4ForConditionalGeneration

    stock = Llama4ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    own = load_model(folder)
    tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
    patch_id = tokenizer.token_to_id("<|patch|>")
    prompts = passkey_questions(tokenizer, 1, 2, 31) + passkey_questions(tokenizer, 5, 2, 31)
    for group in PICTURE_SETS:
        prompts += picture_questions(tokenizer, group, 3, 31, ("place", "count", "describe"))
    largest = 0.0
    for question in prompts:
        ids = torch.tensor([question.prompt + question.answer])
        pixels = None if question.tiles is None else to_pixels(question.tiles)
        features = None if pixels is None else own.image_features(pixels)
        hidden, _, _ = own.hidden(ids, torch.tensor([ids.shape[1]]), features, patch_id)
        theirs = stock(input_ids=ids, pixel_values=pixels, use_cache=False).logits
        largest = max(largest, float((own.logits(hidden) - theirs).abs().max()))
    return largest


def main() -> None:
    """Export and check."""
    options = parse_arguments()
    state = torch.load(options.run / options.weights, weights_only=True)
    model = Cria(TEXT, VISION)
    model.load_state_dict(state["model"])
    tokenizer = load_tokenizer(str(options.run / "tokenizer.json"))
    write_checkpoint(model, tokenizer, options.out)
    size = (options.out / "model.safetensors").stat().st_size
    packed = packed_bytes(model) + (options.out / "tokenizer.json").stat().st_size
    print(f"wrote {options.out}: {size:,} bytes bf16, {packed:,} bytes packed with tokenizer")
    if not options.no_check:
        largest = difference_from_transformers(options.out)
        print(f"largest logit difference from transformers: {largest:.2e}")
        if largest > TOLERANCE:
            raise SystemExit(f"more than {TOLERANCE}")


if __name__ == "__main__":
    main()
