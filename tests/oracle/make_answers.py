"""Asks transformers for the answers and stores them; ``make oracle`` runs this.

Needs torch and transformers 5. Each model goes through a real checkpoint directory (bfloat16, two
shards, the older RoPE keys), so this also shows that transformers accepts what ``make_checkpoint``
writes. It computes in float32, with eager attention and no cache.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from oracle.answers import ANSWERS_PATH, save_answers
from oracle.checkpoint import make_checkpoint
from oracle.configs import ALL, MULTIMODAL, SEEDS, TEXT
from oracle.prompts import NUM_GREEDY_TOKENS, image_prompts, text_prompts

Config = dict[str, Any]
Answers = dict[str, np.ndarray]


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    answers: Answers = {}
    for name, config in TEXT.items():
        model = load_model(transformers.Llama4ForCausalLM, name, config)
        for prompt, ids in text_prompts(config).items():
            answers |= answer_text(f"{name}/{prompt}", model, ids)
    for name, config in MULTIMODAL.items():
        model = load_model(transformers.Llama4ForConditionalGeneration, name, config)
        # The vision RoPE table is complex; a careless cast would drop its imaginary half.
        assert model.vision_model.rotary_embedding.freqs_ci.dtype == torch.complex64
        for prompt, (ids, pixels) in image_prompts(config).items():
            pixel_values = torch.from_numpy(pixels)
            answers |= answer_vision(f"{name}/{prompt}", model, pixel_values)
            answers |= answer_text(f"{name}/{prompt}", model, ids, pixel_values=pixel_values)
    save_answers(answers, metadata())
    report(answers)


def load_model(model_class: Any, name: str, config: Config) -> torch.nn.Module:
    """The model of a configuration in float32; refuses if any tensor was missing or unknown."""
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(
            directory, config, SEEDS[name], dtype="bfloat16", num_shards=2, rope_keys="old"
        )
        model, info = model_class.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(problem), f"{name}: {problem} {info[problem]}"
    return model.eval()


def answer_text(key: str, model: torch.nn.Module, ids: list[int], **images: Any) -> Answers:
    """Logits of the prompt, then greedy tokens, each from a full forward pass."""
    sequence = list(ids)
    prompt_logits = next_logits = _logits(model, sequence, **images)
    for step in range(NUM_GREEDY_TOKENS):
        if step > 0:
            next_logits = _logits(model, sequence, **images)
        sequence.append(int(next_logits[-1].argmax()))
    return {
        f"{key}/ids": np.array(ids, dtype=np.int64),
        f"{key}/logits": prompt_logits,
        f"{key}/greedy": np.array(sequence[len(ids) :], dtype=np.int64),
    }


def _logits(model: torch.nn.Module, ids: list[int], **images: Any) -> np.ndarray:
    """[T, V]"""
    return model(input_ids=torch.tensor([ids]), use_cache=False, **images).logits[0].numpy()


def answer_vision(key: str, model: torch.nn.Module, pixel_values: torch.Tensor) -> Answers:
    encoded = model.vision_model(pixel_values).last_hidden_state
    features = model.multi_modal_projector(encoded.reshape(-1, encoded.shape[-1]))
    num_tiles = len(pixel_values)
    return {
        f"{key}/encoded": encoded.reshape(num_tiles, -1, encoded.shape[-1]).numpy(),
        f"{key}/image_features": features.numpy(),
    }


def metadata() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "seeds": {name: SEEDS[name] for name in ALL},
    }


def report(answers: Answers) -> None:
    for key, array in answers.items():
        if array.dtype == np.float32:
            print(f"{key:45} {array.shape!s:16} standard deviation {array.std():.2f}")
    print(f"{ANSWERS_PATH.name}: {ANSWERS_PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
