"""Small tokenizers of both kinds, and what holds for every tokenizer."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llama4rs.tokenizer import Tokenizer
from llama4rs.tokenizer.conversion import SPLIT_PATTERN

from .texts import LANGUAGES, OTHER_TEXTS

RELAXED = settings(deadline=None, max_examples=200)

NAMES = ["begin_of_text", "end_of_text", "header_start", "header_end", "eom", "eot", "step"]
NAMES += ["python_start", "python_end", "finetune_right_pad", "image_start", "image_end"]
NAMES += ["tile_x_separator", "tile_y_separator", "image", "patch"]
SPECIALS = [f"<|{name}|>" for name in NAMES]


def small_backend(*, specials_first: bool = False, special_flag: bool = True) -> Any:
    """A BPE of some hundred tokens, learnt from `texts`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIALS if specials_first else [],
    )
    backend.train_from_iterator([*LANGUAGES.values(), OTHER_TEXTS["python"]], trainer)
    if not specials_first:
        added = [AddedToken(n, normalized=False, special=special_flag) for n in SPECIALS]
        backend.add_tokens(added)
    return backend


Builder = Callable[..., Any]


def saved(backend: Any, path: Path) -> Path:
    backend.save(str(path))
    return path


def rank_lines(extra: tuple[bytes, ...] = (b"he", b"ll", b"hell", b"hello")) -> list[str]:
    tokens = [bytes([byte]) for byte in range(256)] + list(extra)
    return [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]


def write_model(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def check_stream(tokenizer: Tokenizer, highest: int) -> None:
    """Random ids, with and without text: pushes and flush make up the whole decode."""

    @RELAXED
    @given(st.lists(st.integers(0, highest), max_size=40), st.booleans())
    def check(ids: list[int], skip_special: bool) -> None:
        decoder = tokenizer.stream_decoder(skip_special=skip_special)
        for _ in range(2):  # a flushed decoder is as good as new
            text = "".join([*map(decoder.push, ids), decoder.flush()])
            assert text == tokenizer.decode(ids, skip_special=skip_special)

    check()


def check_text_is_text(tokenizer: Tokenizer) -> None:
    pieces = st.sampled_from([*SPECIALS, "<|", "|>", "<", "|", ">", "eot", " ", "x"])

    @RELAXED
    @given(st.lists(pieces | st.text(max_size=3), max_size=12).map("".join))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert not any(tokenizer.is_special(i) for i in ids)
        assert tokenizer.decode(ids) == text.encode("utf-8", "replace").decode()
        special = tokenizer.encode(text, parse_special=True)
        assert tokenizer.decode(special, skip_special=False) == text
        assert sum(map(tokenizer.is_special, special)) == sum(text.count(n) for n in SPECIALS)

    check()
