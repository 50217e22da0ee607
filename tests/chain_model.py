"""A tiny checkpoint whose every next token is known: tests can expect exact text of the engine.

The tokens are bytes and a few special ones. All layers run, but their outputs are multiplied by
zero, so the last token alone decides: each token of a script is followed by the next byte of the
script, its last byte by ``<|eot|>``. At temperature 0 nothing else ever happens; higher ones bring
other tokens in.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from oracle.checkpoint import weights
from oracle.configs import MULTIMODAL, TEXT
from oracle.safetensors_file import write_safetensors

SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)
BOS, EOT = 256, 261
IMAGE_START, IMAGE_END, TILE_X, TILE_Y, IMAGE, PATCH = range(264, 270)
VOCAB = 288
MAX_CONTEXT = 2048
# What is sure to come next has this logit, everything else about 1 or less.
_LOGIT = 12.0

# Characters of one to three bytes; no byte occurs twice.
SCRIPT = "abcñ END|€xyz"
TOOL_CALL = "[f(x=12)]"


def make_chain_model(
    folder: str | Path,
    script: str = SCRIPT,
    *,
    tokenizer: bool = True,
    vision: bool = False,
    **files: object,
) -> Path:
    """Write the checkpoint; a prompt that ends in a newline brings out the script from its start.

    Args:
        folder: Where to; created if missing.
        script: Text whose UTF-8 bytes all differ, without a newline.
        tokenizer: False leaves out ``tokenizer.json``.
        vision: Add a vision tower with random weights, tiles of 56 pixels and 4 tokens.
        files: Further JSON files by name without suffix, such as ``generation_config={...}``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text: dict[str, object] = {
        "vocab_size": VOCAB,
        "num_hidden_layers": 4,
        "max_position_embeddings": MAX_CONTEXT,
        "bos_token_id": BOS,
        "eos_token_id": [EOT],
        "pad_token_id": 0,
    }
    if vision:
        whole = MULTIMODAL["vision_tiny_56"]
        ids = {"boi_token_index": IMAGE_START, "eoi_token_index": IMAGE_END}
        config = whole | ids | {"image_token_index": PATCH}
        config["text_config"] = whole["text_config"] | text
    else:
        config = TEXT["scout_like"] | text
    tensors = weights(config, 1)
    for name in tensors:
        if name.startswith("model.") and name.endswith(
            ("o_proj.weight", "down_proj", "down_proj.weight")
        ):
            tensors[name] = np.zeros_like(tensors[name])
    hidden = len(tensors["model.norm.weight"])
    rng = np.random.default_rng(1)
    embedding = rng.choice([-1.0, 1.0], size=(VOCAB, hidden)).astype(np.float32)
    head = np.zeros_like(embedding)
    head[_successors(script)] = embedding * np.float32(_LOGIT / hidden)
    tensors["model.embed_tokens.weight"] = embedding
    tensors["model.norm.weight"] = np.ones(hidden, np.float32)
    tensors["lm_head.weight"] = head
    if vision:
        in_text = ("model.", "lm_head.")
        tensors = {
            f"language_model.{name}" if name.startswith(in_text) else name: tensor
            for name, tensor in tensors.items()
        }
    write_safetensors(folder / "model.safetensors", tensors, "float32")
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        (folder / "tokenizer.json").write_text(byte_tokenizer_json())
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def _successors(script: str) -> np.ndarray:
    """The token that follows each token: one cycle through the script, one through the rest."""
    chain = [ord("\n"), *script.encode(), EOT]
    assert len(set(chain)) == len(chain), "a byte of the script occurs twice"
    rest = [token for token in range(VOCAB) if token not in chain]
    successors = np.empty(VOCAB, dtype=np.int64)
    for cycle in (chain, rest):
        successors[cycle] = [*cycle[1:], cycle[0]]
    return successors


def byte_tokenizer_json() -> str:
    """A ``tokenizer.json`` with one token for each byte, id = byte, and the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    vocabulary = {chr(byte if byte in kept else next(moved)): byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return str(backend.to_str())
