"""``tokenizer.model``, Meta's text format: a line for each token, ``base64(token bytes) rank``.

The special tokens are not in the file: they follow its last rank in a fixed order.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from ..errors import TokenizerError

__all__ = ["parse_ranks", "special_names"]

_NUM_SPECIAL = 2048
_LLAMA3_NUM_RANKS = 128_000


def special_names() -> list[str]:
    """The 2048 special tokens of ``tokenizer.model``, in id order after the last rank."""
    names = ["begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"]
    names += ["header_start", "header_end", "eom", "eot", "step"]
    names += [f"text_post_train_reserved_special_token_{i}" for i in range(6)]
    names += ["python_start", "python_end", "finetune_right_pad"]
    names += [f"text_post_train_reserved_special_token_{i}" for i in range(8, 69)]
    vision = [f"vision_reserved_special_token_{i}" for i in range(1048)]
    names += ["image_start", "image_end", *vision[0:2], "tile_x_separator", "tile_y_separator"]
    names += [*vision[2:6], "image", vision[6], "patch", *vision[7:]]
    names += [f"reasoning_reserved_special_token_{i}" for i in range(8)]
    names += ["reasoning_thinking_start", "reasoning_thinking_end"]
    names += [f"reserved_special_token_{i}" for i in range(_NUM_SPECIAL - len(names))]
    return [f"<|{name}|>" for name in names]


def parse_ranks(path: Path, data: bytes) -> list[bytes]:
    """Token bytes in rank order.

    Raises:
        TokenizerError: Not such a file, a damaged or incomplete one, or Llama 3's; names the line.
    """
    by_rank: dict[int, bytes] = {}
    seen: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            encoded, rank_text = fields
            token = base64.b64decode(encoded, validate=True)
            rank = int(rank_text) if rank_text.isdigit() else -1
        except (ValueError, binascii.Error):
            token, rank = b"", -1
        if not token or rank < 0:
            raise TokenizerError(_bad_line(path, data, number, line))
        if rank in by_rank:
            raise TokenizerError(f"{path}, line {number}: rank {rank} appears twice")
        if token in seen:
            raise TokenizerError(
                f"{path}, line {number}: token {token!r} appears twice, first with rank "
                f"{seen[token]}"
            )
        by_rank[rank] = token
        seen[token] = rank
    if not by_rank:
        raise TokenizerError(f"{path} is empty; copy it again from the original checkpoint")
    count = len(by_rank)
    for rank in range(count):
        if rank not in by_rank:
            raise TokenizerError(
                f"{path}: rank {rank} is missing although ranks go up to {max(by_rank)}; "
                "the file is incomplete"
            )
    for byte in range(256):
        if bytes([byte]) not in seen:
            raise TokenizerError(f"{path}: no token for the single byte 0x{byte:02x}")
    if count == _LLAMA3_NUM_RANKS:
        raise TokenizerError(
            f"{path} has {count} tokens: it is the Llama 3 tokenizer, whose special tokens differ; "
            "use the tokenizer.model of a Llama 4 checkpoint"
        )
    return [by_rank[rank] for rank in range(count)]


def _bad_line(path: Path, data: bytes, number: int, line: bytes) -> str:
    if b"\x00" in data[:4096]:
        return (
            f"{path} is binary, perhaps a SentencePiece model of an older Llama; "
            "Llama 4 has a tokenizer.json or a text tokenizer.model"
        )
    shown = line[:60].decode("utf-8", "backslashreplace").strip()
    if number == 1:
        return (
            f"{path} is neither a tokenizer.json nor a tokenizer.model: line 1 is {shown!r}, "
            "expected JSON or `base64 rank`"
        )
    return f"{path}, line {number}: expected `base64 rank`, got {shown!r}; the file is damaged"
