"""Fixtures of the chat template's tests."""

from __future__ import annotations

import pytest

from llama4rs.chat_template import ChatTemplate
from llama4rs.tokenizer import Tokenizer
from tokenizer.small import saved, small_backend


@pytest.fixture(scope="session")
def builtin() -> ChatTemplate:
    return ChatTemplate()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("chat") / "tokenizer.json"
    return Tokenizer.from_file(saved(small_backend(), path))
