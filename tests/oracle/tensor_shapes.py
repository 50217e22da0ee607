"""Names and shapes of every tensor of a model, as in the published checkpoints.

Text names carry no ``language_model.`` prefix here; the checkpoint writer adds it where it
belongs. Linear weights are [out, in]; packed experts are input-major.
"""

from typing import Any

from oracle.layer_kinds import is_multimodal, moe_layers, text_config

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: Config) -> Shapes:
    """All tensors of a text-only or multimodal configuration, in the order of the model."""
    text = text_config(config)
    shapes = _text_shapes(text)
    if is_multimodal(config):
        shapes |= _vision_shapes(config["vision_config"])
        projector_width = config["vision_config"]["projector_output_dim"]
        shapes["multi_modal_projector.linear_1.weight"] = (text["hidden_size"], projector_width)
    return shapes


def _text_shapes(config: Config) -> Shapes:
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    with_experts = set(moe_layers(config))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        feed_forward = _moe_shapes(config) if layer in with_experts else _dense_shapes(config)
        for name, shape in (_attention_shapes(config) | feed_forward).items():
            shapes[prefix + name] = shape
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def _attention_shapes(config: Config) -> Shapes:
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    query_width = config["num_attention_heads"] * head_dim
    key_width = config["num_key_value_heads"] * head_dim
    return {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query_width, hidden),
        "self_attn.k_proj.weight": (key_width, hidden),
        "self_attn.v_proj.weight": (key_width, hidden),
        "self_attn.o_proj.weight": (hidden, query_width),
        "post_attention_layernorm.weight": (hidden,),
    }


def _dense_shapes(config: Config) -> Shapes:
    return _swiglu_shapes("feed_forward.", config["hidden_size"], config["intermediate_size_mlp"])


def _moe_shapes(config: Config) -> Shapes:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    num_experts = config["num_local_experts"]
    return {
        "feed_forward.router.weight": (num_experts, hidden),
        "feed_forward.experts.gate_up_proj": (num_experts, hidden, 2 * width),
        "feed_forward.experts.down_proj": (num_experts, width, hidden),
        **_swiglu_shapes("feed_forward.shared_expert.", hidden, width),
    }


def _swiglu_shapes(prefix: str, hidden: int, width: int) -> Shapes:
    return {
        prefix + "gate_proj.weight": (width, hidden),
        prefix + "up_proj.weight": (width, hidden),
        prefix + "down_proj.weight": (hidden, width),
    }


def _vision_shapes(config: Config) -> Shapes:
    hidden, output = config["hidden_size"], config["vision_output_dim"]
    num_patches = (config["image_size"] // config["patch_size"]) ** 2
    patch_values = config["num_channels"] * config["patch_size"] ** 2
    shapes: Shapes = {
        "vision_model.class_embedding": (hidden,),
        "vision_model.positional_embedding_vlm": (num_patches + 1, hidden),
        "vision_model.patch_embedding.linear.weight": (hidden, patch_values),
    }
    for name in ("layernorm_pre", "layernorm_post"):
        shapes |= _with_bias(f"vision_model.{name}", (hidden,))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"vision_model.model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes |= _with_bias(f"{prefix}self_attn.{name}", (hidden, hidden))
        shapes |= _with_bias(f"{prefix}mlp.fc1", (config["intermediate_size"], hidden))
        shapes |= _with_bias(f"{prefix}mlp.fc2", (hidden, config["intermediate_size"]))
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= _with_bias(prefix + name, (hidden,))
    shapes["vision_model.vision_adapter.mlp.fc1.weight"] = (output, config["intermediate_size"])
    shapes["vision_model.vision_adapter.mlp.fc2.weight"] = (output, output)
    return shapes


def _with_bias(name: str, weight_shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": weight_shape, f"{name}.bias": weight_shape[:1]}
