"""A model with a place for its sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

import llama4rs


@pytest.fixture
def kv_dir(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def llm(kv_dir: Path) -> llama4rs.Llama4:
    """cria, with a place for its sessions."""
    return llama4rs.Llama4(kv_dir=kv_dir, threads=1)
