"""Converted tokenizers are kept, and made again in any doubt."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llama4rs.tokenizer import Tokenizer, cache_dir
from llama4rs.tokenizer.cache import CacheEntry
from llama4rs.tokenizer.conversion import CONVERTER_VERSION, convert

from .small import rank_lines, write_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA4RS_CACHE", str(tmp_path / "cache"))
    return write_model(tmp_path / "tokenizer.model", rank_lines())


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each conversion."""
    done: list[int] = []

    def counted(ranks: list[bytes]) -> str:
        done.append(len(ranks))
        return convert(ranks)

    monkeypatch.setattr("llama4rs.tokenizer.conversion.convert", counted)
    return done


def check(model: Path) -> None:
    assert Tokenizer.from_file(model).encode("hello") == [259]


def test_second_time_comes_from_the_cache(model: Path, conversions: list[int]) -> None:
    check(model)
    check(model)
    assert len(conversions) == 1
    folder = model.parent / "cache"
    (file,) = folder.iterdir()  # and no temporary file stays
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert file.name == f"tokenizer-{digest[:32]}-v{CONVERTER_VERSION}.json"


def test_another_file_has_another_entry(model: Path, conversions: list[int]) -> None:
    check(model)
    write_model(model, rank_lines((b"he", b"ll", b"hell", b"hello", b"hello!")))
    check(model)
    assert conversions == [260, 261]


@pytest.mark.parametrize("damage", ["flip", "edit", "cut", "empty", "other", "refused"])
def test_damaged_entry_is_rebuilt(model: Path, conversions: list[int], damage: str) -> None:
    check(model)
    (file,) = (model.parent / "cache").iterdir()
    data = file.read_bytes()
    entry = CacheEntry(model.read_bytes(), CONVERTER_VERSION)
    refused = b'{"version": "9"}'
    file.write_bytes(
        {
            "flip": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
            "edit": data.replace(rb"{1,3}", rb"{1,2}"),
            "cut": data[: len(data) // 2],
            "empty": b"",
            "other": b"\x00" * 50,
            "refused": entry.header(refused) + b"\n" + refused,
        }[damage]
    )
    check(model)
    assert len(conversions) == 2
    assert file.read_bytes() == data


def test_unusable_folder_is_ignored(
    model: Path, conversions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model.parent / "a file").write_text("")
    monkeypatch.setenv("LLAMA4RS_CACHE", str(model.parent / "a file" / "cache"))
    check(model)
    check(model)
    assert len(conversions) == 2


def test_folder_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA4RS_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == Path("/own")
    monkeypatch.delenv("LLAMA4RS_CACHE")
    assert cache_dir() == Path("/xdg/llama4rs")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "llama4rs"
