"""The tokenizer: ids equal to tiktoken's, text is text, streams equal whole decodes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4rs import tokenizer as tokenizer_module
from llama4rs.errors import CheckpointNotFoundError, TokenizerError
from llama4rs.tokenizer import Tokenizer

pytest.importorskip("tokenizers")

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL_SHA256 = "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed"
RELAXED = settings(deadline=None, max_examples=200)

# One sentence in each language that Llama 4 supports, with what is special in its writing.
LANGUAGES = {
    "arabic": "مرحبًا بالعالم! كيف حالُكَ اليوم؟ ١٢٣ كتابًا",
    "english": "It's 3:45 p.m. — they'll've GONE, DON'T you think?",
    "french": "L’été dernier, où étiez-vous ? « À Besançon », dit-elle.",
    "german": "Straßenbahnhaltestelle: Übergrößenträger kosten 1.234,56 €.",
    "hindi": "नमस्ते दुनिया! क्या आप ठीक हैं? १२३ किताबें।",
    "indonesian": "Selamat pagi, orang-orang baik; mereka berlari-larian.",
    "italian": "Perché l'università è chiusa? È già mezzanotte, cioè le 24.",
    "portuguese": "Não há pão à venda; a informação não está disponível às 9h.",
    "spanish": "¿Dónde está el niño? ¡Qué pingüino más simpático!",
    "tagalog": "Kumusta ka? Ang mga bata'y naglalaro sa ilalim ng puno.",
    "thai": "สวัสดีชาวโลก วันนี้อากาศดีมาก ๑๒๓",
    "vietnamese": "Xin chào thế giới! Hôm nay trời đẹp quá, phải không?",
}
OTHER_TEXTS = {
    "empty": "",
    "decomposed accents": unicodedata.normalize("NFD", LANGUAGES["vietnamese"]),
    "chinese and japanese": "日本語テスト。中文測試，ひらがな ｶﾀｶﾅ",
    "korean": "안녕하세요 세계",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️ 1️⃣",
    "odd spaces": " \u00a0\u2003\u3000\u200b\ufeff x\u0085y\u2028z\v\f",
    "line ends": "a\r\nb\n\n\nc\r\r d  \n  e \n\n x\t\n",
    "trailing spaces": "word    ",
    "numbers": "1234567890 3.14159 0x1F 1e-9 ½ ² ٣ Ⅷ",
    "contractions": "I'M i'm we'Re 'SS ſ's K's it'ſ o'clock",
    "case changes": "HTTPServerError iPhone McDONALD's ǅungla ʰello",
    "python": "def f(x: int) -> str:\n\treturn f'{x!r:>10}'  # ok\n\n\nclass A:\n    pass\n",
    "rust": 'fn main() { let v: Vec<u8> = vec![0; 1 << 20]; println!("{:?}", &v[..]); }\n',
    "html": '<a href="/x?y=1&amp;z=2">t</a><!-- c -->//path/to\r\n///\n',
    "symbols": "!!!???... --- === ***///\n\n/ @@ ## $$ %% ^^ && (( )) __ ``",
    "repeats": "a" * 300 + " " * 300 + "ab" * 150 + "\n" * 100 + "=-" * 99,
    "control characters": "\x00\x01\x7f\x80\x9f",
    "private and unassigned": "\ue000\uf8ff\U000f0000\u0378\U000e0041",
    "special names": "<|eot|><|begin_of_text|> <|image|>x<|patch|><|nothing|>",
}
KNOWN_IDS = {
    "\n\n": [368],
    "system": [15651],
    "user": [1556],
    "assistant": [140680],
    "ipython": [607, 6934],
    "Hello world!": [19873, 3817, 13],
    "I'm 12345 DON'T": [23752, 220, 7235, 2127, 93885, 59842],
    "日本語テスト": [21764, 16728, 107459],
    "नमस्ते": [1479, 2511, 23194, 790],
    "  \n\n x": [22762, 831],
    "/path/to\r\n": [101692, 46609, 13266],
    "naïve café": [1499, 164301, 49652],
    "a   b": [77, 256, 297],
}
SPECIAL_IDS = {
    "begin_of_text": 200000,
    "end_of_text": 200001,
    "fim_prefix": 200002,
    "fim_suffix": 200004,
    "header_start": 200005,
    "header_end": 200006,
    "eom": 200007,
    "eot": 200008,
    "step": 200009,
    "text_post_train_reserved_special_token_0": 200010,
    "text_post_train_reserved_special_token_5": 200015,
    "python_start": 200016,
    "python_end": 200017,
    "finetune_right_pad": 200018,
    "text_post_train_reserved_special_token_8": 200019,
    "text_post_train_reserved_special_token_68": 200079,
    "image_start": 200080,
    "image_end": 200081,
    "vision_reserved_special_token_1": 200083,
    "tile_x_separator": 200084,
    "tile_y_separator": 200085,
    "vision_reserved_special_token_5": 200089,
    "image": 200090,
    "vision_reserved_special_token_6": 200091,
    "patch": 200092,
    "vision_reserved_special_token_7": 200093,
    "vision_reserved_special_token_1047": 201133,
    "reasoning_reserved_special_token_0": 201134,
    "reasoning_thinking_start": 201142,
    "reasoning_thinking_end": 201143,
    "reserved_special_token_0": 201144,
    "reserved_special_token_903": 202047,
}


# ------------------------------------------------------------------------------ real tokenizer


def find_real_model() -> Path:
    """Meta's tokenizer.model: named by the environment, kept from before, or downloaded."""
    named = os.environ.get("LLAMA4RS_TOKENIZER_MODEL")
    if named:
        return Path(named)
    kept = REPOSITORY / ".cache" / "llama-models" / "tokenizer.model"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(kept.parent), "llama-models==0.3.0"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no tokenizer.model: pip did not run: {error}")
    wheels = list(kept.parent.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        pytest.skip(f"no tokenizer.model: download of llama-models failed: {result.stderr[-300:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        data = wheel.read("llama_models/llama4/tokenizer.model")
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(kept)
    wheels[0].unlink()
    return kept


@pytest.fixture(scope="session")
def real_model() -> Path:
    path = find_real_model()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == MODEL_SHA256, f"{path} is not Llama 4's tokenizer.model"
    return path


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA4RS_CACHE", str(cache_folder))


@pytest.fixture(scope="session")
def real(real_model: Path, cache_folder: Path) -> Tokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA4RS_CACHE", str(cache_folder))
        return Tokenizer.from_file(real_model)


@pytest.fixture(scope="session")
def reference(real_model: Path) -> Any:
    """The same file in tiktoken, read by the test itself."""
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken gives the reference ids")
    ranks = {}
    for line in real_model.read_text("ascii").splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    pattern = tokenizer_module._SPLIT_PATTERN
    return tiktoken.Encoding("llama4", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="session")
def published_json(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json as published checkpoints have it: names up to 201133, BOS put in front."""
    from tokenizers import AddedToken, processors
    from tokenizers import Tokenizer as Backend

    ranks = tokenizer_module._parse_ranks(real_model, real_model.read_bytes())
    backend = Backend.from_str(tokenizer_module._convert(ranks))
    names = tokenizer_module._special_names()[:1134]
    backend.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 200000)]
    )
    path = tmp_path_factory.mktemp("published") / "tokenizer.json"
    backend.save(str(path))
    return path


class TestRealTokenizer:
    @pytest.mark.parametrize("text", KNOWN_IDS)
    def test_known_ids(self, real: Tokenizer, text: str) -> None:
        assert real.encode(text) == KNOWN_IDS[text]

    @pytest.mark.parametrize("name", [*LANGUAGES, *OTHER_TEXTS])
    def test_ids_equal_tiktoken(self, real: Tokenizer, reference: Any, name: str) -> None:
        text = {**LANGUAGES, **OTHER_TEXTS}[name]
        ids = real.encode(text)
        assert ids == reference.encode_ordinary(text)
        assert real.decode(ids) == text

    def test_generated_text_equals_tiktoken(self, real: Tokenizer, reference: Any) -> None:
        words = st.sampled_from([*"aeT' \n\r\t.=<|>/1é日", "  ", "'ll", "the", "ing", "ह", "👍🏽"])

        @RELAXED
        @given(st.text() | st.lists(words, max_size=60).map("".join))
        def check(text: str) -> None:
            assert real.encode(text) == reference.encode_ordinary(text)
            assert real.decode(real.encode(text)) == text

        check()

    def test_periodic_text_equals_tiktoken(self, real: Tokenizer, reference: Any) -> None:
        """Overlapping merges of equal rank: where a wrong merge order would show."""
        units = st.text(alphabet="ab. \n-=*ー", min_size=1, max_size=4)

        @RELAXED
        @given(units, st.integers(1, 60), st.integers(0, 3))
        def check(unit: str, count: int, rest: int) -> None:
            text = unit * count + unit[:rest]
            assert real.encode(text) == reference.encode_ordinary(text)

        check()

    def test_special_names_and_ids(self, real: Tokenizer) -> None:
        assert len(real.special_tokens) == 2048
        assert {name: real.special_id(name) for name in SPECIAL_IDS} == SPECIAL_IDS
        assert sorted(real.special_tokens.values()) == list(range(200000, 202048))
        assert (real.vocab_size, len(real)) == (202048, 202048)
        assert (real.bos_id, real.bos_token, real.pad_id) == (200000, "<|begin_of_text|>", 200018)
        assert real.eos_ids == {200001, 200007, 200008}

    def test_published_json_gives_the_same_ids(self, real: Tokenizer, published_json: Path) -> None:
        published = Tokenizer.from_file(published_json)
        assert published.vocab_size == 201134
        assert published.eos_ids == real.eos_ids
        assert dict(published.special_tokens) == {
            name: token_id for name, token_id in real.special_tokens.items() if token_id < 201134
        }
        for text in [*LANGUAGES.values(), *OTHER_TEXTS.values()]:
            ids = real.encode(text)
            assert published.encode(text) == ids
            assert published.encode(text, bos=True) == [200000, *ids]
            assert published.decode(ids) == text
        assert [published.id_to_bytes(i) for i in range(201134)] == real._bytes[:201134]

    def test_stream_equals_decode(self, real: Tokenizer) -> None:
        check_stream(real, highest=202100)

    def test_stream_holds_half_characters(self, real: Tokenizer) -> None:
        text = "日本語 👩‍👩‍👧‍👦 नमस्ते"
        decoder = real.stream_decoder()
        steps = [decoder.push(i) for i in real.encode(text)]
        assert "" in steps
        assert "\ufffd" not in "".join(steps)
        assert "".join(steps) == text
        assert decoder.flush() == ""

    def test_text_never_gives_special_ids(self, real: Tokenizer) -> None:
        check_text_is_text(real)

    def test_long_text_is_fast(self, real: Tokenizer) -> None:
        """Linear time: neither one long piece nor a long stream may go quadratic."""
        start = time.monotonic()
        for text in ("a" * 500_000, " " * 500_000, "<|eot|>" * 50_000, "words of text " * 30_000):
            ids = real.encode(text)
            decoder = real.stream_decoder()
            assert "".join([*map(decoder.push, ids), decoder.flush()]) == text
        assert time.monotonic() - start < 20


# ------------------------------------------------------------------------------ small tokenizers

NAMES = ["begin_of_text", "end_of_text", "header_start", "header_end", "eom", "eot", "step"]
NAMES += ["python_start", "python_end", "finetune_right_pad", "image_start", "image_end"]
NAMES += ["tile_x_separator", "tile_y_separator", "image", "patch"]
SPECIALS = [f"<|{name}|>" for name in NAMES]


def small_backend(*, specials_first: bool = False, special_flag: bool = True) -> Any:
    """A BPE of some hundred tokens, learnt from the texts above."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(tokenizer_module._SPLIT_PATTERN), behavior="isolated"),
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


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("small") / "tokenizer.json"
    return Tokenizer.from_file(saved(small_backend(), path))


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


class TestSmallTokenizers:
    def test_facts(self, small: Tokenizer) -> None:
        assert small.vocab_size == len(small) == 400 + len(SPECIALS)
        assert small.bos_id == 400
        assert small.special_id("<|eot|>") == small.special_id("eot") == 405
        assert small.eos_ids == {401, 404, 405}
        assert small.pad_id == 409
        assert (small.bos_token, small.eos_token) == ("<|begin_of_text|>", "<|eot|>")
        assert repr(small) == "Tokenizer(vocab_size=416, special=16)"

    @pytest.mark.parametrize("name", [*LANGUAGES, *OTHER_TEXTS])
    def test_round_trip(self, small: Tokenizer, name: str) -> None:
        text = {**LANGUAGES, **OTHER_TEXTS}[name]
        ids = small.encode(text)
        assert small.decode(ids) == text
        assert b"".join(map(small.id_to_bytes, ids)) == text.encode()

    def test_stream_equals_decode(self, small: Tokenizer) -> None:
        check_stream(small, highest=430)

    @pytest.mark.parametrize(
        "options", [{}, {"specials_first": True}, {"special_flag": False}], ids=str
    )
    def test_text_never_gives_special_ids(self, tmp_path: Path, options: dict[str, bool]) -> None:
        path = saved(small_backend(**options), tmp_path / "tokenizer.json")
        tokenizer = Tokenizer.from_file(path)
        assert sorted(tokenizer.special_tokens) == sorted(SPECIALS)
        check_text_is_text(tokenizer)

    def test_special_name_as_a_whole_piece(self, tmp_path: Path) -> None:
        """Special tokens in the ordinary vocabulary, and no splitting: the name is one piece."""
        from tokenizers import pre_tokenizers

        backend = small_backend(specials_first=True)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer = Tokenizer.from_file(saved(backend, tmp_path / "tokenizer.json"))
        ids = tokenizer.encode("<|eot|>")
        assert not any(map(tokenizer.is_special, ids))
        assert tokenizer.decode(ids) == "<|eot|>"

    def test_saved_padding_and_truncation_are_ignored(self, tmp_path: Path) -> None:
        backend = small_backend()
        text = LANGUAGES["english"]
        expected = backend.encode(text).ids
        backend.enable_truncation(2)
        backend.enable_padding(length=64)
        tokenizer = Tokenizer.from_file(saved(backend, tmp_path / "tokenizer.json"))
        assert tokenizer.encode(text) == expected

    def test_ordinary_added_tokens_are_text(self, tmp_path: Path) -> None:
        backend = small_backend()
        backend.add_tokens(["Zürich\u3000"])
        tokenizer = Tokenizer.from_file(saved(backend, tmp_path / "tokenizer.json"))
        ids = tokenizer.encode("in Zürich\u3000now")
        assert 416 in ids
        assert tokenizer.decode(ids) == "in Zürich\u3000now"

    def test_bos(self, small: Tokenizer, tmp_path: Path) -> None:
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

    def test_split_special(self, small: Tokenizer) -> None:
        eot, image = small.special_id("eot"), small.special_id("image")
        assert list(small.split_special("a<|eot|><|image|>b<|x|>")) == [
            ("a", eot),
            ("", image),
            ("b<|x|>", None),
        ]
        assert list(small.split_special("")) == [("", None)]

    def test_decode_special_and_textless_ids(self, small: Tokenizer) -> None:
        ids = [small.special_id("eot"), *small.encode("é"), 10**6]
        assert small.decode(ids) == "é"
        assert small.decode(ids, skip_special=False) == "<|eot|>é<|reserved_1000000|>"
        assert small.id_to_bytes(10**6) == b""
        assert small.id_to_bytes(405) == b"<|eot|>"

    def test_negative_ids(self, small: Tokenizer) -> None:
        for call in (lambda: small.decode([1, -1]), lambda: small.id_to_bytes(-1)):
            with pytest.raises(TokenizerError, match="token id -1 is negative"):
                call()
        with pytest.raises(ValueError, match="-7 is negative"):
            small.stream_decoder().push(-7)

    def test_half_character(self, small: Tokenizer) -> None:
        first, second = (small._bytes.index(bytes([b])) for b in "é".encode())
        decoder = small.stream_decoder()
        assert (decoder.push(first), decoder.push(second), decoder.flush()) == ("", "é", "")
        assert (decoder.push(first), decoder.flush()) == ("", "\ufffd")
        assert decoder.push(second) == "\ufffd"

    def test_lone_surrogates_become_replacement_characters(self, small: Tokenizer) -> None:
        assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"
        assert small.decode(small.encode("\ud83d\ude00")) == "😀"

    def test_text_must_be_text(self, small: Tokenizer) -> None:
        with pytest.raises(TypeError, match="must be a str, not bytes"):
            small.encode(b"hi")  # type: ignore[arg-type]

    def test_unknown_special_name(self, small: Tokenizer) -> None:
        with pytest.raises(TokenizerError, match=r"no special token 'eos'; this .* <\|eot\|>"):
            small.special_id("eos")


# ------------------------------------------------------------------------------ files and folders


def rank_lines(extra: tuple[bytes, ...] = (b"he", b"ll", b"hell", b"hello")) -> list[str]:
    tokens = [bytes([byte]) for byte in range(256)] + list(extra)
    return [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]


def write_model(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


class TestModelFile:
    def test_small_model(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer.from_file(write_model(tmp_path / "tokenizer.model", rank_lines()))
        assert tokenizer.encode("hello hell") == [259, 32, 258]
        assert tokenizer.vocab_size == 260 + 2048
        assert tokenizer.bos_id == 260
        assert tokenizer.encode("<|eot|>", parse_special=True) == [268]

    def test_line_order_and_line_ends_do_not_matter(self, tmp_path: Path) -> None:
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
    def test_damage(self, tmp_path: Path, line: int, replacement: str, message: str) -> None:
        lines = rank_lines()
        lines[line - 1] = replacement
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.from_file(write_model(tmp_path / "tokenizer.model", lines))

    def test_other_files(self, tmp_path: Path) -> None:
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

    def test_llama3_is_refused(self, tmp_path: Path) -> None:
        extra = tuple(b"%d-" % i for i in range(128_000 - 256))
        with pytest.raises(TokenizerError, match="the Llama 3 tokenizer"):
            Tokenizer.from_file(write_model(tmp_path / "tokenizer.model", rank_lines(extra)))

    def test_other_json_tokenizers_are_refused(self, tmp_path: Path) -> None:
        from tokenizers import Tokenizer as Backend
        from tokenizers import models

        path = tmp_path / "tokenizer.json"
        for model, kind in (
            (models.WordLevel({"a": 0}, unk_token="a"), "WordLevel"),
            (models.BPE({"a": 0, "▁a": 1}, []), "BPE"),
        ):
            with pytest.raises(TokenizerError, match=f"a {kind} tokenizer that is not byte-level"):
                Tokenizer.from_file(saved(Backend(model), path))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
            Tokenizer.from_file(tmp_path / "nowhere.json")
        with pytest.raises(TokenizerError, match=r"use Tokenizer\.from_dir"):
            Tokenizer.from_file(tmp_path)


class TestCache:
    @pytest.fixture
    def model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("LLAMA4RS_CACHE", str(tmp_path / "cache"))
        return write_model(tmp_path / "tokenizer.model", rank_lines())

    @pytest.fixture
    def conversions(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows by one with each conversion."""
        done: list[int] = []
        convert = tokenizer_module._convert

        def counted(ranks: list[bytes]) -> str:
            done.append(len(ranks))
            return convert(ranks)

        monkeypatch.setattr(tokenizer_module, "_convert", counted)
        return done

    def check(self, model: Path) -> None:
        assert Tokenizer.from_file(model).encode("hello") == [259]

    def test_second_time_comes_from_the_cache(self, model: Path, conversions: list[int]) -> None:
        self.check(model)
        self.check(model)
        assert len(conversions) == 1
        folder = model.parent / "cache"
        (file,) = folder.iterdir()  # and no temporary file stays
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        assert file.name == f"tokenizer-{digest[:32]}-v{tokenizer_module._CONVERTER_VERSION}.json"

    def test_another_file_has_another_entry(self, model: Path, conversions: list[int]) -> None:
        self.check(model)
        write_model(model, rank_lines((b"he", b"ll", b"hell", b"hello", b"hello!")))
        self.check(model)
        assert conversions == [260, 261]

    @pytest.mark.parametrize("damage", ["flip", "edit", "cut", "empty", "other", "refused"])
    def test_damaged_entry_is_rebuilt(
        self, model: Path, conversions: list[int], damage: str
    ) -> None:
        self.check(model)
        (file,) = (model.parent / "cache").iterdir()
        data = file.read_bytes()
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        refused = b'{"version": "9"}'
        file.write_bytes(
            {
                "flip": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
                "edit": data.replace(rb"{1,3}", rb"{1,2}"),
                "cut": data[: len(data) // 2],
                "empty": b"",
                "other": b"\x00" * 50,
                "refused": tokenizer_module._cache_header(digest, refused) + b"\n" + refused,
            }[damage]
        )
        self.check(model)
        assert len(conversions) == 2
        assert file.read_bytes() == data

    def test_unusable_folder_is_ignored(
        self, model: Path, conversions: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (model.parent / "a file").write_text("")
        monkeypatch.setenv("LLAMA4RS_CACHE", str(model.parent / "a file" / "cache"))
        self.check(model)
        self.check(model)
        assert len(conversions) == 2

    def test_folder_choice(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("LLAMA4RS_CACHE", "/own")
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert tokenizer_module.cache_dir() == Path("/own")
        monkeypatch.delenv("LLAMA4RS_CACHE")
        assert tokenizer_module.cache_dir() == Path("/xdg/llama4rs")
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert tokenizer_module.cache_dir() == tmp_path / ".cache" / "llama4rs"


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        saved(small_backend(), tmp_path / "tokenizer.json")
        return tmp_path

    def test_plain(self, folder: Path) -> None:
        tokenizer = Tokenizer.from_dir(folder)
        assert tokenizer.vocab_size == 416
        assert tokenizer.chat_template is None

    def test_json_is_preferred(self, folder: Path) -> None:
        write_model(folder / "tokenizer.model", rank_lines())
        assert Tokenizer.from_dir(folder).vocab_size == 416
        (folder / "tokenizer.json").unlink()
        assert Tokenizer.from_dir(folder).vocab_size == 260 + 2048

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(
            CheckpointNotFoundError, match=r"no tokenizer\.json and no tokenizer\.m"
        ):
            Tokenizer.from_dir(tmp_path)
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            Tokenizer.from_dir(tmp_path / "nowhere")
        file = write_model(tmp_path / "tokenizer.model", rank_lines())
        with pytest.raises(FileNotFoundError, match=r"use Tokenizer\.from_file"):
            Tokenizer.from_dir(file)

    def test_configs(self, folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"bos_token": {"content": "<|header_start|>"}, "eos_token": "<|step|>"})
        )
        (folder / "generation_config.json").write_text('{"eos_token_id": [401, 7]}')
        tokenizer = Tokenizer.from_dir(folder)
        assert tokenizer.bos_id == tokenizer.special_id("header_start")
        assert tokenizer.eos_token == "<|step|>"
        assert tokenizer.eos_ids == {7, 401, 404, 405, tokenizer.special_id("step")}
        (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
        assert 9 in Tokenizer.from_dir(folder).eos_ids

    def test_token_names_that_do_not_exist(self, folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
        tokenizer = Tokenizer.from_dir(folder)
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|eot|>")

    def test_template_sources(self, folder: Path) -> None:
        config = folder / "tokenizer_config.json"
        named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
        config.write_text(json.dumps({"chat_template": named}))
        tokenizer = Tokenizer.from_dir(folder)
        assert (tokenizer.chat_template, tokenizer.chat_template_for_tools) == ("D", "T")
        config.write_text(json.dumps({"chat_template": "C"}))
        assert Tokenizer.from_dir(folder).chat_template == "C"
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
        assert Tokenizer.from_dir(folder).chat_template == "J"
        (folder / "chat_template.jinja").write_text("日\n")
        tokenizer = Tokenizer.from_dir(folder)
        assert (tokenizer.chat_template, tokenizer.chat_template_for_tools) == ("日\n", None)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
            ("generation_config.json", "[]", "must hold a JSON object, not a list"),
            ("generation_config.json", '{"eos_token_id": ["x"]}', "ids of tokens, got 'x'"),
            ("generation_config.json", '{"eos_token_id": -1}', "ids of tokens, got -1"),
            ("chat_template.json", '{"chat_template": 3}', "neither a string nor named strings"),
        ],
    )
    def test_damage(self, folder: Path, name: str, text: str, message: str) -> None:
        (folder / name).write_text(text)
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.from_dir(folder)


def test_import_is_light() -> None:
    """The libraries behind are loaded when they are first needed."""
    modules = "llama4rs.tokenizer, llama4rs.chat_template, llama4rs.tool_calls"
    code = (
        f"import {modules}, sys; print([m for m in sys.modules if m in ('tokenizers', 'jinja2')])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == "[]"


def test_split_pattern() -> None:
    """The pattern is part of the format: not one character may differ."""
    digest = hashlib.sha256(tokenizer_module._SPLIT_PATTERN.encode()).hexdigest()
    assert digest == "2d1b8dc11e89af71459b36004f698ab3693f59fd84f63e8ec2b49564ab857420"


def test_special_names_are_well_formed() -> None:
    names = tokenizer_module._special_names()
    assert len(names) == len(set(names)) == 2048
    assert all(re.fullmatch(r"<\|[a-z0-9_]+\|>", name) for name in names)
