"""The numbers of a configuration that decide about memory and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TextShape", "VisionShape", "read_shape"]


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Sizes of the vision encoder: widths, counts, and values of a patch and of a tile."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_patches: int
    patch_values: int
    tokens_per_tile: int
    shuffled_size: int
    projector_input_dim: int
    output_dim: int
    tile_values: int


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """Sizes of the decoder. Layers are counted by attention, and those with experts once more."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    intermediate_size_mlp: int
    num_experts: int
    experts_per_token: int
    chunked_layers: int
    global_layers: int
    expert_layers: int
    max_context: int
    chunk_size: int | None
    tied: bool
    vision: VisionShape | None

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return self.chunked_layers + self.global_layers

    @property
    def kv_values(self) -> int:
        """Numbers that a token keeps in one layer."""
        return 2 * self.num_kv_heads * self.head_dim


def read_shape(config_json: str) -> TextShape:
    """The sizes in a configuration, as the core reads it.

    Raises:
        CheckpointError: It is no Llama 4.

    Example:
        >>> import json
        >>> from llama4rs.presets import preset_config
        >>> shape = read_shape(json.dumps(preset_config("scout")))
        >>> shape.chunked_layers, shape.global_layers, shape.kv_values
        (36, 12, 2048)
    """
    from .._llama4rs import plan_sizes

    sizes = plan_sizes(config_json)
    vision = sizes.pop("vision")
    return TextShape(**sizes, vision=None if vision is None else VisionShape(**vision))
