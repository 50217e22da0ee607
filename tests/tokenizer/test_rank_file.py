"""``tokenizer.model``: what it may look like, and how damage is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama4rs.errors import TokenizerError
from llama4rs.tokenizer import Tokenizer

from .small import rank_lines, saved, small_backend, write_model


def test_small_model(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(write_model(tmp_path / "tokenizer.model", rank_lines()))
    assert tokenizer.encode("hello hell") == [259, 32, 258]
    assert tokenizer.vocab_size == 260 + 2048
    assert tokenizer.bos_id == 260
    assert tokenizer.encode("<|eot|>", parse_special=True) == [268]


def test_line_order_and_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes("\r\n".join(["", *reversed(rank_lines()), "", ""]).encode())
    assert Tokenizer.from_file(path).encode("hello") == [259]


@pytest.mark.parametrize(
    ("line", "replacement", "message"),
    [
        (5, "A?== 4", "line 5: expected `base64 rank`, got 'A[?]== 4'"),
        (5, "BA 4", "line 5: expected `base64 rank`"),
        (5, "BA==", "line 5: expected `base64 rank`, got 'BA=='"),
        (5, "BA== 4 4", "line 5: expected `base64 rank`"),
        (5, "BA== four", "line 5: expected `base64 rank`"),
        (5, "BA== -4", "line 5: expected `base64 rank`"),
        (5, "BA== 3", "line 5: rank 3 appears twice"),
        (260, "AA== 259", "line 260: token b'\\\\x00' appears twice, first with rank 0"),
        (260, "aGVsbG8= 300", "rank 259 is missing although ranks go up to 300"),
        (5, "QUJD 4", "no token for the single byte 0x04"),
        (1, "hello there, friend", "neither a tokenizer.json nor a tokenizer.model"),
    ],
)
def test_damage(tmp_path: Path, line: int, replacement: str, message: str) -> None:
    lines = rank_lines()
    lines[line - 1] = replacement
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_file(write_model(tmp_path / "tokenizer.model", lines))


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    cases = {
        b"": "is empty",
        b"\n\x0b\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02": "perhaps a SentencePiece model",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git lfs pull",
        b'{"a": 1}': "not a tokenizer.json that can be read",
        b'{"version": "1.0"': "not a tokenizer.json that can be read",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.from_file(path)


def test_llama3_is_refused(tmp_path: Path) -> None:
    extra = tuple(b"%d-" % i for i in range(128_000 - 256))
    with pytest.raises(TokenizerError, match="the Llama 3 tokenizer"):
        Tokenizer.from_file(write_model(tmp_path / "tokenizer.model", rank_lines(extra)))


def test_other_json_tokenizers_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    path = tmp_path / "tokenizer.json"
    for model, kind in (
        (models.WordLevel({"a": 0}, unk_token="a"), "WordLevel"),
        (models.BPE({"a": 0, "▁a": 1}, []), "BPE"),
    ):
        with pytest.raises(TokenizerError, match=f"a {kind} tokenizer that is not byte-level"):
            Tokenizer.from_file(saved(Backend(model), path))


def test_a_file_that_the_library_panics_on(tmp_path: Path) -> None:
    path = saved(small_backend(), tmp_path / "tokenizer.json")
    data = json.loads(path.read_bytes())
    data["model"]["continuing_subword_prefix"] = "longer than a token"
    path.write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json that can be read"):
        Tokenizer.from_file(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        Tokenizer.from_file(tmp_path / "nowhere.json")
    with pytest.raises(TokenizerError, match=r"use Tokenizer\.from_dir"):
        Tokenizer.from_file(tmp_path)
