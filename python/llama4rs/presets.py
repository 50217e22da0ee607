"""The published Llama 4 models as data: their configurations, for planning without any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import RequestError, shown

__all__ = ["PRESETS", "preset_config"]

_TEXT: Mapping[str, Any] = {
    "model_type": "llama4_text",
    "vocab_size": 202048,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_experts_per_tok": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "no_rope_layers": [],
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 200000,
    "eos_token_id": [200001, 200007, 200008],
    "pad_token_id": 200018,
}

_VISION: Mapping[str, Any] = {
    "model_type": "llama4_vision_model",
    "hidden_size": 1408,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "intermediate_size": 5632,
    "image_size": 336,
    "patch_size": 14,
    "num_channels": 3,
    "vision_output_dim": 4096,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "pixel_shuffle_ratio": 0.5,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "rope_theta": 10000,
    "multi_modal_projector_bias": False,
}

_DIFFERENCES: Mapping[str, Mapping[str, Any]] = {
    "scout": {
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 10 << 20,
    },
    "maverick": {
        "num_local_experts": 128,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,
        "rope_scaling": None,
        "max_position_embeddings": 1 << 20,
    },
}

PRESETS = tuple(_DIFFERENCES)
"""Names of the models that are known: Llama 4 Scout (17B-16E) and Maverick (17B-128E), instruct."""


def preset_config(name: str) -> dict[str, Any]:
    """A published model's ``config.json``: what decides about sizes.

    Args:
        name: One of `PRESETS`, in any case.

    Raises:
        RequestError: There is no such preset.

    Example:
        >>> preset_config("maverick")["text_config"]["num_local_experts"]
        128
    """
    found = _DIFFERENCES.get(name.lower())
    if found is None:
        raise RequestError(f"there is no preset {shown(name)}; known are {', '.join(PRESETS)}")
    config = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "boi_token_index": 200080,
        "eoi_token_index": 200081,
        "image_token_index": 200092,
        "text_config": {**_TEXT, **found},
        "vision_config": dict(_VISION),
    }
    copy: dict[str, Any] = json.loads(json.dumps(config))
    return copy
