"""Sizes of cria and its `config.json` in the published Llama 4 layout."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextSizes:
    """Decoder sizes; every fourth layer is a NoPE layer, every layer is a mixture of experts."""

    vocab: int = 896
    hidden: int = 192
    layers: int = 8
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 8
    expert_width: int = 128
    nope_interval: int = 4
    chunk: int = 64
    floor_scale: int = 64
    attn_scale: float = 0.1
    rope_theta: float = 10000.0
    eps: float = 1e-5
    max_positions: int = 8192

    def uses_rope(self, layer: int) -> bool:
        """True for chunked RoPE layers, False for NoPE layers with full attention."""
        return (layer + 1) % self.nope_interval != 0


@dataclass(frozen=True)
class VisionSizes:
    """Vision tower sizes; one tile gives `tokens_per_tile` image tokens after the pixel shuffle."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    tile: int = 84
    patch: int = 14
    output: int = 128
    rope_theta: float = 10000.0
    max_tiles: int = 16

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.tile // self.patch

    @property
    def token_grid(self) -> int:
        """Image tokens along one side of a tile."""
        return self.grid // 2

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of one tile."""
        return self.token_grid**2


TEXT = TextSizes()
VISION = VisionSizes()


def published_config(special_ids: dict[str, int]) -> dict:
    """Return `config.json`; `special_ids` maps special token names to ids."""
    text = {
        "model_type": "llama4_text",
        "vocab_size": TEXT.vocab,
        "hidden_size": TEXT.hidden,
        "intermediate_size": TEXT.expert_width,
        "intermediate_size_mlp": 2 * TEXT.expert_width,
        "num_hidden_layers": TEXT.layers,
        "num_attention_heads": TEXT.heads,
        "num_key_value_heads": TEXT.kv_heads,
        "head_dim": TEXT.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": TEXT.max_positions,
        "rms_norm_eps": TEXT.eps,
        "rope_theta": TEXT.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "num_local_experts": TEXT.experts,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layers": [int(TEXT.uses_rope(i)) for i in range(TEXT.layers)],
        "no_rope_layer_interval": TEXT.nope_interval,
        "attention_chunk_size": TEXT.chunk,
        "attn_temperature_tuning": True,
        "floor_scale": TEXT.floor_scale,
        "attn_scale": TEXT.attn_scale,
        "tie_word_embeddings": False,
        "bos_token_id": special_ids["<|begin_of_text|>"],
        "eos_token_id": [
            special_ids["<|end_of_text|>"],
            special_ids["<|eom|>"],
            special_ids["<|eot|>"],
        ],
        "pad_token_id": special_ids["<|finetune_right_pad|>"],
        "torch_dtype": "bfloat16",
    }
    vision = {
        "model_type": "llama4_vision_model",
        "hidden_size": VISION.hidden,
        "num_hidden_layers": VISION.layers,
        "num_attention_heads": VISION.heads,
        "num_channels": 3,
        "intermediate_size": 4 * VISION.hidden,
        "vision_output_dim": VISION.output,
        "image_size": VISION.tile,
        "patch_size": VISION.patch,
        "norm_eps": 1e-5,
        "hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -1,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": VISION.output,
        "projector_output_dim": VISION.output,
        "multi_modal_projector_bias": False,
        "projector_dropout": 0.0,
        "attention_dropout": 0.0,
        "rope_theta": VISION.rope_theta,
    }
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "boi_token_index": special_ids["<|image_start|>"],
        "eoi_token_index": special_ids["<|image_end|>"],
        "image_token_index": special_ids["<|patch|>"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": vision,
    }
