"""Tiny Llama 4 configurations in the form of a published ``config.json``.

Sizes are small, and the ranges that are thousands of tokens long in the published models (chunk,
temperature floor, RoPE's original context) are shortened to a few tokens, so that a prompt of some
forty tokens crosses each of them several times and a mistake in any of them moves the logits.

The dictionaries use the older RoPE keys of the published files, ``rope_theta`` and
``rope_scaling``; ``make_checkpoint(rope_keys="new")`` writes ``rope_parameters`` in their place.
"""

from typing import Any

Config = dict[str, Any]


def _llama3_rope(factor: float, low: float, high: float, original: int) -> Config:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


_SCOUT_LIKE: Config = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "use_qk_norm": True,
    "rope_theta": 500000.0,
    "rope_scaling": _llama3_rope(factor=16.0, low=1.0, high=1.0, original=16),
    "max_position_embeddings": 10485760,
    "no_rope_layers": [],  # derived: every 4th layer has no RoPE
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8,
    "attn_temperature_tuning": True,
    "floor_scale": 4,
    "attn_scale": 0.1,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
    "torch_dtype": "float32",
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "output_router_logits": False,
}

# Dense layers alternate with MoE layers; no QK norm; plain RoPE.
_MAVERICK_LIKE: Config = _SCOUT_LIKE | {
    "num_local_experts": 8,
    "interleave_moe_layer_step": 2,
    "use_qk_norm": False,
    "rope_scaling": None,
    "max_position_embeddings": 1048576,
}

# The fully dense relatives (MobileLLM-R1): RoPE and full attention on every layer, tied
# embeddings. `layer_types` decides the mask, so the chunk size must have no effect; it is 8 and
# not null because transformers refuses null even where no layer is chunked. The step of 0 is
# never used, since `moe_layers` is given.
_DENSE: Config = _SCOUT_LIKE | {
    "num_hidden_layers": 4,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "interleave_moe_layer_step": 0,
    "moe_layers": [],
    "rope_scaling": None,
    "no_rope_layers": [1, 1, 1, 1],
    "layer_types": ["full_attention"] * 4,
    "attn_temperature_tuning": False,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}

# Nothing is a power of two, and query width (160) differs from hidden size (192).
_ODD_SIZES: Config = _SCOUT_LIKE | {
    "vocab_size": 1003,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 80,
    "intermediate_size_mlp": 144,
    "num_local_experts": 12,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 1, 0, 1, 1, 0],
    "attention_chunk_size": 7,
    "floor_scale": 3,
}

TEXT: dict[str, Config] = {
    "scout_like": _SCOUT_LIKE,
    "maverick_like": _MAVERICK_LIKE,
    "top2": _SCOUT_LIKE
    | {"num_hidden_layers": 4, "num_local_experts": 6, "num_experts_per_tok": 2},
    "dense": _DENSE,
    "head_dim_128": _SCOUT_LIKE
    | {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 128,
    },
    "odd_sizes": _ODD_SIZES,
    # The general llama3 formula: wavelengths of 16..64 tokens lie in the smooth band.
    "smooth_rope": _SCOUT_LIKE
    | {
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "attention_chunk_size": 16,
        "rope_scaling": _llama3_rope(factor=8.0, low=1.0, high=4.0, original=64),
    },
}


def _multimodal(
    text: Config, *, image_size: int, hidden: int, heads: int, depth: int, output: int
) -> Config:
    """A multimodal configuration; the last eight ids of its vocabulary are kept for images."""
    vocab_size = text["vocab_size"]
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "boi_token_index": vocab_size - 8,
        "eoi_token_index": vocab_size - 7,
        "image_token_index": vocab_size - 6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        "vision_config": {
            "model_type": "llama4_vision_model",
            "hidden_act": "gelu",
            "hidden_size": hidden,
            "image_size": image_size,
            "intermediate_size": 4 * hidden,  # also the pixel-shuffled width
            "multi_modal_projector_bias": False,
            "norm_eps": 1e-5,
            "num_attention_heads": heads,
            "num_channels": 3,
            "num_hidden_layers": depth,
            "patch_size": 14,
            "pixel_shuffle_ratio": 0.5,
            "projector_input_dim": output,
            "projector_output_dim": output,
            "rope_theta": 10000.0,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "vision_output_dim": output,
        },
    }


_VISION_TEXT = {"num_hidden_layers": 4, "attention_chunk_size": 16, "floor_scale": 8}

MULTIMODAL: dict[str, Config] = {
    "vision_tiny_56": _multimodal(
        _SCOUT_LIKE | _VISION_TEXT, image_size=56, hidden=64, heads=4, depth=2, output=48
    ),
    "vision_tiny_84": _multimodal(  # the published vision head size, 88
        _MAVERICK_LIKE | _VISION_TEXT, image_size=84, hidden=176, heads=2, depth=3, output=80
    ),
    "vision_tiny_112": _multimodal(
        _SCOUT_LIKE | _VISION_TEXT, image_size=112, hidden=96, heads=4, depth=4, output=40
    ),
}

ALL: dict[str, Config] = TEXT | MULTIMODAL

# One seed per configuration, chosen so that no router choice and no greedy token of the stored
# answers is a near tie: float32 rounding in another order of summation must not flip any of them.
# For the multimodal ones also so that no greedy token is the patch token.
SEEDS: dict[str, int] = {
    "scout_like": 34,
    "maverick_like": 41,
    "top2": 53,
    "dense": 26,
    "head_dim_128": 3,
    "odd_sizes": 13,
    "smooth_rope": 5,
    "vision_tiny_56": 16,
    "vision_tiny_84": 46,
    "vision_tiny_112": 14,
}
