"""Text is text, streams equal whole decodes, wherever the special tokens sit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama4rs.errors import TokenizerError
from llama4rs.tokenizer import Tokenizer

from .small import SPECIALS, check_stream, check_text_is_text, saved, small_backend
from .texts import LANGUAGES, OTHER_TEXTS


def test_facts(small: Tokenizer) -> None:
    assert small.vocab_size == len(small) == 400 + len(SPECIALS)
    assert small.bos_id == 400
    assert small.special_id("<|eot|>") == small.special_id("eot") == 405
    assert small.eos_ids == {401, 404, 405}
    assert small.pad_id == 409
    assert (small.bos_token, small.eos_token) == ("<|begin_of_text|>", "<|eot|>")
    assert repr(small) == "Tokenizer(vocab_size=416, special=16)"


@pytest.mark.parametrize("name", [*LANGUAGES, *OTHER_TEXTS])
def test_round_trip(small: Tokenizer, name: str) -> None:
    text = {**LANGUAGES, **OTHER_TEXTS}[name]
    ids = small.encode(text)
    assert small.decode(ids) == text
    assert b"".join(map(small.id_to_bytes, ids)) == text.encode()


def test_stream_equals_decode(small: Tokenizer) -> None:
    check_stream(small, highest=430)


@pytest.mark.parametrize(
    "options", [{}, {"specials_first": True}, {"special_flag": False}], ids=str
)
def test_text_never_gives_special_ids(tmp_path: Path, options: dict[str, bool]) -> None:
    path = saved(small_backend(**options), tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    assert sorted(tokenizer.special_tokens) == sorted(SPECIALS)
    check_text_is_text(tokenizer)


def test_special_name_as_a_whole_piece(tmp_path: Path) -> None:
    """Special tokens in the ordinary vocabulary, and no splitting: the name is one piece."""
    from tokenizers import pre_tokenizers

    backend = small_backend(specials_first=True)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer.from_file(saved(backend, tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("<|eot|>")
    assert not any(map(tokenizer.is_special, ids))
    assert tokenizer.decode(ids) == "<|eot|>"


def test_saved_padding_and_truncation_are_ignored(tmp_path: Path) -> None:
    backend = small_backend()
    text = LANGUAGES["english"]
    expected = backend.encode(text).ids
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_file(saved(backend, tmp_path / "tokenizer.json"))
    assert tokenizer.encode(text) == expected


def test_ordinary_added_tokens_are_text(tmp_path: Path) -> None:
    backend = small_backend()
    backend.add_tokens(["Zürich\u3000"])
    tokenizer = Tokenizer.from_file(saved(backend, tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("in Zürich\u3000now")
    assert 416 in ids
    assert tokenizer.decode(ids) == "in Zürich\u3000now"


def test_bos(small: Tokenizer, tmp_path: Path) -> None:
    bos = small.bos_id
    assert small.encode("", bos=True) == [bos]
    ids = small.encode("hi", bos=True)
    assert ids == [bos, *small.encode("hi")]
    text = "<|begin_of_text|>hi"
    assert small.encode(text, bos=True, parse_special=True) == ids
    assert small.encode(text, bos=True)[0] == bos
    assert small.encode(text, bos=True).count(bos) == 1
    spec = json.loads(small_backend().to_str())
    spec["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    plain = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert (plain.bos_id, plain.bos_token, plain.eos_ids) == (None, "", frozenset())
    assert plain.encode("<|eot|>", parse_special=True) == plain.encode("<|eot|>")
    with pytest.raises(TokenizerError, match="no BOS token"):
        plain.encode("hi", bos=True)


def test_split_special(small: Tokenizer) -> None:
    eot, image = small.special_id("eot"), small.special_id("image")
    assert list(small.split_special("a<|eot|><|image|>b<|x|>")) == [
        ("a", eot),
        ("", image),
        ("b<|x|>", None),
    ]
    assert list(small.split_special("")) == [("", None)]


def test_decode_special_and_textless_ids(small: Tokenizer) -> None:
    ids = [small.special_id("eot"), *small.encode("é"), 10**6]
    assert small.decode(ids) == "é"
    assert small.decode(ids, skip_special=False) == "<|eot|>é<|reserved_1000000|>"
    assert small.id_to_bytes(10**6) == b""
    assert small.id_to_bytes(405) == b"<|eot|>"


def test_negative_ids(small: Tokenizer) -> None:
    for call in (lambda: small.decode([1, -1]), lambda: small.id_to_bytes(-1)):
        with pytest.raises(TokenizerError, match="token id -1 is negative"):
            call()
    with pytest.raises(ValueError, match="-7 is negative"):
        small.stream_decoder().push(-7)


def test_half_character(small: Tokenizer) -> None:
    first, second = (small._bytes.index(bytes([b])) for b in "é".encode())
    decoder = small.stream_decoder()
    assert (decoder.push(first), decoder.push(second), decoder.flush()) == ("", "é", "")
    assert (decoder.push(first), decoder.flush()) == ("", "\ufffd")
    assert decoder.push(second) == "\ufffd"


def test_lone_surrogates_become_replacement_characters(small: Tokenizer) -> None:
    assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"
    assert small.decode(small.encode("\ud83d\ude00")) == "😀"


def test_text_must_be_text(small: Tokenizer) -> None:
    with pytest.raises(TypeError, match="must be a str, not bytes"):
        small.encode(b"hi")  # type: ignore[arg-type]


def test_unknown_special_name(small: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"no special token 'eos'; this .* <\|eot\|>"):
        small.special_id("eos")
