"""Well-known mistakes move the logits far beyond the tolerance, so a passing test means much.

A mistake is either a changed setting or a subclass of the numpy model with one wrong method.
"""

from typing import Any

import numpy as np
import pytest

from oracle.answers import load_answers
from oracle.comparison import TOLERANCE, largest_difference
from oracle.configs import MULTIMODAL, SEEDS, TEXT
from oracle.llama4_numpy import Llama4, sigmoid
from oracle.llama4_vision_numpy import Llama4Vision
from oracle.prompts import image_prompts, text_prompts
from oracle.random_weights import weights

Array = np.ndarray

VISIBLE = 10 * TOLERANCE
ANSWERS = load_answers()


class ScoreOnOutput(Llama4):
    def routed_experts(self, layer: int, h: Array, router_logits: Array, chosen: Array) -> Array:
        y = np.zeros_like(h)
        for expert in np.unique(chosen):
            tokens = np.any(chosen == expert, axis=-1)
            score = sigmoid(router_logits[tokens, expert])[:, None]
            y[tokens] += score * self.expert(layer, expert, h[tokens])
        return y


class RotateHalf(Llama4):
    """Pairs dimension j with j + d/2, as earlier Llamas do in Hugging Face files."""

    def rotate(self, x: Array, positions: Array) -> Array:
        halves_to_pairs = np.arange(x.shape[-1]).reshape(2, -1).T.ravel()
        turned = super().rotate(x[..., halves_to_pairs], positions)
        return turned[..., np.argsort(halves_to_pairs)]


class SlidingWindow(Llama4):
    """Takes the chunk size for the width of a window that moves with the query."""

    def visible(self, layer: int, positions: Array) -> Array:
        query, key = positions[:, None], positions[None, :]
        width = self.config["attention_chunk_size"]
        return (key <= query) & (query - key < width if self.attends_in_chunks[layer] else True)


class GateAndUpSwapped(Llama4):
    def expert(self, layer: int, expert: int, h: Array) -> Array:
        packed = f"model.layers.{layer}.feed_forward.experts."
        up, gate = np.split(h @ self.weights[packed + "gate_up_proj"][expert], 2, axis=-1)
        return (gate * sigmoid(gate) * up) @ self.weights[packed + "down_proj"][expert]


class KeyHeadsInterleaved(Llama4):
    """Query head h reads key head h mod K instead of h // (H / K)."""

    def attend(self, q: Array, k: Array, v: Array, visible: Array) -> Array:
        copies = (1, q.shape[1] // k.shape[1], 1)
        return super().attend(q, np.tile(k, copies), np.tile(v, copies), visible)


# mistake -> configuration, class, changed settings
MISTAKES: dict[str, tuple[str, type[Llama4], dict[str, Any]]] = {
    "chunk mask off": ("scout_like", Llama4, {"attention_chunk_size": 10**9}),
    "chunk one too long": ("scout_like", Llama4, {"attention_chunk_size": 9}),
    "sliding window": ("scout_like", SlidingWindow, {}),
    "score on output": ("scout_like", ScoreOnOutput, {}),
    "gate and up swapped": ("scout_like", GateAndUpSwapped, {}),
    "key heads interleaved": ("scout_like", KeyHeadsInterleaved, {}),
    "rope scaling off": ("scout_like", Llama4, {"rope_scaling": None}),
    "rotate half": ("scout_like", RotateHalf, {}),
    "rope everywhere": ("scout_like", Llama4, {"no_rope_layers": [1] * 8}),
    "temperature off": ("scout_like", Llama4, {"attn_temperature_tuning": False}),
    "temperature too slow": ("scout_like", Llama4, {"floor_scale": 5}),
    "qk norm off": ("scout_like", Llama4, {"use_qk_norm": False}),
    "qk norm on": ("maverick_like", Llama4, {"use_qk_norm": True}),
    "one expert of two": ("top2", Llama4, {"num_experts_per_tok": 1}),
    "chunked by rope alone": ("dense", Llama4, {"layer_types": None}),
    "score on output, odd": ("odd_sizes", ScoreOnOutput, {}),
    "rotate half, wide": ("head_dim_128", RotateHalf, {}),
    "no smooth band": (
        "smooth_rope",
        Llama4,
        {"rope_scaling": TEXT["smooth_rope"]["rope_scaling"] | {"high_freq_factor": 1.0}},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_text_mistake_is_visible(mistake: str) -> None:
    name, model_class, changes = MISTAKES[mistake]
    model = model_class(TEXT[name] | changes, weights(TEXT[name], SEEDS[name]))
    logits = model.forward(text_prompts(TEXT[name])["60_tokens"]).logits
    assert largest_difference(logits, ANSWERS[f"{name}/60_tokens/logits"]) > VISIBLE


class RowsBeforeColumns(Llama4Vision):
    """Turns the first half of the pairs with the row."""

    def angles(self, head_dim: int) -> Array:
        return np.roll(super().angles(head_dim), head_dim // 4, axis=-1)


class CountsFromZero(Llama4Vision):
    def angles(self, head_dim: int) -> Array:
        angles = super().angles(head_dim)
        angles[:-1] -= angles[0]
        return angles


class ShuffledByColumns(Llama4Vision):
    def pixel_shuffle(self, x: Array) -> Array:
        tiles, _, width = x.shape
        transposed = x.reshape(tiles, self.grid, self.grid, width).swapaxes(1, 2)
        return super().pixel_shuffle(transposed.reshape(x.shape))


class ChannelsLast(Llama4Vision):
    def patches(self, pixels: Array) -> Array:
        patches = super().patches(pixels)
        by_channel = patches.reshape(*patches.shape[:2], pixels.shape[1], -1)
        return by_channel.swapaxes(2, 3).reshape(patches.shape)


@pytest.mark.parametrize("name", MULTIMODAL)
@pytest.mark.parametrize(
    "vision_class", [RowsBeforeColumns, CountsFromZero, ShuffledByColumns, ChannelsLast]
)
def test_vision_mistake_is_visible(name: str, vision_class: type[Llama4Vision]) -> None:
    config = MULTIMODAL[name]
    _, pixels = image_prompts(config)["one_image"]
    features = vision_class(config, weights(config, SEEDS[name])).image_features(pixels)
    expected = ANSWERS[f"{name}/one_image/image_features"]
    assert largest_difference(features, expected) > VISIBLE
