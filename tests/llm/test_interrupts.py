"""Ctrl-C, and threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chain_model import MAX_CONTEXT, SCRIPT
from llama4rs import Llama4


@pytest.mark.parametrize("call", ["generate", "batch", "stream"])
def test_ctrl_c_stops_and_leaves_the_model_usable(llm: Llama4, call: str) -> None:
    options: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": MAX_CONTEXT}
    work: dict[str, Callable[[], Any]] = {
        "generate": lambda: llm.generate("\n", **options),
        "batch": lambda: llm.generate(["\n"] * 8, **options),
        "stream": lambda: list(llm.stream("\n", **options)),
    }
    began = time.monotonic()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            while time.monotonic() - began < 20:
                work[call]()
    finally:
        timer.cancel()
    assert time.monotonic() - began < 10
    assert llm.generate("\n", temperature=0).text == SCRIPT


def test_two_threads_use_one_model(llm: Llama4) -> None:
    texts: list[str] = []

    def work() -> None:
        for _ in range(5):
            texts.append(llm.generate("\n", temperature=0).text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == [SCRIPT] * 20
