"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oracle.checkpoint import make_checkpoint
from oracle.configs import ALL, SEEDS

# A run in the background may have inherited that Ctrl-C is ignored; the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """`checkpoint(name, **options)`: an oracle checkpoint's directory, made once per session."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(name: str, **options: Any) -> Path:
        key = (name, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name) / "checkpoint"
            make_checkpoint(made[key], ALL[name], SEEDS[name], **options)
        return made[key]

    return make
