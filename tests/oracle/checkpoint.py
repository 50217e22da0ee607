"""Writes a tiny model as a Hugging Face style checkpoint directory."""

import copy
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from oracle.layer_kinds import is_multimodal, rope_parameters, text_config
from oracle.random_weights import weights
from oracle.safetensors_file import write_safetensors

__all__ = ["make_checkpoint", "weights"]

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]
Dtype = Literal["float32", "bfloat16", "float16"]
RopeKeys = Literal["new", "old"]


def make_checkpoint(
    directory: str | Path,
    config: Config,
    seed: int,
    *,
    dtype: Dtype = "float32",
    layout: Literal["fused", "split"] = "fused",
    num_shards: int = 1,
    multimodal_prefix: bool = False,
    rope_keys: RopeKeys = "new",
) -> Path:
    """Write ``config.json`` and the weights of ``weights(config, seed)``; return the directory.

    Args:
        directory: created if missing.
        layout: ``fused`` packs the experts of a layer into two tensors, ``split`` writes three
            Linear weights per expert, as quantising exporters do.
        num_shards: 1 writes ``model.safetensors``, more write numbered shards and an index.
        multimodal_prefix: write a text-only model the multimodal way: names start with
            ``language_model.`` and the configuration sits under ``text_config``. Multimodal
            configurations are always written so.
        rope_keys: ``new`` is the single dictionary ``rope_parameters``, ``old`` is the pair
            ``rope_theta`` and ``rope_scaling``.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    prefixed = multimodal_prefix or is_multimodal(config)
    written_config = _written_config(config, dtype, layout, prefixed, rope_keys)
    (directory / "config.json").write_text(json.dumps(written_config, indent=2) + "\n")

    tensors = weights(config, seed)
    if layout == "split":
        tensors = split_experts(tensors)
    if prefixed:
        tensors = {_prefixed(name): tensor for name, tensor in tensors.items()}
    _write_shards(directory, tensors, dtype, num_shards)
    return directory


def split_experts(tensors: Tensors) -> Tensors:
    """Replace the packed experts by one gate, up and down weight each, in [out, in] order."""
    split: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(".experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for expert, gate_up in enumerate(tensor):  # [hidden, 2 * width]
                gate, up = np.split(gate_up.T, 2)
                split[f"{prefix}{expert}.gate_proj.weight"] = gate
                split[f"{prefix}{expert}.up_proj.weight"] = up
        elif name.endswith(".experts.down_proj"):
            prefix = name.removesuffix("down_proj")
            for expert, down in enumerate(tensor):  # [width, hidden]
                split[f"{prefix}{expert}.down_proj.weight"] = down.T
        else:
            split[name] = tensor
    return split


def _prefixed(name: str) -> str:
    is_vision = name.startswith(("vision_model.", "multi_modal_projector."))
    return name if is_vision else "language_model." + name


def _written_config(
    config: Config, dtype: str, layout: str, prefixed: bool, rope_keys: str
) -> Config:
    written = copy.deepcopy(config)
    if prefixed and "text_config" not in written:
        written.pop("architectures", None)
        written = {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "tie_word_embeddings": written["tie_word_embeddings"],
            "text_config": written,
        }
    written["torch_dtype"] = dtype
    text = text_config(written)
    text["torch_dtype"] = dtype
    if layout == "split":
        text["for_llm_compressor"] = True
    if rope_keys == "new":
        for part in (text, written.get("vision_config")):
            if part is not None:
                part["rope_parameters"] = rope_parameters(part)
                part.pop("rope_theta")
                part.pop("rope_scaling", None)
    return written


def _write_shards(directory: Path, tensors: Tensors, dtype: str, num_shards: int) -> None:
    if num_shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for shard in range(num_shards):
        first, last = (len(names) * end // num_shards for end in (shard, shard + 1))
        file_name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        in_shard = {name: tensors[name] for name in names[first:last]}
        write_safetensors(directory / file_name, in_shard, dtype)
        weight_map |= dict.fromkeys(in_shard, file_name)
    total_size = sum(t.size for t in tensors.values()) * (4 if dtype == "float32" else 2)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
