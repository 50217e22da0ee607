"""The Llama 4 network in plain torch, with the parameter names of the published checkpoints.

The mixture of experts sorts tokens by expert, so that a token costs one routed expert and the
shared one; chunked layers attend inside their chunk only. `export.py` checks that stock
transformers gives the same logits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cria.config import TextSizes, VisionSizes

SHORT_SPAN = 256


def rope_angles(positions: Tensor, dim: int, theta: float) -> Tensor:
    """Return angles [positions, dim / 2] for interleaved pairs."""
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return positions.float()[:, None] * frequencies[None, :]


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last dimension; cos and sin are [length, dim / 2]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention in float32; short spans take plain products, which are quicker on a processor."""
    q, k, v = q.float(), k.float(), v.float()
    with torch.autocast("cpu", enabled=False):
        if q.shape[-2] > SHORT_SPAN:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            span = q.shape[-2]
            scores = scores + torch.full((span, span), -1e9).triu(1)
        return scores.softmax(-1) @ v


class RmsNorm(nn.Module):
    """Root-mean-square norm with a learned weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention: chunked with RoPE and QK norm, or full without positions."""

    def __init__(self, sizes: TextSizes, layer: int):
        super().__init__()
        self.sizes = sizes
        self.rope = sizes.uses_rope(layer)
        width, head = sizes.hidden, sizes.head_dim
        self.q_proj = nn.Linear(width, sizes.heads * head, bias=False)
        self.k_proj = nn.Linear(width, sizes.kv_heads * head, bias=False)
        self.v_proj = nn.Linear(width, sizes.kv_heads * head, bias=False)
        self.o_proj = nn.Linear(sizes.heads * head, width, bias=False)
        angles = rope_angles(torch.arange(sizes.chunk), head, sizes.rope_theta)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over x [batch, length, hidden] from position 0."""
        sizes = self.sizes
        batch, length, _ = x.shape
        span = length
        if self.rope and length > sizes.chunk:
            span = sizes.chunk
            x = functional.pad(x, (0, 0, 0, -length % span))
        blocks = x.reshape(-1, span, x.shape[-1])
        q = self.q_proj(blocks).unflatten(-1, (sizes.heads, -1)).transpose(1, 2)
        k = self.k_proj(blocks).unflatten(-1, (sizes.kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(blocks).unflatten(-1, (sizes.kv_heads, -1)).transpose(1, 2)
        if self.rope:
            cos, sin = self.cos[:span], self.sin[:span]
            q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
            q = functional.rms_norm(q, q.shape[-1:], None, sizes.eps)
            k = functional.rms_norm(k, k.shape[-1:], None, sizes.eps)
        else:
            steps = torch.floor((torch.arange(span) + 1.0) / sizes.floor_scale)
            q = q * (1.0 + sizes.attn_scale * torch.log1p(steps))[:, None].to(q.dtype)
        group = sizes.heads // sizes.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = attend(q, k, v, causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, -1, sizes.heads * sizes.head_dim)
        return self.o_proj(mixed[:, :length])


class SwiGlu(nn.Module):
    """The shared expert."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gated feed-forward."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Routed experts, stored fused and input-major: [experts, in, out]."""

    def __init__(self, experts: int, width: int, inner: int):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, width, 2 * inner) * width**-0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, inner, width) * inner**-0.5)

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """Apply expert e to the e-th run of rows of x; `counts` gives the run lengths."""
        parts = []
        weights = zip(self.gate_up_proj.unbind(0), self.down_proj.unbind(0), strict=True)
        for rows, (gate_up, down) in zip(x.split(counts), weights, strict=True):
            gate, up = (rows @ gate_up).chunk(2, dim=-1)
            parts.append((functional.silu(gate) * up) @ down)
        return torch.cat(parts)


class MixtureOfExperts(nn.Module):
    """Top-1 sigmoid routing (the score scales the expert input) plus the shared expert."""

    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.router = nn.Linear(sizes.hidden, sizes.experts, bias=False)
        self.experts = Experts(sizes.experts, sizes.hidden, sizes.expert_width)
        self.shared_expert = SwiGlu(sizes.hidden, sizes.expert_width)

    def forward(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, the balance loss and the token count of each expert.

        `real` marks the tokens that count for balance (no padding).
        """
        flat = x.flatten(0, 1)
        with torch.autocast("cpu", enabled=False):
            logits = self.router(flat.float())
        chosen = logits.argmax(-1)
        score = torch.sigmoid(logits.gather(-1, chosen[:, None])).to(flat.dtype)
        order = chosen.argsort()
        counts = torch.bincount(chosen, minlength=logits.shape[-1]).tolist()
        routed = self.experts((flat * score)[order], counts)
        shared = self.shared_expert(flat)
        out = shared.index_add(0, order, routed.to(shared.dtype))
        probability = logits.softmax(-1)[real].mean(0)
        used = torch.bincount(chosen[real], minlength=logits.shape[-1])
        balance = logits.shape[-1] * (probability * (used / used.sum())).sum()
        return out.view_as(x), balance, used


class DecoderLayer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, sizes: TextSizes, layer: int):
        super().__init__()
        self.input_layernorm = RmsNorm(sizes.hidden, sizes.eps)
        self.self_attn = Attention(sizes, layer)
        self.post_attention_layernorm = RmsNorm(sizes.hidden, sizes.eps)
        self.feed_forward = MixtureOfExperts(sizes)

    def forward(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new residual stream, the balance loss and the expert counts."""
        x = x + self.self_attn(self.input_layernorm(x))
        update, balance, used = self.feed_forward(self.post_attention_layernorm(x), real)
        return x + update, balance, used


class Decoder(nn.Module):
    """Embeddings, decoder layers and the final norm."""

    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocab, sizes.hidden)
        self.layers = nn.ModuleList(DecoderLayer(sizes, i) for i in range(sizes.layers))
        self.norm = RmsNorm(sizes.hidden, sizes.eps)


class LanguageModel(nn.Module):
    """The decoder and its output head."""

    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.model = Decoder(sizes)
        self.lm_head = nn.Linear(sizes.hidden, sizes.vocab, bias=False)


class VisionAttention(nn.Module):
    """Bidirectional attention with two-dimensional RoPE."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.heads = sizes.heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(sizes.hidden, sizes.hidden))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend over all patches of a tile."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
        mixed = attend(q, k, v, causal=False)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class TwoLayers(nn.Module):
    """Two linear layers with exact GELU between them, and after them when `gelu_after`."""

    def __init__(self, sizes: tuple[int, int, int], bias: bool, gelu_after: bool):
        super().__init__()
        self.fc1 = nn.Linear(sizes[0], sizes[1], bias=bias)
        self.fc2 = nn.Linear(sizes[1], sizes[2], bias=bias)
        self.gelu_after = gelu_after

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers."""
        x = self.fc2(functional.gelu(self.fc1(x)))
        return functional.gelu(x) if self.gelu_after else x


class VisionLayer(nn.Module):
    """One pre-norm encoder layer."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.self_attn = VisionAttention(sizes)
        self.mlp = TwoLayers((sizes.hidden, 4 * sizes.hidden, sizes.hidden), True, False)
        self.input_layernorm = nn.LayerNorm(sizes.hidden)
        self.post_attention_layernorm = nn.LayerNorm(sizes.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply attention and the feed-forward."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class VisionEncoder(nn.Module):
    """The stack of encoder layers."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(sizes) for _ in range(sizes.layers))


class PatchEmbedding(nn.Module):
    """Linear embedding of unfolded patches."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.linear = nn.Linear(3 * sizes.patch**2, sizes.hidden, bias=False)


class VisionAdapter(nn.Module):
    """The feed-forward after the pixel shuffle."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.mlp = TwoLayers((4 * sizes.hidden, sizes.output, sizes.output), False, True)


class VisionModel(nn.Module):
    """Vision tower: patches, encoder, pixel shuffle and adapter."""

    def __init__(self, sizes: VisionSizes):
        super().__init__()
        self.sizes = sizes
        patches = sizes.grid**2
        self.patch_embedding = PatchEmbedding(sizes)
        self.class_embedding = nn.Parameter(torch.randn(sizes.hidden) * sizes.hidden**-0.5)
        self.positional_embedding_vlm = nn.Parameter(torch.randn(patches + 1, sizes.hidden) * 0.1)
        self.layernorm_pre = nn.LayerNorm(sizes.hidden)
        self.layernorm_post = nn.LayerNorm(sizes.hidden)
        self.model = VisionEncoder(sizes)
        self.vision_adapter = VisionAdapter(sizes)
        head = sizes.hidden // sizes.heads
        index = torch.arange(patches)
        columns = rope_angles(index % sizes.grid + 1, head // 2, sizes.rope_theta)
        rows = rope_angles(index // sizes.grid + 1, head // 2, sizes.rope_theta)
        angles = functional.pad(torch.cat((columns, rows), dim=-1), (0, 0, 0, 1))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Map tiles [n, 3, side, side] to features [n, tokens per tile, output width]."""
        sizes = self.sizes
        patches = functional.unfold(tiles, sizes.patch, stride=sizes.patch).transpose(1, 2)
        x = self.patch_embedding.linear(patches)
        x = torch.cat((x, self.class_embedding.expand(x.shape[0], 1, -1)), dim=1)
        x = self.layernorm_pre(x + self.positional_embedding_vlm)
        for layer in self.model.layers:
            x = layer(x, self.cos, self.sin)
        x = self.layernorm_post(x)[:, :-1]
        side = sizes.token_grid
        x = x.reshape(-1, side, 2, side, 2, sizes.hidden).transpose(2, 3)
        return self.vision_adapter.mlp(x.reshape(-1, side * side, 4 * sizes.hidden))


class Projector(nn.Module):
    """Linear map from vision features to the decoder width."""

    def __init__(self, vision: VisionSizes, text: TextSizes):
        super().__init__()
        self.linear_1 = nn.Linear(vision.output, text.hidden, bias=False)


class Cria(nn.Module):
    """The whole multimodal model."""

    def __init__(self, text: TextSizes, vision: VisionSizes):
        super().__init__()
        self.vision_model = VisionModel(vision)
        self.multi_modal_projector = Projector(vision, text)
        self.language_model = LanguageModel(text)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """Draw linear weights with variance 1 / inputs and embeddings with a small variance."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)

    def image_features(self, tiles: Tensor) -> Tensor:
        """Map tiles to the rows that replace the patch tokens."""
        return self.multi_modal_projector.linear_1(self.vision_model(tiles))

    def hidden(
        self, ids: Tensor, lengths: Tensor, features: Tensor | None, patch_id: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Run the decoder over right-padded ids [batch, length].

        Returns the normed hidden states, the mean balance loss and the expert counts per layer.
        """
        x = self.language_model.model.embed_tokens(ids)
        if features is not None:
            rows = features.reshape(-1, features.shape[-1]).to(x.dtype)
            x = x.masked_scatter((ids == patch_id)[..., None], rows)
        real = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).flatten()
        balances, counts = [], []
        for layer in self.language_model.model.layers:
            x, balance, used = layer(x, real)
            balances.append(balance)
            counts.append(used)
        x = self.language_model.model.norm(x)
        return x, torch.stack(balances).mean(), counts

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head."""
        return self.language_model.lm_head(hidden)
