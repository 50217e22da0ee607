"""Llama 4's text model in plain numpy, to check faster implementations against.

It is slow on purpose: one sequence, no cache, every formula written once and in the open. Run it
in float64 (the default) and its own rounding is negligible.

Shapes: T tokens, D hidden size, H query heads, K key heads, d head dimension, E experts,
k experts per token, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oracle.layer_kinds import (
    attends_in_chunks,
    moe_layers,
    rope_parameters,
    text_config,
    uses_rope,
)

Config = dict[str, Any]
Array = np.ndarray


@dataclass
class Forward:
    """What one forward pass saw, and its result."""

    logits: Array = field(init=False)
    """[T, V]"""
    hidden_states: list[Array] = field(default_factory=list)
    """[T, D] each: the embeddings, then the residual after every layer (before the last norm)."""
    router_logits: dict[int, Array] = field(default_factory=dict)
    """MoE layer -> [T, E]"""
    router_choices: dict[int, Array] = field(default_factory=dict)
    """MoE layer -> [T, k] experts, best first."""


class Llama4:
    """The text model.

    Args:
        config: a text-only or multimodal configuration; only the text part is used.
        weights: tensors by name, as ``oracle.random_weights.weights`` returns them.
        dtype: float64, or float32 to see how much rounding alone moves the result.
    """

    def __init__(self, config: Config, weights: dict[str, Array], dtype: type = np.float64) -> None:
        self.config = text_config(config)
        self.dtype = np.dtype(dtype)
        self.weights = {
            name: tensor.astype(self.dtype)
            for name, tensor in weights.items()
            if name.startswith(("model.", "lm_head."))
        }
        self.uses_rope = uses_rope(self.config)
        self.attends_in_chunks = attends_in_chunks(self.config)
        self.moe_layers = set(moe_layers(self.config))

    # --- the whole model ---

    def forward(
        self,
        ids: Sequence[int],
        start_position: int = 0,
        image_features: Array | None = None,
        image_token: int | None = None,
    ) -> Forward:
        """Run the model over a token list.

        Args:
            ids: T token ids.
            start_position: position of the first token. Earlier positions hold nothing: the
                tokens see only each other, but rotations, chunk borders and the attention
                temperature are those of positions start..start+T-1.
            image_features: [n, D] rows that replace, in order, the embeddings of the n tokens
                equal to ``image_token``.
        """
        seen = Forward()
        positions = start_position + np.arange(len(ids))
        x = self.embed(ids, image_features, image_token)  # [T, D]
        seen.hidden_states.append(x)
        for layer in range(self.config["num_hidden_layers"]):
            x = x + self.attention(layer, self.layer_norm(layer, "input_layernorm", x), positions)
            h = self.layer_norm(layer, "post_attention_layernorm", x)
            x = x + self.feed_forward(layer, h, seen)
            seen.hidden_states.append(x)
        x = self.rms_norm(x) * self.weights["model.norm.weight"]
        seen.logits = x @ self.head().T  # [T, V]
        return seen

    def greedy(self, ids: Sequence[int], num_tokens: int, **images: Any) -> list[int]:
        """The ``num_tokens`` most likely next tokens, one after another, each from scratch."""
        sequence = [int(token) for token in ids]
        for _ in range(num_tokens):
            logits = self.forward(sequence, **images).logits
            sequence.append(int(np.argmax(logits[-1])))
        return sequence[len(ids) :]

    def embed(
        self, ids: Sequence[int], image_features: Array | None, image_token: int | None
    ) -> Array:
        """[T, D], with image features where patch tokens stand."""
        x = self.weights["model.embed_tokens.weight"][np.asarray(ids)]  # [T, D], a copy
        if image_features is not None:
            x[np.asarray(ids) == image_token] = image_features.astype(self.dtype)
        return x

    def head(self) -> Array:
        """[V, D]; the embedding matrix again if the two are tied."""
        tied = self.config["tie_word_embeddings"]
        return self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]

    def rms_norm(self, x: Array) -> Array:
        """x / sqrt(mean(x²) + eps) over the last axis, without a weight."""
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config["rms_norm_eps"])

    def layer_norm(self, layer: int, name: str, x: Array) -> Array:
        return self.rms_norm(x) * self.weights[f"model.layers.{layer}.{name}.weight"]

    def linear(self, layer: int, name: str, x: Array) -> Array:
        """[T, in] -> [T, out]; weights are [out, in]."""
        return x @ self.weights[f"model.layers.{layer}.{name}.weight"].T

    # --- attention ---

    def attention(self, layer: int, h: Array, positions: Array) -> Array:
        """[T, D] -> [T, D]; layers with RoPE and without differ in everything but the softmax."""
        q = self.split_heads(self.linear(layer, "self_attn.q_proj", h))  # [T, H, d]
        k = self.split_heads(self.linear(layer, "self_attn.k_proj", h))  # [T, K, d]
        v = self.split_heads(self.linear(layer, "self_attn.v_proj", h))  # [T, K, d]
        if self.uses_rope[layer]:
            q, k = self.rotate(q, positions), self.rotate(k, positions)
            if self.config["use_qk_norm"]:
                q, k = self.rms_norm(q), self.rms_norm(k)  # per head, after the rotation
        elif self.config.get("attn_temperature_tuning", True):
            temperature = attention_temperature(self.config, positions)
            q = q * temperature.astype(self.dtype)[:, None, None]
        mixed = self.attend(q, k, v, self.visible(layer, positions))  # [T, H, d]
        return self.linear(layer, "self_attn.o_proj", mixed.reshape(len(h), -1))

    def split_heads(self, x: Array) -> Array:
        return x.reshape(len(x), -1, self.config["head_dim"])

    def rotate(self, x: Array, positions: Array) -> Array:
        """RoPE: dimensions (2j, 2j+1) are one complex number, turned by position·frequency[j]."""
        angles = np.outer(positions, rope_frequencies(self.config))[:, None, :]  # [T, 1, d/2]
        cos, sin = np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)
        real, imaginary = x[..., 0::2], x[..., 1::2]
        turned = (real * cos - imaginary * sin, real * sin + imaginary * cos)
        return np.stack(turned, axis=-1).reshape(x.shape)

    def visible(self, layer: int, positions: Array) -> Array:
        """[T, T]: may the query of this row see the key of this column?"""
        query, key = positions[:, None], positions[None, :]
        visible = key <= query
        if self.attends_in_chunks[layer]:
            chunk = self.config["attention_chunk_size"]
            visible &= key // chunk == query // chunk
        return visible

    def attend(self, q: Array, k: Array, v: Array, visible: Array) -> Array:
        """Softmax attention; query head h reads key head h // (H / K)."""
        heads_per_key = q.shape[1] // k.shape[1]
        k, v = k.repeat(heads_per_key, axis=1), v.repeat(heads_per_key, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(self.config["head_dim"])
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, v)

    # --- feed-forward ---

    def feed_forward(self, layer: int, h: Array, seen: Forward) -> Array:
        if layer not in self.moe_layers:
            return self.swiglu(layer, "feed_forward", h)
        router_logits = self.linear(layer, "feed_forward.router", h)  # [T, E]
        chosen = self.choose_experts(router_logits)  # [T, k]
        seen.router_logits[layer], seen.router_choices[layer] = router_logits, chosen
        shared = self.swiglu(layer, "feed_forward.shared_expert", h)
        return shared + self.routed_experts(layer, h, router_logits, chosen)

    def swiglu(self, layer: int, name: str, h: Array) -> Array:
        gate = self.linear(layer, f"{name}.gate_proj", h)
        up = self.linear(layer, f"{name}.up_proj", h)
        return self.linear(layer, f"{name}.down_proj", silu(gate) * up)

    def choose_experts(self, router_logits: Array) -> Array:
        best_first = np.argsort(-router_logits, axis=-1, kind="stable")
        return best_first[:, : self.config["num_experts_per_tok"]]

    def routed_experts(self, layer: int, h: Array, router_logits: Array, chosen: Array) -> Array:
        """Sum of the chosen experts, each fed the token SCALED by its own router score."""
        y = np.zeros_like(h)
        for expert in np.unique(chosen):
            tokens = np.any(chosen == expert, axis=-1)  # [T], the ones that chose it
            score = sigmoid(router_logits[tokens, expert])[:, None]
            y[tokens] += self.expert(layer, expert, score * h[tokens])
        return y

    def expert(self, layer: int, expert: int, h: Array) -> Array:
        """One routed expert; its packed weights are input-major, gate in the first half."""
        packed = f"model.layers.{layer}.feed_forward.experts."
        gate, up = np.split(h @ self.weights[packed + "gate_up_proj"][expert], 2, axis=-1)
        return (silu(gate) * up) @ self.weights[packed + "down_proj"][expert]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def attention_temperature(config: Config, positions: Array) -> Array:
    """Factor on the queries of layers without RoPE, growing with the position: float64 [T].

    Meta's formula: 1 + attn_scale · ln(1 + floor((position + 1) / floor_scale)).
    """
    config = text_config(config)
    steps = np.floor((np.asarray(positions) + 1) / config.get("floor_scale", 8192))
    return 1 + config.get("attn_scale", 0.1) * np.log1p(steps)


def rope_frequencies(config: Config) -> Array:
    """Radians per position of each pair, after scaling: float64 [d/2]."""
    config = text_config(config)
    rope = rope_parameters(config)
    pairs = np.arange(config["head_dim"] // 2)
    frequencies = rope["rope_theta"] ** (-2 * pairs / config["head_dim"])
    if rope["rope_type"] == "default":
        return frequencies
    return np.array([_llama3_frequency(frequency, rope) for frequency in frequencies])


def _llama3_frequency(frequency: float, rope: Config) -> float:
    """Short waves stay, long ones are stretched by ``factor``, the ones between are blended."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    if turns < low:
        return frequency / rope["factor"]
    if turns > high or low == high:  # Scout has low == high, which leaves no band to blend
        return frequency
    kept = (turns - low) / (high - low)
    return (1 - kept) * frequency / rope["factor"] + kept * frequency
