"""From the ranks of a ``tokenizer.model`` to the ``tokenizers`` library, once for each file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .alphabet import spell
from .cache import CacheEntry

if TYPE_CHECKING:
    import tokenizers

__all__ = ["CONVERTER_VERSION", "SPLIT_PATTERN", "convert", "converted"]

logger = logging.getLogger(__name__)

# How Llama 4 cuts text into pieces before merging; alternatives are tried in order.
SPLIT_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# Raised whenever the conversion would give another result for the same file.
CONVERTER_VERSION = 1


def converted(data: bytes, ranks: list[bytes]) -> tokenizers.Tokenizer:
    """`convert`, by way of the cache. A cache that cannot be used costs time, nothing else."""
    from tokenizers import Tokenizer as Backend

    entry = CacheEntry(data, CONVERTER_VERSION)
    if (body := entry.read()) is not None:
        try:
            return Backend.from_buffer(body)
        except Exception as error:
            logger.info(
                "rebuilding %s, which this tokenizers library refuses: %s", entry.file, error
            )
    text = convert(ranks)
    entry.write(text.encode())
    return Backend.from_str(text)


def convert(ranks: list[bytes]) -> str:
    """The same tokenizer in the ``tokenizer.json`` format, without special tokens.

    The file lists tokens only. The merges behind a token are all ways to cut it in two known
    tokens, and they rank as the token does.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = [spell(token) for token in ranks]
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    find = rank_of.get
    merges: list[tuple[str, str]] = []
    for token in tokens:
        pairs = []
        for cut in range(1, len(token)):
            left = find(token[:cut])
            if left is None:
                continue
            right = find(token[cut:])
            if right is not None:
                pairs.append((left, right))
        pairs.sort()
        merges += [(tokens[left], tokens[right]) for left, right in pairs]

    backend = Tokenizer(models.BPE(vocab=rank_of, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return str(backend.to_str())
