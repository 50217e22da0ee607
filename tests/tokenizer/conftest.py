"""Fixtures of the tokenizer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama4rs.tokenizer import Tokenizer

from .small import saved, small_backend


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA4RS_CACHE", str(cache_folder))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("small") / "tokenizer.json"
    return Tokenizer.from_file(saved(small_backend(), path))
