"""Text to token ids and back, for Llama 4 tokenizers.

Two file formats are read:

* ``tokenizer.json``, the format of the ``tokenizers`` library. Any byte-level BPE works, whatever
  its size and wherever its special tokens sit.
* ``tokenizer.model``, Meta's text format: one ``base64(token bytes) rank`` pair per line. It is
  converted to the first kind once and the result is kept in the user's cache folder.

The rule that everything else here follows: **text is text**. A user who types ``<|eot|>`` gets the
ordinary tokens of those seven characters. Only ``parse_special=True``, or the chat template's own
output (see :mod:`llama4rs.chat_template`), turns such a string into a control token.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import itertools
import json
import logging
import operator
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import CheckpointNotFoundError, TokenizerError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["StreamDecoder", "Tokenizer", "cache_dir"]

logger = logging.getLogger(__name__)

# How Llama 4 cuts text into pieces before merging; alternatives are tried in order.
_SPLIT_PATTERN = "|".join(
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

# Raised whenever the conversion below would give another result for the same file.
_CONVERTER_VERSION = 1
_CACHE_MAGIC = b"llama4rs-tokenizer"

_NUM_SPECIAL = 2048
_LLAMA3_NUM_RANKS = 128_000

_BOS_NAME = "<|begin_of_text|>"
_PAD_NAME = "<|finetune_right_pad|>"
# Llama 4 ends its output with any of these, whatever the config says about one of them.
_STOP_NAMES = ("<|end_of_text|>", "<|eom|>", "<|eot|>")


def _special_names() -> list[str]:
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


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte value in a byte-level vocabulary."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = (chr(code) for code in range(0x100, 0x200))
    return [chr(byte) if byte in kept else next(moved) for byte in range(256)]


_ALPHABET = _byte_alphabet()
_TO_ALPHABET = dict(enumerate(_ALPHABET))
# The inverse, as code points. A low code point that is not in the alphabet becomes one that latin-1
# refuses, so that `_token_bytes` notices.
_FROM_ALPHABET = dict.fromkeys(range(256), 65535) | {
    ord(char): byte for byte, char in enumerate(_ALPHABET)
}


def _token_bytes(token: str) -> bytes:
    """The bytes that a vocabulary entry stands for."""
    try:
        return token.translate(_FROM_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # not spelled in the byte alphabet: it stands for itself
        return token.encode("utf-8", "replace")


def cache_dir() -> Path | None:
    """The folder for converted tokenizers: ``$LLAMA4RS_CACHE``, else ``$XDG_CACHE_HOME/llama4rs``,
    else ``~/.cache/llama4rs``. None when there is no home folder either. It may not exist yet."""
    if own := os.environ.get("LLAMA4RS_CACHE"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and os.path.isabs(xdg):
        return Path(xdg) / "llama4rs"
    try:
        return Path.home() / ".cache" / "llama4rs"
    except RuntimeError:
        return None


class Tokenizer:
    """A byte-level BPE tokenizer with Llama 4's special tokens.

    Make one with :meth:`from_dir` (a checkpoint folder) or :meth:`from_file` (one file); the
    constructor is internal. A tokenizer never changes and may be shared between threads.

    Attributes:
        bos_id: Id of the token that starts every prompt, None if the tokenizer has none.
        bos_token: Its text, ``""`` if there is none.
        eos_ids: Every id after which generation stops: those that the checkpoint's generation
            config names, and ``<|end_of_text|>``, ``<|eom|>``, ``<|eot|>`` where they exist.
        eos_token: Text of the token that ends a turn, ``""`` if there is none.
        pad_id: Id of ``<|finetune_right_pad|>``, None if there is none.
        special_tokens: Read-only mapping from name (``"<|eot|>"``) to id.
        chat_template: The checkpoint's own Jinja template, None if it has none.
        chat_template_for_tools: A second template for prompts with tools, None for most.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        token_bytes: list[bytes],
        special_tokens: Mapping[str, int],
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
        chat_template_for_tools: str | None = None,
    ) -> None:
        self._backend = backend
        # An id without text has no bytes and is in `_special_ids`.
        self._bytes = token_bytes
        self.special_tokens: Mapping[str, int] = MappingProxyType(dict(special_tokens))
        self._special_ids = frozenset(special_tokens.values())

        self.bos_token = self._first_special(bos_token, _BOS_NAME)
        self.eos_token = self._first_special(eos_token, "<|eot|>", "<|end_of_text|>")
        self.bos_id: int | None = self.special_tokens.get(self.bos_token)
        self.pad_id: int | None = self.special_tokens.get(_PAD_NAME)
        named = {self.special_tokens[n] for n in _STOP_NAMES if n in self.special_tokens}
        if self.eos_token:
            named.add(self.special_tokens[self.eos_token])
        self.eos_ids: frozenset[int] = frozenset({*eos_ids, *named})
        self.chat_template = chat_template
        self.chat_template_for_tools = chat_template_for_tools

    def _first_special(self, *names: str | None) -> str:
        return next((name for name in names if name and name in self.special_tokens), "")

    # ------------------------------------------------------------------------------- loading

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a ``tokenizer.json`` or a ``tokenizer.model``; the content decides which it is.

        Raises:
            CheckpointNotFoundError: There is no such file.
            TokenizerError: The file is neither format, or is damaged.
        """
        return cls._load(Path(path), {})

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a checkpoint folder.

        ``tokenizer.json`` is preferred, then ``tokenizer.model``. Also read where present:
        ``tokenizer_config.json`` (BOS, EOS, template), ``generation_config.json`` (stop ids), and
        the template files ``chat_template.jinja`` (preferred) and ``chat_template.json``.

        Raises:
            CheckpointNotFoundError: No such folder, or it has no tokenizer file.
            TokenizerError: One of these files is damaged.
        """
        folder = Path(path)
        if not folder.is_dir():
            hint = "; for a single file use Tokenizer.from_file" if folder.is_file() else ""
            raise CheckpointNotFoundError(f"{folder} is not a folder{hint}")
        for name in ("tokenizer.json", "tokenizer.model"):
            if (folder / name).is_file():
                return cls._load(folder / name, _read_settings(folder))
        raise CheckpointNotFoundError(
            f"{folder} has no tokenizer.json and no tokenizer.model; "
            "copy one of them from the original checkpoint"
        )

    @classmethod
    def _load(cls, path: Path, settings: dict[str, Any]) -> Tokenizer:
        if path.is_dir():
            raise TokenizerError(f"{path} is a folder; use Tokenizer.from_dir")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"tokenizer file {path} does not exist") from None
        if data.startswith(b"version https://git-lfs"):
            raise TokenizerError(
                f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
            )
        if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            backend, token_bytes, special = _load_json(path, data)
        else:
            ranks = _parse_ranks(path, data)
            backend = _converted(data, ranks)
            names = _special_names()
            special = {name: len(ranks) + i for i, name in enumerate(names)}
            token_bytes = ranks + [name.encode() for name in names]
        return cls(backend, token_bytes, special, **settings)

    # ------------------------------------------------------------------------------ encoding

    def encode(self, text: str, *, bos: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: Any string. Lone surrogates are read as U+FFFD.
            bos: Put the BOS id first, unless the ids already start with it.
            parse_special: Read special token names in ``text`` as those tokens. Only for text
                that you wrote: with the default, no input gives a control token.

        Raises:
            TokenizerError: ``bos`` is asked for and the tokenizer has none.
        """
        if not isinstance(text, str):
            raise TypeError(f"text to encode must be a str, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:  # surrogates: join the pairs, replace the others
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = []
        if parse_special:
            for run, special in self.split_special(text):
                ids += self._encode_text(run)
                if special is not None:
                    ids.append(special)
        else:
            ids = self._encode_text(text)
        if bos:
            if self.bos_id is None:
                raise TokenizerError("this tokenizer has no BOS token; encode with bos=False")
            if not ids or ids[0] != self.bos_id:
                ids.insert(0, self.bos_id)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        ids = self._encode_once(text)
        if not self._special_ids.isdisjoint(ids):
            # Special tokens that the file does not flag as such match in any text, and one that
            # is also in the ordinary vocabulary can match as a whole piece. Cut inside every such
            # name, then none is left to match.
            cuts = [m.start() + 1 for m in self._overlapping_special_pattern.finditer(text)]
            bounds = [0, *cuts, len(text)]
            ids = [i for a, b in itertools.pairwise(bounds) for i in self._encode_once(text[a:b])]
        return ids

    def _encode_once(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def split_special(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Cut ``text`` at special token names: pairs of the plain text before one (may be empty)
        and its id. The last pair holds the rest of the text and None."""
        start = 0
        if self.special_tokens:
            for match in self._special_pattern.finditer(text):
                yield text[start : match.start()], self.special_tokens[match.group()]
                start = match.end()
        yield text[start:], None

    @cached_property
    def _special_alternatives(self) -> str:
        return "|".join(re.escape(n) for n in sorted(self.special_tokens, key=len, reverse=True))

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile(self._special_alternatives)

    @cached_property
    def _overlapping_special_pattern(self) -> re.Pattern[str]:
        return re.compile(f"(?={self._special_alternatives})")

    # ------------------------------------------------------------------------------ decoding

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``. Bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Token ids.
            skip_special: Leave out special tokens, and ids that have no text (the model's
                vocabulary may be larger than the tokenizer's). Otherwise special tokens give their
                name and ids without text give ``<|reserved_ID|>``.

        Raises:
            TokenizerError: A negative id.
        """
        piece = self._piece
        return b"".join([piece(i, skip_special) for i in ids]).decode("utf-8", "replace")

    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes one id at a time. ``skip_special`` as in :meth:`decode`."""
        return StreamDecoder(self, skip_special=skip_special)

    def id_to_bytes(self, token_id: int) -> bytes:
        """The bytes of one token: a special token's name, ``b""`` for an id without text.

        Raises:
            TokenizerError: ``token_id`` is negative.
        """
        token_id = _checked_id(token_id)
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def _piece(self, token_id: int, skip_special: bool) -> bytes:
        token_id = _checked_id(token_id)
        if token_id in self._special_ids:
            return b"" if skip_special else self._bytes[token_id]
        data = self._bytes[token_id] if token_id < len(self._bytes) else b""
        if not data and not skip_special:
            return b"<|reserved_%d|>" % token_id
        return data

    # --------------------------------------------------------------------------------- facts

    @property
    def vocab_size(self) -> int:
        """One more than the highest id that the tokenizer knows. A model may have more rows."""
        return len(self._bytes)

    def __len__(self) -> int:
        return self.vocab_size

    def special_id(self, name: str) -> int:
        """Id of a special token, by name with or without delimiters: ``"<|eot|>"`` or ``"eot"``.

        Raises:
            TokenizerError: The tokenizer has no such special token.
        """
        for spelling in (name, f"<|{name}|>"):
            if spelling in self.special_tokens:
                return self.special_tokens[spelling]
        known = ", ".join(n for n in self.special_tokens if "reserved" not in n)
        raise TokenizerError(f"no special token {name!r}; this tokenizer has: {known or 'none'}")

    def is_special(self, token_id: int) -> bool:
        """Whether ``token_id`` is a special token."""
        return token_id in self._special_ids

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Tokenizer cannot be pickled or copied: read it in every process with "
            "Tokenizer.from_dir or Tokenizer.from_file"
        )

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, special={len(self.special_tokens)})"


class StreamDecoder:
    """Turns ids into text one at a time; never gives out half a character.

    The concatenation of all results, :meth:`flush` included, is what :meth:`Tokenizer.decode`
    gives for all ids together. Each step costs time in proportion to its own token only. Made by
    :meth:`Tokenizer.stream_decoder`; one decoder serves one stream.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that became complete with ``token_id``; may be empty.

        Raises:
            TokenizerError: ``token_id`` is negative.
        """
        return self._utf8.decode(self._tokenizer._piece(token_id, self._skip_special))

    def flush(self) -> str:
        """The rest: U+FFFD if the stream ended inside a character, else nothing. The decoder is
        then ready for a new stream."""
        return self._utf8.decode(b"", final=True)


def _checked_id(token_id: int) -> int:
    index = operator.index(token_id)
    if index < 0:
        raise TokenizerError(f"token id {index} is negative")
    return index


# ---------------------------------------------------------------------------------- tokenizer.json


def _load_json(path: Path, data: bytes) -> tuple[tokenizers.Tokenizer, list[bytes], dict[str, int]]:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_buffer(data)
    except Exception as error:  # the library raises Exception itself
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
    token_bytes = [b""] * (max([*vocabulary.values(), *added, -1]) + 1)
    for token, token_id in vocabulary.items():
        token_bytes[token_id] = _token_bytes(token)
    for token_id, added_token in added.items():
        token_bytes[token_id] = added_token.content.encode("utf-8", "replace")
    return backend, token_bytes, special


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    if type(backend.decoder).__name__ == "ByteLevel":
        return True
    spec = json.loads(backend.to_str())  # it may also be one step of a sequence
    return '"ByteLevel"' in json.dumps([spec["decoder"], spec["pre_tokenizer"]])


def _looks_special(content: str) -> bool:
    return content.startswith("<|") and content.endswith("|>") and len(content) > 4


# --------------------------------------------------------------------------------- tokenizer.model


def _parse_ranks(path: Path, data: bytes) -> list[bytes]:
    """Token bytes in rank order. Every message names the line."""
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


def _convert(ranks: list[bytes]) -> str:
    """The same tokenizer in the ``tokenizer.json`` format, without special tokens.

    The file lists tokens only. The merges behind a token are all ways to cut it in two known
    tokens, and they rank as the token does.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = [token.decode("latin-1").translate(_TO_ALPHABET) for token in ranks]
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
            pre_tokenizers.Split(Regex(_SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return str(backend.to_str())


def _converted(data: bytes, ranks: list[bytes]) -> tokenizers.Tokenizer:
    """`_convert`, by way of the cache. A cache that cannot be used costs time, nothing else."""
    from tokenizers import Tokenizer as Backend

    folder = cache_dir()
    digest = hashlib.sha256(data).hexdigest()
    file = folder / f"tokenizer-{digest[:32]}-v{_CONVERTER_VERSION}.json" if folder else None
    if file is not None and (body := _read_cache(file, digest)) is not None:
        try:
            return Backend.from_buffer(body)
        except Exception as error:
            logger.info("rebuilding %s, which this tokenizers library refuses: %s", file, error)
    text = _convert(ranks)
    if file is not None:
        _write_cache(file, digest, text.encode())
    return Backend.from_str(text)


def _cache_header(digest: str, body: bytes) -> bytes:
    fields = (str(_CONVERTER_VERSION), digest, hashlib.sha256(body).hexdigest())
    return b" ".join((_CACHE_MAGIC, *(field.encode() for field in fields)))


def _read_cache(file: Path, digest: str) -> bytes | None:
    try:
        header, _, body = file.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.info("tokenizer cache not read: %s", error)
        return None
    if header != _cache_header(digest, body):
        logger.info("rebuilding the damaged tokenizer cache %s", file)
        return None
    return body


def _write_cache(file: Path, digest: str, body: bytes) -> None:
    temporary: str | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(_cache_header(digest, body) + b"\n")
            stream.write(body)
        os.replace(temporary, file)
        temporary = None
    except OSError as error:
        logger.info("tokenizer cache not written: %s", error)
    finally:
        if temporary is not None:
            try:
                os.unlink(temporary)
            except OSError:
                logger.info("left behind: %s", temporary)


# ------------------------------------------------------------------------- settings of a checkpoint


def _read_settings(folder: Path) -> dict[str, Any]:
    """Keyword arguments for `Tokenizer` from the files beside the tokenizer file."""
    config = _read_object(folder / "tokenizer_config.json")
    generation = _read_object(folder / "generation_config.json")
    settings: dict[str, Any] = {
        "bos_token": _token_name(config.get("bos_token")),
        "eos_token": _token_name(config.get("eos_token")),
        "eos_ids": _id_list(folder / "generation_config.json", generation.get("eos_token_id")),
    }
    templates = _templates(folder, config)
    if templates:
        settings["chat_template"] = templates.get("default", next(iter(templates.values())))
        settings["chat_template_for_tools"] = templates.get("tool_use")
    return settings


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file."""
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _token_name(value: Any) -> str | None:
    """A token is written as its text, or as an object with the text in ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _id_list(path: Path, value: Any) -> list[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for item in ids:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise TokenizerError(f"{path}: eos_token_id must be ids of tokens, got {item!r}")
    return list(ids)


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; ``default`` is the usual one."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return {"default": jinja.read_text("utf-8")}
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{jinja} is not UTF-8 text: {error}") from error
    source = folder / "chat_template.json"
    value = _read_object(source).get("chat_template")
    if value is None:
        source = folder / "tokenizer_config.json"
        value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        value = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
    if isinstance(value, dict) and all(isinstance(s, str) for pair in value.items() for s in pair):
        return dict(value)
    raise TokenizerError(f"{source}: chat_template is neither a string nor named strings")
