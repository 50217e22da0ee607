"""`Tokenizer`: text to token ids and back; `StreamDecoder`: back, one id at a time."""

from __future__ import annotations

import codecs
import itertools
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import CheckpointNotFoundError, TokenizerError, shown
from .conversion import converted
from .json_file import load_json
from .rank_file import parse_ranks, special_names
from .settings import read_settings

if TYPE_CHECKING:
    import tokenizers

__all__ = ["StreamDecoder", "Tokenizer"]

_BOS_NAME = "<|begin_of_text|>"
_PAD_NAME = "<|finetune_right_pad|>"
# Llama 4 ends its output with any of these, whatever the config says about one of them.
_STOP_NAMES = ("<|end_of_text|>", "<|eom|>", "<|eot|>")


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
        if not os.path.isdir(folder):  # of any name, where Path.is_dir may raise
            hint = "; for a single file use Tokenizer.from_file" if os.path.isfile(folder) else ""
            raise CheckpointNotFoundError(f"{shown(str(folder))} is not a folder{hint}")
        for name in ("tokenizer.json", "tokenizer.model"):
            if (folder / name).is_file():
                return cls._load(folder / name, read_settings(folder))
        raise CheckpointNotFoundError(
            f"{folder} has no tokenizer.json and no tokenizer.model; "
            "copy one of them from the original checkpoint"
        )

    @classmethod
    def _load(cls, path: Path, settings: dict[str, Any]) -> Tokenizer:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"tokenizer file {path} does not exist") from None
        except IsADirectoryError:
            raise TokenizerError(f"{path} is a folder; use Tokenizer.from_dir") from None
        except (OSError, ValueError) as error:  # the latter for names that no file can have
            reason = getattr(error, "strerror", None) or error
            raise TokenizerError(
                f"tokenizer file {shown(str(path))} cannot be read: {reason}"
            ) from error
        if data.startswith(b"version https://git-lfs"):
            raise TokenizerError(
                f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
            )
        if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            backend, token_bytes, special = load_json(path, data)
        else:
            ranks = parse_ranks(path, data)
            backend = converted(data, ranks)
            names = special_names()
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
        if not isinstance(ids, Iterable):
            raise TypeError(f"ids to decode must be a list of integers, not {type(ids).__name__}")
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
        for spelling in (name, f"<|{name}|>") if isinstance(name, str) else ():
            if spelling in self.special_tokens:
                return self.special_tokens[spelling]
        known = ", ".join(n for n in self.special_tokens if "reserved" not in n)
        raise TokenizerError(
            f"no special token {shown(name)}; this tokenizer has: {known or 'none'}"
        )

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
    try:
        index = operator.index(token_id)
    except TypeError:
        raise TokenizerError(f"a token id is an integer, got {shown(token_id)}") from None
    if index < 0:
        raise TokenizerError(f"token id {shown(index)} is negative")
    return index
