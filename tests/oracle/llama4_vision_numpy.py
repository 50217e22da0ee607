"""Llama 4's vision encoder and projector in plain numpy.

Shapes: N tiles (they never see each other), P patches of a tile in a G x G grid, S = P + 1 with
the class token, W vision width, H heads, d head dimension, D hidden size of the text model.
"""

import math
from typing import Any

import numpy as np

from oracle.llama4_numpy import Forward, Llama4

Config = dict[str, Any]
Array = np.ndarray

_VISION_PREFIXES = ("vision_model.", "multi_modal_projector.")


class Llama4Vision:
    """The vision part of a multimodal configuration.

    Args:
        config: a multimodal configuration.
        weights: tensors by name, as ``oracle.random_weights.weights`` returns them.
        dtype: float64, or float32 to see how much rounding alone moves the result.
    """

    def __init__(self, config: Config, weights: dict[str, Array], dtype: type = np.float64) -> None:
        self.config = config["vision_config"]
        self.dtype = np.dtype(dtype)
        self.weights = {
            name: tensor.astype(self.dtype)
            for name, tensor in weights.items()
            if name.startswith(_VISION_PREFIXES)
        }
        self.grid = self.config["image_size"] // self.config["patch_size"]

    def image_features(self, pixels: Array) -> Array:
        """[N, 3, size, size] -> [N * tokens_per_tile, D], the rows that replace patch tokens."""
        features = self.encode(pixels) @ self.weights["multi_modal_projector.linear_1.weight"].T
        return features.reshape(-1, features.shape[-1])

    def encode(self, pixels: Array) -> Array:
        """[N, 3, size, size] -> [N, tokens_per_tile, vision_output_dim], before the projector."""
        x = self.linear("patch_embedding.linear", self.patches(pixels.astype(self.dtype)))
        class_token = np.broadcast_to(self.weight("class_embedding"), (len(x), 1, x.shape[-1]))
        x = np.concatenate([x, class_token], axis=1)  # [N, S, W]: the class token comes LAST
        x = self.layer_norm("layernorm_pre", x + self.weight("positional_embedding_vlm"))
        for layer in range(self.config["num_hidden_layers"]):
            block = f"model.layers.{layer}."
            x = x + self.attention(block, self.layer_norm(block + "input_layernorm", x))
            x = x + self.mlp(block, self.layer_norm(block + "post_attention_layernorm", x))
        x = self.layer_norm("layernorm_post", x)[:, :-1]  # [N, P, W]
        x = gelu(self.linear("vision_adapter.mlp.fc1", self.pixel_shuffle(x)))
        return gelu(self.linear("vision_adapter.mlp.fc2", x))

    def patches(self, pixels: Array) -> Array:
        """[N, C, G·p, G·p] -> [N, P, C·p·p]: patches row by row, values channel by channel."""
        tiles, channels = pixels.shape[:2]
        size = self.config["patch_size"]
        cut = pixels.reshape(tiles, channels, self.grid, size, self.grid, size)
        return cut.transpose(0, 2, 4, 1, 3, 5).reshape(tiles, self.grid**2, -1)

    def pixel_shuffle(self, x: Array) -> Array:
        """[N, P, W] -> [N, P/4, 4W]: each 2 x 2 square of patches, read row by row, is one row."""
        tiles, _, width = x.shape
        half = self.grid // 2
        squares = x.reshape(tiles, half, 2, half, 2, width).transpose(0, 1, 3, 2, 4, 5)
        return squares.reshape(tiles, half * half, 4 * width)

    def attention(self, block: str, h: Array) -> Array:
        """[N, S, W] -> [N, S, W]; every token of a tile sees every other."""
        heads = self.config["num_attention_heads"]
        q, k, v = (
            self.linear(f"{block}self_attn.{name}", h).reshape(*h.shape[:2], heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )  # [N, S, H, d]
        q, k = self.rotate(q), self.rotate(k)
        scores = np.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("nhqk,nkhd->nqhd", weights, v)
        return self.linear(f"{block}self_attn.o_proj", mixed.reshape(h.shape))

    def rotate(self, x: Array) -> Array:
        """2-D RoPE: dimensions (2j, 2j+1) are one complex number, turned by ``angles``."""
        angles = self.angles(x.shape[-1])[:, None, :]  # [S, 1, d/2]
        cos, sin = np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)
        real, imaginary = x[..., 0::2], x[..., 1::2]
        turned = (real * cos - imaginary * sin, real * sin + imaginary * cos)
        return np.stack(turned, axis=-1).reshape(x.shape)

    def angles(self, head_dim: int) -> Array:
        """[S, d/2]: the first half of the pairs turns with the column, the second with the row.

        Columns and rows count from 1; the class token is not turned at all.
        """
        pairs = head_dim // 4  # of one direction
        frequencies = self.rope_theta() ** (-np.arange(pairs) / pairs)
        row, column = np.divmod(np.arange(self.grid**2), self.grid)
        of_patches = np.concatenate(
            [np.outer(column + 1, frequencies), np.outer(row + 1, frequencies)], axis=1
        )
        return np.concatenate([of_patches, np.zeros((1, 2 * pairs))])

    def rope_theta(self) -> float:
        return self.config.get("rope_parameters", self.config)["rope_theta"]

    def mlp(self, block: str, h: Array) -> Array:
        return self.linear(f"{block}mlp.fc2", gelu(self.linear(f"{block}mlp.fc1", h)))

    def layer_norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred / np.sqrt(variance + self.config["norm_eps"])
        return normed * self.weight(f"{name}.weight") + self.weight(f"{name}.bias")

    def linear(self, name: str, x: Array) -> Array:
        """[..., in] -> [..., out], plus the bias where there is one."""
        y = x @ self.weight(f"{name}.weight").T
        bias = self.weights.get(f"vision_model.{name}.bias")
        return y if bias is None else y + bias

    def weight(self, name: str) -> Array:
        return self.weights[f"vision_model.{name}"]


def gelu(x: Array) -> Array:
    """The exact GELU, x · Φ(x), by the error function."""
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def multimodal_forward(
    config: Config, weights: dict[str, Array], ids: list[int], pixels: Array
) -> Forward:
    """Both models joined: a ``Forward`` for ``ids`` whose patch tokens stand for ``pixels``.

    Args:
        pixels: [N, 3, size, size], tiles in the order of their patch tokens in ``ids``.
    """
    features = Llama4Vision(config, weights).image_features(pixels)
    text = Llama4(config, weights)
    image_token = config["image_token_index"]
    return text.forward(ids, image_features=features, image_token=image_token)
