"""What to change when a plan does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..summary import byte_count
from .tokens import token_count

__all__ = ["Setting", "advice_text", "advise"]

# From the largest to the smallest.
_WEIGHTS = ("f32", "bf16", "int8/g64", "int4/g64")
# Without the last, which costs some quality: it is for those who ask for it.
_KV = ("f32", "bf16", "int8")
_SHORTEST = 1024


@dataclass(frozen=True)
class Setting:
    """Choices that decide about memory.

    Args:
        weights: Format of the decoder's matrices.
        kv_cache: Format of keys and values.
        context: Tokens of a sequence.
        batch: Sequences at the same time.
    """

    weights: str
    kv_cache: str
    context: int
    batch: int


def advise(
    wanted: Setting, need: Callable[[Setting], int], available: int, *, images: int
) -> tuple[Setting | None, int]:
    """The setting nearest to the wanted one that fits, and the bytes that it needs.

    Keys and values in bf16 first, then in int8, then smaller weights, then fewer sequences at the
    same time (the others wait), and a shorter context last. Without any that fits: None and the
    least of all.

    Args:
        wanted: What does not fit.
        need: Bytes of memory of a setting.
        available: Bytes that there are.
        images: Tokens of images, which the context must hold.
    """
    least = need(wanted)
    for setting in _settings(wanted, images):
        size = need(setting)
        least = min(least, size)
        if size <= available:
            return setting, size
    return None, least


def _settings(wanted: Setting, images: int) -> Iterator[Setting]:
    family = wanted.weights.partition("/")[0]
    rank = next(i for i, form in enumerate(_WEIGHTS) if form.startswith(family))
    weights = _WEIGHTS[rank + 1 :]
    smaller = _KV[_KV.index(wanted.kv_cache) + 1 :] if wanted.kv_cache in _KV else ()
    for context in _halves(wanted.context, max(_SHORTEST, images)):
        for batch in _halves(wanted.batch, 1):
            for form in (wanted.weights, *weights):
                for kv_cache in (wanted.kv_cache, *smaller):
                    yield Setting(form, kv_cache, context, batch)


def _halves(size: int, least: int) -> Iterator[int]:
    """`size`, then the powers of two below it, down to `least`."""
    yield size
    power = 1 << max(size - 1, 1).bit_length() - 1
    while power >= least and power < size:
        yield power
        power //= 2


def advice_text(wanted: Setting, found: Setting | None, size: int, available: int) -> str:
    """One sentence for people.

    Example:
        >>> wanted = Setting("bf16", "bf16", 1 << 20, 1)
        >>> advice_text(wanted, Setting("int4/g64", "bf16", 1 << 17, 1), 68 * 10**9, 70 * 10**9)
        'weights int4/g64 and context 128K need 68.0 GB of 70.0 GB'
    """
    if found is None:
        return (
            f"no setting fits: the smallest needs {byte_count(size)}, and {byte_count(available)} "
            "are available"
        )
    changes = []
    if found.weights != wanted.weights:
        changes.append(f"weights {found.weights}")
    if found.kv_cache != wanted.kv_cache:
        changes.append(f"KV {found.kv_cache}")
    if found.context != wanted.context:
        changes.append(f"context {token_count(found.context)}")
    if found.batch != wanted.batch:
        changes.append(f"batch {found.batch}")
    return f"{' and '.join(changes)} need {byte_count(size)} of {byte_count(available)}"
