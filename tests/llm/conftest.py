"""`Llama4` on a checkpoint whose every next token is known; see `chain_model`."""

from __future__ import annotations

import pytest

from chain_model import make_chain_model

pytest.importorskip("llama4rs._llama4rs", reason="the compiled core is not built")

from llama4rs import Llama4


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    return Llama4(make_chain_model(tmp_path_factory.mktemp("chain")), threads=2)


@pytest.fixture(scope="module")
def textless(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    folder = make_chain_model(tmp_path_factory.mktemp("textless"), tokenizer=False)
    return Llama4(folder, threads=1)
