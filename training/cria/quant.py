"""Simulated low-bit weights: int4 decoder linears and experts, int8 embeddings and output head.

Symmetric groups of 64 along the input dimension with one f16 scale each; the vision tower, norms
and router stay as they are.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

GROUP = 64
INT4_SUFFIXES = (
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "o_proj.weight",
    "shared_expert.gate_proj.weight",
    "shared_expert.up_proj.weight",
    "shared_expert.down_proj.weight",
    "experts.gate_up_proj",
    "experts.down_proj",
)
INT8_NAMES = (
    "language_model.model.embed_tokens.weight",
    "language_model.lm_head.weight",
)


def bits_of(name: str) -> int | None:
    """Return the width of a tensor in bits, None where it is not quantised."""
    if name in INT8_NAMES:
        return 8
    if name.startswith("language_model.") and name.endswith(INT4_SUFFIXES):
        return 4
    return None


def _groups(weight: Tensor) -> Tensor:
    """View a weight as [..., groups, 64] along its input dimension (copying for experts)."""
    rows = weight.transpose(1, 2) if weight.dim() == 3 else weight
    return rows.unflatten(-1, (-1, GROUP))


def best_scales(weight: Tensor, bits: int, candidates: int = 16) -> Tensor:
    """Choose for each group the f16 scale with the least squared error."""
    groups = _groups(weight)
    top = 2 ** (bits - 1) - 1
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(1e-8)
    low = 0.7 if bits == 4 else 0.98
    best, best_error = None, None
    for factor in torch.linspace(low, 1.0, candidates).tolist():
        scale = (largest * (factor / top)).half().float().clamp_min(6e-8)
        error = (_round(groups, scale, bits) - groups).square().sum(-1, keepdim=True)
        if best is None:
            best, best_error = scale, error
        else:
            better = error < best_error
            best = torch.where(better, scale, best)
            best_error = torch.where(better, error, best_error)
    return best


def _round(groups: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round to the grid of a scale."""
    limit = 2 ** (bits - 1)
    return (groups / scale).round().clamp(-limit, limit - 1) * scale


def fake_quantise(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the weight as the packed model would see it."""
    rounded = _round(_groups(weight), scale, bits).flatten(-2)
    return rounded.transpose(1, 2).contiguous() if weight.dim() == 3 else rounded


class WeightQuantiser:
    """Swaps quantised weights in and out of a model; scales are searched again now and then."""

    def __init__(self, model: nn.Module, refresh: int = 20, candidates: int = 8):
        self._parameters = {
            name: p for name, p in model.named_parameters() if bits_of(name) is not None
        }
        self._scales: dict[str, Tensor] = {}
        self._refresh = refresh
        self._candidates = candidates
        self._uses = 0

    @contextmanager
    def quantised(self):
        """Within the block the model has quantised weights; gradients reach the full ones."""
        fresh = self._uses % self._refresh == 0
        self._uses += 1
        kept = {}
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                bits = bits_of(name)
                if fresh:
                    self._scales[name] = best_scales(parameter, bits, self._candidates)
                kept[name] = parameter.data
                parameter.data = fake_quantise(parameter.data, self._scales[name], bits)
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = kept[name]


def packed_bytes(model: nn.Module) -> int:
    """Count the bytes of the packed weights: bits and f16 scales, bf16 for all the rest."""
    total = 0
    for name, parameter in model.named_parameters():
        bits = bits_of(name)
        if bits is None:
            total += 2 * parameter.numel()
        else:
            total += parameter.numel() * bits // 8 + 2 * parameter.numel() // GROUP
    return total
