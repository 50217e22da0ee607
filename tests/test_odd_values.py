"""Whatever is given where something else belongs: a short error that says what was wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama4rs
from llama4rs import ChatTemplate, Llama4, Llama4Error, SamplingParams, Tokenizer


class Unprintable:
    """A value whose `repr` fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Three:
    """A number to Python's indexing, and to nothing else."""

    def __index__(self) -> int:
        return 3


VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 5.0, 0.5, -0.5, 1j, float("nan"), float("inf"), -float("inf"),
    10**30, 10**5000, -(10**5000), "", "a", "8GB", "1e999", "-1", "9" * 400, "x" * 100_000, "\0",
    "\ud800", b"x", [], [1], ["a"], [None], [[]], [{}], (), {}, {"a": 1}, {1}, object(), len, ...,
    range(3), np.int64(3), np.float32(0.5), np.array([1]), np.array([]), np.array(["a"]),
    Unprintable(), Three(),
]  # fmt: skip

MESSAGE = {"role": "user", "content": "a"}
OPTIONS = [
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "seed",
    "logprobs",
    "tools",
    "images",
    "params",
]
OPENING = [
    "model",
    "weights",
    "policy",
    "device",
    "threads",
    "max_context",
    "kv_cache",
    "kv_memory",
    "step_tokens",
    "seed",
    "tokenizer",
    "chat_template",
    "prefix_cache_bytes",
    "kv_budget",
    "kv_read",
    "arithmetic",
    "image_cache_bytes",
    "progress",
]
PLANNING = [
    "model",
    "context",
    "batch",
    "images",
    "image_size",
    "weights",
    "kv_cache",
    "step_tokens",
    "prefix_cache_bytes",
    "kv_memory",
]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    return Llama4(kv_dir=tmp_path_factory.mktemp("kv"), threads=1)


def refused_well(call: Callable[[Any], object], value: Any, name: str) -> None:
    """Makes sure that `call` takes `value`, or says what is wrong with it."""
    try:
        call(value)
    except (Llama4Error, TypeError) as error:
        message = str(error)
        for bare in ("has no attribute", "not supported between", "is not an instance of",
                     "cannot be converted", "unsupported operand", "truth value"):  # fmt: skip
            assert bare not in message, name
        assert len(message) < 700, name


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_requests(llm: Llama4, option: str) -> None:
    for value in VALUES:
        options = {"max_tokens": 1, option: value}
        refused_well(lambda _, given=options: llm.generate("a", **given), value, option)
        refused_well(lambda _, given=options: llm.chat("a", **given), value, option)


def test_prompts(llm: Llama4) -> None:
    for value in VALUES:
        for prompt in (value, [value], [[value]]):
            refused_well(lambda given: llm.generate(given, max_tokens=1), prompt, "generate")
            refused_well(lambda given: llm.chat(given, max_tokens=1), prompt, "chat")
        refused_well(llm.logits, value, "logits")
        refused_well(lambda given: llm.logits([given]), value, "logits")


def test_messages(llm: Llama4) -> None:
    render = llm.chat_template.render
    calls = {"role": "assistant", "content": "a"}
    for value in VALUES:
        for message in (
            {**MESSAGE, "role": value},
            {**MESSAGE, "content": value},
            {**MESSAGE, "content": [value]},
            {**MESSAGE, "content": [{"type": value}]},
            {**MESSAGE, "content": [{"type": "text", "text": value}]},
            {**MESSAGE, "name": value},
            {"role": "tool", "content": value},
            {**calls, "tool_calls": value},
            {**calls, "tool_calls": [value]},
            {**calls, "tool_calls": [{"function": {"name": "f", "arguments": value}}]},
            {**calls, "tool_calls": [{"function": {"name": "f", "arguments": {"x": value}}}]},
        ):
            refused_well(lambda given: render([MESSAGE, given]), message, "message")
        refused_well(lambda given: render([MESSAGE], given), value, "tools")
        refused_well(lambda given: render([MESSAGE], [given]), value, "tool")
        refused_well(ChatTemplate, value, "ChatTemplate")
        refused_well(lambda given: ChatTemplate(bos_token=given), value, "bos_token")
        refused_well(ChatTemplate.from_tokenizer, value, "from_tokenizer")
        refused_well(ChatTemplate.from_file, value, "from_file")


def test_images(llm: Llama4) -> None:
    for value in VALUES:
        for part in (
            {"type": "image", "image": value},
            {"type": "image_url", "image_url": value},
            {"type": "image_url", "image_url": {"url": value}},
        ):
            messages = [{"role": "user", "content": [part]}]
            refused_well(lambda given: llm.chat(given, max_tokens=1), messages, "image")
        refused_well(lambda given: llm.plan_image(given, 5), value, "plan_image")


def test_tokenizers(llm: Llama4) -> None:
    tokenizer = llm.tokenizer
    for value in VALUES:
        for call in (
            tokenizer.encode,
            tokenizer.decode,
            tokenizer.id_to_bytes,
            tokenizer.special_id,
            Tokenizer.from_file,
            Tokenizer.from_dir,
            llama4rs.parse_tool_calls,
            SamplingParams.from_generation_config,
        ):
            refused_well(call, value, call.__name__)
        refused_well(lambda given: tokenizer.decode([given]), value, "decode")
        refused_well(lambda given: llama4rs.parse_tool_calls("[f()]", given), value, "tool_names")


def test_sessions(llm: Llama4) -> None:
    for value in VALUES:
        refused_well(llm.session, value, "session")
        session = llm.session("s")
        refused_well(session.append, value, "append")
        refused_well(session.fork, value, "fork")
        refused_well(lambda given, s=session: s.chat(given, max_tokens=1), value, "chat")
        refused_well(lambda given, s=session: s.append("a", images=given), value, "images")
        refused_well(lambda given, s=session: s.append("a", tools=given), value, "tools")
        assert session.append("a") > 0, "the session is free"


@pytest.mark.parametrize("option", PLANNING)
def test_options_of_plans(llm: Llama4, option: str) -> None:
    for value in VALUES:
        options = {"model": "scout", "images": 1, "probe": False, option: value}
        refused_well(lambda _, given=options: llama4rs.plan(**given), value, option)
        if option in ("context", "batch", "images", "image_size"):
            options = {"images": 1, "probe": False, option: value}
            refused_well(lambda _, given=options: llm.plan(**given), value, option)


@pytest.mark.parametrize("option", OPENING)
def test_options_of_opening(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in VALUES:
        options = {"kv_dir": "kv", "local_files_only": True, option: value}
        refused_well(lambda _, given=options: Llama4(**given), value, option)
