"""What a model needs before it is opened: memory, disk and time, from its configuration alone."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .counts import check_text
from .errors import RequestError, shown
from .packing import Policy
from .planning.advice import Setting, advice_text, advise
from .planning.budget import MAX_SEQUENCES, PREFIX_CACHE_BYTES, STEP_TOKENS, parse_bytes
from .planning.machine import Machine, this_machine
from .planning.memory import (
    KV_FORMATS,
    ImageLoad,
    image_bytes,
    kv_bytes,
    sequence_bytes,
    step_bytes,
    step_kv_bytes,
    vision_bytes,
)
from .planning.sizes import Sizes, sizes_of, weight_groups
from .planning.sources import image_load, model_sizes
from .planning.speed import Probe, Speed, measure, predict
from .planning.text import plan_text
from .planning.tokens import parse_tokens, positive, token_count
from .summary import byte_count

if TYPE_CHECKING:
    from ._llama4rs import Engine

__all__ = [
    "Component",
    "Machine",
    "Plan",
    "Probe",
    "Speed",
    "parse_tokens",
    "plan",
    "plan_opened",
]

DEFAULT_CONTEXT = 8192
_IMAGE_SIZE = (1024, 1024)


@dataclass(frozen=True)
class Component:
    """A part of the memory.

    Args:
        group: ``"weights"``, ``"keys and values"``, ``"step"`` or ``"images"``.
        name: What it is.
        bytes: For all sequences together.
        per_sequence: Bytes of one sequence; None for what sequences share.
    """

    group: str
    name: str
    bytes: int
    per_sequence: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a model needs, and what this machine has; ``print(plan)`` shows a table.

    Args:
        model: Its name.
        weights: Format of the decoder's matrices.
        kv_cache: Format of keys and values.
        context: Tokens of a sequence.
        batch: Sequences that run at the same time.
        images: Images of a sequence.
        components: Bytes of memory by component.
        decoded_bytes: Weight bytes that decoding one token of one sequence reads.
        disk_bytes: To be written for the packed weights; 0 where they exist.
        machine: Memory and disk of this machine.
        verdict: ``"fits"``, ``"streams"`` (all but the weights fits; they are read from disk
            again and again, which is slow), ``"does not fit"``, or ``"unknown"``.
        advice: What to change, where it does not fit; else None.
        setting: The choices that the advice names; None where there are none that fit.
        speed: Predictions; None without a probe.
        notes: Remarks.
    """

    model: str
    weights: str
    kv_cache: str
    context: int
    batch: int
    images: ImageLoad
    components: tuple[Component, ...]
    decoded_bytes: int
    disk_bytes: int
    machine: Machine
    verdict: str
    advice: str | None = None
    setting: Setting | None = None
    speed: Speed | None = None
    notes: tuple[str, ...] = ()

    def group_bytes(self, group: str) -> int:
        """Bytes of all components of a group."""
        return sum(part.bytes for part in self.components if part.group == group)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return self.group_bytes("weights")

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values of all sequences, each with a full context."""
        return self.kv_bytes_per_sequence * self.batch

    @property
    def kv_bytes_per_sequence(self) -> int:
        """Bytes of keys and values of one sequence with a full context."""
        parts = (part.per_sequence for part in self.components if part.group == "keys and values")
        return sum(part or 0 for part in parts)

    @property
    def total_bytes(self) -> int:
        """Bytes of memory at most: all components."""
        return sum(part.bytes for part in self.components)

    @property
    def fits(self) -> bool:
        """Whether everything fits into the memory that is available."""
        return self.verdict == "fits"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain dicts and lists, for JSON."""
        sums = {
            "weight_bytes": self.weight_bytes,
            "kv_bytes_per_sequence": self.kv_bytes_per_sequence,
            "kv_bytes": self.kv_bytes,
            "total_bytes": self.total_bytes,
            "fits": self.fits,
        }
        return {**asdict(self), **sums}

    def __str__(self) -> str:
        return plan_text(self)


def plan(
    model: str | os.PathLike[str] | None = None,
    *,
    context: int | str = DEFAULT_CONTEXT,
    batch: int = 1,
    images: int = 0,
    image_size: tuple[int, int] = _IMAGE_SIZE,
    weights: str | None = None,
    policy: Policy = (),
    kv_cache: str | None = None,
    threads: int | None = None,
    step_tokens: int | None = None,
    prefix_cache_bytes: int | str | None = None,
    kv_memory: int | str | None = None,
    probe: bool = True,
) -> Plan:
    """What a model would need, without opening it: bytes by component, speed, what to change.

    Args:
        model: ``"scout"`` or ``"maverick"`` (nothing is downloaded), a directory, a
            ``config.json``, an id on the hub that was downloaded before, or None for the demo
            model.
        context: Tokens of a sequence, prompt and output: a number, or a text such as ``"128K"``
            or ``"1M"`` (1K is 1024).
        batch: Sequences that run at the same time.
        images: Images of each sequence; their tokens are part of the context.
        image_size: Width and height of each image in pixels.
        weights: Format of the decoder's matrices, as for `Llama4`; None is what a packed model
            holds, else ``"int4"``.
        policy: Other formats for some matrices, as for `Llama4`.
        kv_cache: Format of keys and values, ``"bf16"``, ``"int8"``, ``"int4"`` or ``"f32"``, as for
            `Llama4`.
        threads: Threads to compute with; None for as many as there are cores.
        step_tokens: Most tokens of a step, as for `Llama4`.
        prefix_cache_bytes: As for `Llama4`; such pages are counted as if they were all in use.
        kv_memory: As for `Llama4`: sequences for which it has no room wait for others to end.
        probe: Time this machine's kernels for about half a second, and predict speed.

    Raises:
        CheckpointNotFoundError: There is no such model.
        CheckpointError: The model is damaged, or is no Llama 4.
        RequestError: An option is out of range.

    Example:
        >>> import llama4rs
        >>> scout = llama4rs.plan("scout", context="1M", probe=False)
        >>> round(scout.weight_bytes / 1e9), round(scout.kv_bytes / 2**30, 1)
        (60, 49.1)
    """
    sizes = model_sizes(model, weights, policy)
    return _plan(
        sizes,
        context=context,
        batch=batch,
        images=images,
        image_size=image_size,
        kv_cache=kv_cache,
        threads=threads,
        step_tokens=step_tokens,
        prefix_cache_bytes=prefix_cache_bytes,
        kv_memory=kv_memory,
        probe=probe,
    )


def plan_opened(engine: Engine, path: Path, **options: Any) -> Plan:
    """`plan` for a model that is open, as `Llama4.plan` gives it."""
    mapped = (path / "llama4rs.json").is_file()
    summary = engine.summary()
    sizes = sizes_of(
        str(path),
        engine.config_json,
        weights=engine.weights,
        tensors=summary["tensors"],
        mapped=mapped,
        on_disk=mapped,
        folder=path,
    )
    held = (engine.kv_bytes_in_use() or 0) + (0 if mapped else sizes.weight_bytes)
    return _plan(
        sizes,
        kv_cache=summary["kv_cache"],
        kv_memory=engine.kv_memory,
        held_bytes=held,
        **options,
    )


def _plan(
    sizes: Sizes,
    *,
    context: int | str,
    batch: int = 1,
    images: int = 0,
    image_size: tuple[int, int] = _IMAGE_SIZE,
    kv_cache: str | None = None,
    threads: int | None = None,
    step_tokens: int | None = None,
    prefix_cache_bytes: int | str | None = None,
    kv_memory: int | str | None = None,
    probe: bool = True,
    held_bytes: int = 0,
) -> Plan:
    """`plan` for sizes that are known.

    Args:
        held_bytes: Of the plan's memory, what this process holds already.
    """
    tokens = parse_tokens(context)
    step_tokens = positive("step_tokens", STEP_TOKENS if step_tokens is None else step_tokens)
    batch = positive("batch", batch)
    load = image_load(sizes, images, image_size)
    if load.count * load.tokens > tokens:
        raise RequestError(
            f"{load.count} images of {load.tokens} tokens need a context of "
            f"{load.count * load.tokens}, got {tokens}"
        )
    kv_format = _kv_format(kv_cache, sizes.weights)
    per_sequence = sum(kv_bytes(sizes.shape, tokens, kv_format).values())
    at_once, kept = min(batch, MAX_SEQUENCES), PREFIX_CACHE_BYTES
    if prefix_cache_bytes is not None:
        kept = parse_bytes("prefix_cache_bytes", prefix_cache_bytes, least=0)
    if kv_memory is not None:
        kv_memory = parse_bytes("kv_memory", kv_memory)
        at_once = min(at_once, max(1, kv_memory // per_sequence))
        kept = min(kept, max(0, kv_memory - at_once * per_sequence))
    notes = _notes(sizes, tokens, batch, at_once, per_sequence, kv_memory)
    wanted = Setting(sizes.weights, kv_format, tokens, at_once)
    components = partial(_components, images=load, step_tokens=step_tokens, kept=kept)
    machine = this_machine(sizes.folder)
    result = Plan(
        model=sizes.name,
        weights=wanted.weights,
        kv_cache=wanted.kv_cache,
        context=wanted.context,
        batch=wanted.batch,
        images=load,
        components=components(sizes, wanted),
        decoded_bytes=round(sizes.decoded_bytes()),
        disk_bytes=0 if sizes.on_disk or not sizes.mapped else sizes.weight_bytes,
        machine=machine,
        verdict="unknown",
        notes=notes,
    )
    if machine.memory_available is not None:
        available = machine.memory_available + held_bytes
        result = replace(result, verdict=_verdict(result, sizes.mapped, available))
        if not result.fits:

            def need(setting: Setting) -> int:
                other = sizes if setting.weights == sizes.weights else formats[setting.weights]
                return sum(part.bytes for part in components(other, setting))

            formats = _Formats(sizes)
            found, size = advise(wanted, need, available, images=load.count * load.tokens)
            advice = advice_text(wanted, found, size, available)
            result = replace(result, advice=advice, setting=found)
    if probe:
        measured = measure(sizes, wanted.kv_cache, threads=threads, images=load.count > 0)
        speed = predict(
            sizes,
            measured,
            wanted.kv_cache,
            context=tokens,
            batch=wanted.batch,
            step_tokens=step_tokens,
            images=load,
        )
        result = replace(result, speed=speed)
    return result


class _Formats(dict[str, Sizes]):
    """A model's sizes by weight format, made when asked for."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes

    def __missing__(self, weights: str) -> Sizes:
        self[weights] = self._sizes.in_format(weights)
        return self[weights]


def _components(
    sizes: Sizes, setting: Setting, *, images: ImageLoad, step_tokens: int, kept: int
) -> tuple[Component, ...]:
    shape, batch = sizes.shape, setting.batch
    parts = [Component("weights", name, size) for name, size in weight_groups(sizes).items()]
    for kind, size in kv_bytes(shape, setting.context, setting.kv_cache).items():
        if size:
            name = f"{kind} layers"
            parts.append(Component("keys and values", name, size * batch, size))
    if kept:
        parts.append(Component("keys and values", "kept prefixes, at most", kept))
    rows = max(batch, min(step_tokens, batch * setting.context))
    for name, size in step_bytes(shape, rows, batch).items():
        parts.append(Component("step", name, size))
    step_kv = step_kv_bytes(shape, setting.context, step_tokens, setting.kv_cache)
    if step_kv:
        parts.append(Component("step", "pages of a step", step_kv))
    text = sequence_bytes(setting.context)
    parts.append(Component("step", "texts", text * batch, text))
    if images.count:
        parts.append(Component("images", "encoder", vision_bytes(shape, images.tiles)))
        each = image_bytes(shape, images)
        parts.append(Component("images", "tiles, features", each * batch, each))
    return tuple(parts)


def _verdict(result: Plan, mapped: bool, available: int) -> str:
    if result.total_bytes <= available:
        return "fits"
    rest = result.total_bytes - result.weight_bytes
    if mapped and rest + result.decoded_bytes <= available:
        return "streams"
    return "does not fit"


def _notes(
    sizes: Sizes, context: int, batch: int, at_once: int, per_sequence: int, kv_memory: int | None
) -> tuple[str, ...]:
    notes = []
    longest = sizes.shape.max_context
    if context > longest:
        notes.append(f"the model is made for {token_count(longest)} tokens")
    if kv_memory is not None and per_sequence > kv_memory:
        notes.append(
            f"a sequence of this context needs {byte_count(per_sequence)} of keys and values: "
            f"with kv_memory {byte_count(kv_memory)} it is refused"
        )
    elif batch > at_once:
        notes.append(f"{at_once} sequences run at the same time, others wait")
    return tuple(notes)


def _kv_format(kv_cache: str | None, weights: str) -> str:
    check_text("kv_cache", kv_cache)
    if kv_cache in (None, "auto"):
        return "f32" if weights == "f32" else "bf16"
    if kv_cache not in KV_FORMATS:
        names = ", ".join(f'"{name}"' for name in KV_FORMATS)
        raise RequestError(f"kv_cache must be one of {names}, got {shown(kv_cache)}")
    return kv_cache
