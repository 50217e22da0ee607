"""Models with and without a vision part, and the demo model."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain_model import make_chain_model
from llama4rs import CheckpointNotFoundError, Llama4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes `SCRIPT` whatever it sees; what it expects after a patch of an image
    depends on that image only."""
    return make_chain_model(tmp_path_factory.mktemp("seeing"), vision=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Llama4:
    return Llama4(folder, threads=1)


@pytest.fixture
def fresh(folder: Path) -> Llama4:
    """With an empty cache."""
    return Llama4(folder, threads=1)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    return Llama4(make_chain_model(tmp_path_factory.mktemp("blind")), threads=1)


@pytest.fixture(scope="module")
def cria() -> Llama4:
    try:
        return Llama4(threads=1)
    except CheckpointNotFoundError as error:
        pytest.skip(str(error).splitlines()[0])
