"""What a configuration leaves implicit: which layers are MoE, rotate, or attend in chunks."""

from typing import Any

Config = dict[str, Any]


def text_config(config: Config) -> Config:
    """The text part: the ``text_config`` level of a multimodal configuration, or all of it."""
    return config.get("text_config", config)


def is_multimodal(config: Config) -> bool:
    return "vision_config" in config


def moe_layers(config: Config) -> list[int]:
    """Layers with routed experts; an explicit empty list means a fully dense model."""
    if config.get("moe_layers") is not None:
        return list(config["moe_layers"])
    step = config["interleave_moe_layer_step"]
    return list(range(step - 1, config["num_hidden_layers"], step))


def uses_rope(config: Config) -> list[bool]:
    """One flag per layer. In ``no_rope_layers`` 1 means RoPE; an empty list means "derive"."""
    if config.get("no_rope_layers"):
        return [bool(flag) for flag in config["no_rope_layers"]]
    interval = config.get("no_rope_layer_interval", 4)
    return [(layer + 1) % interval != 0 for layer in range(config["num_hidden_layers"])]


def attends_in_chunks(config: Config) -> list[bool]:
    """One flag per layer; without ``layer_types``, exactly the layers with RoPE are chunked."""
    if config.get("layer_types"):
        return [kind == "chunked_attention" for kind in config["layer_types"]]
    return uses_rope(config)


def rope_parameters(config: Config) -> Config:
    """RoPE settings as the newer single dictionary, from either style of keys."""
    if config.get("rope_parameters"):
        return dict(config["rope_parameters"])
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    return scaling | {"rope_theta": config["rope_theta"]}


def tokens_per_tile(config: Config) -> int:
    """Rows of image features that one tile becomes in the text model."""
    vision = config["vision_config"]
    grid = vision["image_size"] // vision["patch_size"]
    return int((grid * vision["pixel_shuffle_ratio"]) ** 2)
