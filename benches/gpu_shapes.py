"""The sizes that gpu.py measures."""

from __future__ import annotations

from typing import Any


class Shapes:
    """The sizes that are measured: Scout's, or tiny ones."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.model = "tiny" if tiny else "scout"
        self.packed = "tiny" if tiny else "scout-layers=4"
        self.hidden, self.inner = (256, 128) if tiny else (5120, 8192)
        self.heads, self.kv_heads, self.head_dim = (5, 1, 128) if tiny else (40, 8, 128)
        self.experts = 4 if tiny else 16
        self.vocab = 1003 if tiny else 202048
        self.tokens = (1, 9, 70) if tiny else (1, 8, 16, 64, 512, 4096)
        self.copy_bytes = 1 << 16 if tiny else 4 << 30
        self.contexts = (130,) if tiny else (8192, 131072, 1048576)
        self.sequences = (1, 2) if tiny else (1, 8, 64)
        self.prefills = ((40, 100),) if tiny else ((8192, 8192), (2048, 131072))
        self.prompt = 200 if tiny else 8192
        self.depth = 320 if tiny else 8192
        self.depths = (512, 704) if tiny else (131072, 1048576)
        self.most_batch = 3 if tiny else 64
        self.steps = 3 if tiny else 32
        self.square = 256 if tiny else 8192
        # Memory of keys and values that one attention may take.
        self.most_cache = 1 << 24 if tiny else 24 << 30

    @property
    def qkv(self) -> list[int]:
        """Outputs of the projections before attention."""
        width = self.kv_heads * self.head_dim
        return [self.heads * self.head_dim, width, width]


def scout_text_config(layers: int, vocabulary: int) -> dict[str, Any]:
    """Llama 4 Scout's text model as the published configuration has it, of so many layers."""
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "hidden_size": 5120,
        "num_hidden_layers": layers,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "use_qk_norm": True,
        "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(layers)],
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 16.0,
            "high_freq_factor": 1.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1 << 20,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
