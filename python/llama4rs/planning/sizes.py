"""A model's sizes: its tensors as they are stored, and the numbers that decide about memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import option_errors
from ..packing import Policy, policy_pairs
from .shape import TextShape, read_shape

__all__ = ["GROUPS", "Sizes", "sizes_of", "weight_groups"]

GROUPS = (
    "experts",
    "shared experts",
    "dense layers",
    "attention",
    "embeddings",
    "router, norms",
    "vision",
)
"""Groups of weights, in the order of the table."""

_PATTERNS = (
    (re.compile(r"vision_model\.|multi_modal_projector\."), "vision"),
    (re.compile(r"layers\..*\.experts\."), "experts"),
    (re.compile(r"layers\..*\.shared_expert\."), "shared experts"),
    (re.compile(r"layers\..*\.feed_forward\.(gate|up|down)_proj"), "dense layers"),
    (re.compile(r"layers\..*\.self_attn\."), "attention"),
    (re.compile(r"embed_tokens|lm_head"), "embeddings"),
)


@dataclass(frozen=True)
class Sizes:
    """What of a model decides about memory and time.

    Args:
        name: Of the model, for people.
        config_json: Its configuration.
        weights: Format of the decoder's matrices, such as ``"int4/g64"``.
        tensors: ``name`` (or ``group``) and ``bytes`` of each tensor (or group of tensors).
        shape: The numbers in it.
        mapped: The weights are mapped from files, so the system may drop and read them again.
        on_disk: The weights are in a packed directory already.
        folder: Where packed weights are or would be.
    """

    name: str
    config_json: str
    weights: str
    tensors: tuple[Mapping[str, Any], ...]
    shape: TextShape
    mapped: bool = True
    on_disk: bool = False
    folder: Path = Path()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(int(tensor["bytes"]) for tensor in self.tensors)

    def decoded_bytes(self, rows: int = 1) -> float:
        """Weight bytes that one step reads for so many rows, each going to its own experts.

        Experts are taken to be equally popular: of ``E`` experts, ``E (1 - (1 - k/E)^rows)`` are
        visited. A row of the embedding table is nothing; the vision encoder does not take part.
        """
        experts, top_k = self.shape.num_experts, self.shape.experts_per_token
        share = 1 - (1 - top_k / experts) ** rows if experts else 0.0
        total = 0.0
        for tensor in self.tensors:
            group = _group(tensor)
            if group == "vision" or (_name(tensor) == "embed_tokens" and not self.shape.tied):
                continue
            total += tensor["bytes"] * (share if group == "experts" else 1.0)
        return total

    def in_format(self, weights: str, policy: Policy = ()) -> Sizes:
        """The same model packed in another format."""
        from .._llama4rs import plan_tensors

        with option_errors():
            tensors = plan_tensors(self.config_json, weights, policy_pairs(policy))
        return replace(
            self, weights=_full_name(weights), tensors=tuple(tensors), mapped=True, on_disk=False
        )


def sizes_of(
    name: str,
    config_json: str,
    *,
    weights: str = "int4",
    policy: Policy = (),
    tensors: Iterable[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Sizes:
    """`Sizes` from a configuration; with `tensors`, those of a model that exists.

    Example:
        >>> import json
        >>> from llama4rs.presets import preset_config
        >>> scout = sizes_of("scout", json.dumps(preset_config("scout")))
        >>> scout.shape.global_layers, round(scout.weight_bytes / 1e9)
        (12, 60)
    """
    shape = read_shape(config_json)
    sizes = Sizes(name, config_json, _full_name(weights), (), shape, **options)
    if tensors is None:
        planned = sizes.in_format(weights, policy)
        return replace(planned, mapped=sizes.mapped)
    return replace(sizes, tensors=tuple(tensors))


def weight_groups(sizes: Sizes) -> dict[str, int]:
    """Bytes by group of weights, those that the model has."""
    groups = dict.fromkeys(GROUPS, 0)
    for tensor in sizes.tensors:
        groups[_group(tensor)] += int(tensor["bytes"])
    return {group: size for group, size in groups.items() if size}


def _name(tensor: Mapping[str, Any]) -> str:
    name: str = tensor["name"] if "name" in tensor else tensor["group"]
    return name


def _group(tensor: Mapping[str, Any]) -> str:
    name = _name(tensor)
    return next((group for pattern, group in _PATTERNS if pattern.match(name)), "router, norms")


def _full_name(weights: str) -> str:
    """``int4`` is short for ``int4/g64``."""
    return f"{weights}/g64" if weights in ("int4", "int8") else weights
