"""Meta's own tokenizer: ids equal to tiktoken's, from both kinds of files."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4rs.tokenizer import Tokenizer
from llama4rs.tokenizer.conversion import SPLIT_PATTERN, convert
from llama4rs.tokenizer.rank_file import parse_ranks, special_names

from .small import RELAXED, check_stream, check_text_is_text
from .texts import LANGUAGES, OTHER_TEXTS

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL_SHA256 = "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed"

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
    pattern = SPLIT_PATTERN
    return tiktoken.Encoding("llama4", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="session")
def published_json(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json as published checkpoints have it: names up to 201133, BOS put in front."""
    from tokenizers import AddedToken, processors
    from tokenizers import Tokenizer as Backend

    ranks = parse_ranks(real_model, real_model.read_bytes())
    backend = Backend.from_str(convert(ranks))
    names = special_names()[:1134]
    backend.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 200000)]
    )
    path = tmp_path_factory.mktemp("published") / "tokenizer.json"
    backend.save(str(path))
    return path


@pytest.mark.parametrize("text", KNOWN_IDS)
def test_known_ids(real: Tokenizer, text: str) -> None:
    assert real.encode(text) == KNOWN_IDS[text]


@pytest.mark.parametrize("name", [*LANGUAGES, *OTHER_TEXTS])
def test_ids_equal_tiktoken(real: Tokenizer, reference: Any, name: str) -> None:
    text = {**LANGUAGES, **OTHER_TEXTS}[name]
    ids = real.encode(text)
    assert ids == reference.encode_ordinary(text)
    assert real.decode(ids) == text


def test_generated_text_equals_tiktoken(real: Tokenizer, reference: Any) -> None:
    words = st.sampled_from([*"aeT' \n\r\t.=<|>/1é日", "  ", "'ll", "the", "ing", "ह", "👍🏽"])

    @RELAXED
    @given(st.text() | st.lists(words, max_size=60).map("".join))
    def check(text: str) -> None:
        assert real.encode(text) == reference.encode_ordinary(text)
        assert real.decode(real.encode(text)) == text

    check()


def test_periodic_text_equals_tiktoken(real: Tokenizer, reference: Any) -> None:
    """Overlapping merges of equal rank: where a wrong merge order would show."""
    units = st.text(alphabet="ab. \n-=*ー", min_size=1, max_size=4)

    @RELAXED
    @given(units, st.integers(1, 60), st.integers(0, 3))
    def check(unit: str, count: int, rest: int) -> None:
        text = unit * count + unit[:rest]
        assert real.encode(text) == reference.encode_ordinary(text)

    check()


def test_special_names_and_ids(real: Tokenizer) -> None:
    assert len(real.special_tokens) == 2048
    assert {name: real.special_id(name) for name in SPECIAL_IDS} == SPECIAL_IDS
    assert sorted(real.special_tokens.values()) == list(range(200000, 202048))
    assert (real.vocab_size, len(real)) == (202048, 202048)
    assert (real.bos_id, real.bos_token, real.pad_id) == (200000, "<|begin_of_text|>", 200018)
    assert real.eos_ids == {200001, 200007, 200008}


def test_published_json_gives_the_same_ids(real: Tokenizer, published_json: Path) -> None:
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


def test_stream_equals_decode(real: Tokenizer) -> None:
    check_stream(real, highest=202100)


def test_stream_holds_half_characters(real: Tokenizer) -> None:
    text = "日本語 👩‍👩‍👧‍👦 नमस्ते"
    decoder = real.stream_decoder()
    steps = [decoder.push(i) for i in real.encode(text)]
    assert "" in steps
    assert "\ufffd" not in "".join(steps)
    assert "".join(steps) == text
    assert decoder.flush() == ""


def test_text_never_gives_special_ids(real: Tokenizer) -> None:
    check_text_is_text(real)


def test_long_text_is_fast(real: Tokenizer) -> None:
    """Linear time: neither one long piece nor a long stream may go quadratic."""
    start = time.monotonic()
    for text in ("a" * 500_000, " " * 500_000, "<|eot|>" * 50_000, "words of text " * 30_000):
        ids = real.encode(text)
        decoder = real.stream_decoder()
        assert "".join([*map(decoder.push, ids), decoder.flush()]) == text
    assert time.monotonic() - start < 20


def test_split_pattern() -> None:
    """The pattern is part of the format: not one character may differ."""
    digest = hashlib.sha256(SPLIT_PATTERN.encode()).hexdigest()
    assert digest == "2d1b8dc11e89af71459b36004f698ab3693f59fd84f63e8ec2b49564ab857420"


def test_special_names_are_well_formed() -> None:
    names = special_names()
    assert len(names) == len(set(names)) == 2048
    assert all(re.fullmatch(r"<\|[a-z0-9_]+\|>", name) for name in names)
