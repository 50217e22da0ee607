"""``tokenizer.json``, the format of the ``tokenizers`` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TokenizerError
from .alphabet import token_bytes

if TYPE_CHECKING:
    import tokenizers

__all__ = ["load_json"]


def load_json(path: Path, data: bytes) -> tuple[tokenizers.Tokenizer, list[bytes], dict[str, int]]:
    """The backend, the bytes of every id, and the special tokens by name.

    Raises:
        TokenizerError: The file is damaged, or holds no byte-level BPE.
    """
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_buffer(data)
    except BaseException as error:
        # The library raises Exception itself; where it did not expect a file, it panics.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{path} is JSON but not a tokenizer.json that can be read: {error}"
        ) from error
    model = type(backend.model).__name__
    if model != "BPE" or not _is_byte_level(backend):
        raise TokenizerError(
            f"{path} holds a {model} tokenizer that is not byte-level BPE; "
            "Llama 4 checkpoints have a byte-level BPE tokenizer"
        )

    added = backend.get_added_tokens_decoder()
    special = {
        token.content: token_id
        for token_id, token in sorted(added.items())
        if token.content and (token.special or _looks_special(token.content))
    }
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True

    vocabulary = backend.get_vocab(with_added_tokens=False)
    by_id = [b""] * (max([*vocabulary.values(), *added, -1]) + 1)
    for token, token_id in vocabulary.items():
        by_id[token_id] = token_bytes(token)
    for token_id, added_token in added.items():
        by_id[token_id] = added_token.content.encode("utf-8", "replace")
    return backend, by_id, special


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    if type(backend.decoder).__name__ == "ByteLevel":
        return True
    spec = json.loads(backend.to_str())  # it may also be one step of a sequence
    return '"ByteLevel"' in json.dumps([spec["decoder"], spec["pre_tokenizer"]])


def _looks_special(content: str) -> bool:
    return content.startswith("<|") and content.endswith("|>") and len(content) > 4
