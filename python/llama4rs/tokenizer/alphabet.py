"""The printable characters that stand for bytes in a byte-level vocabulary."""

from __future__ import annotations

__all__ = ["spell", "token_bytes"]


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte value in a byte-level vocabulary."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = (chr(code) for code in range(0x100, 0x200))
    return [chr(byte) if byte in kept else next(moved) for byte in range(256)]


_ALPHABET = _byte_alphabet()
_TO_ALPHABET = dict(enumerate(_ALPHABET))
# The inverse, as code points. A low code point that is not in the alphabet becomes one that latin-1
# refuses, so that `token_bytes` notices.
_FROM_ALPHABET = dict.fromkeys(range(256), 65535) | {
    ord(char): byte for byte, char in enumerate(_ALPHABET)
}


def spell(token: bytes) -> str:
    """How a vocabulary spells these bytes."""
    return token.decode("latin-1").translate(_TO_ALPHABET)


def token_bytes(token: str) -> bytes:
    """The bytes that a vocabulary entry stands for."""
    try:
        return token.translate(_FROM_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # not spelled in the byte alphabet: it stands for itself
        return token.encode("utf-8", "replace")
