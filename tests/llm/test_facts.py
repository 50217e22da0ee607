"""What a model tells: tool calls, logits, usage, timings, its configuration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import llama4rs
from chain_model import EOT, MAX_CONTEXT, TOOL_CALL, VOCAB, make_chain_model
from llama4rs import Llama4, RequestError


def test_tool_calls(tmp_path: Path) -> None:
    llm = Llama4(make_chain_model(tmp_path, TOOL_CALL), threads=1)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    output = llm.chat("call f", tools=tools, temperature=0)
    assert output.message == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": "f", "arguments": '{"x": 12}'},
            }
        ],
    }
    assert output.tool_calls == output.message["tool_calls"]
    # Without tools, and for a function that is not on offer, the text stays text.
    assert llm.chat("call f", temperature=0).message == {"role": "assistant", "content": TOOL_CALL}
    other = llm.chat("call f", tools=[{"name": "g"}], temperature=0)
    assert other.tool_calls == []
    # The answer goes back into the conversation.
    talk = [{"role": "user", "content": "call f"}, output.message]
    llm.chat([*talk, {"role": "tool", "content": "3"}], tools=tools, temperature=0)


def test_logits(llm: Llama4) -> None:
    ids = list(b"abc")
    logits = llm.logits(ids)
    assert logits.shape == (3, VOCAB)
    assert logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist()[:2] == list(b"bc")
    np.testing.assert_array_equal(llm.logits(np.array(ids)), logits)
    for bad in ([], [VOCAB], [-1], ["abc"]):
        with pytest.raises(RequestError):
            llm.logits(bad)  # type: ignore[arg-type]


def test_expert_usage_counts_tokens(llm: Llama4) -> None:
    output = llm.generate("abc", max_tokens=5, temperature=0)
    usage = output.expert_usage
    assert usage.shape == (4, 4)
    assert usage.dtype == np.uint64
    # The last new token is not computed, nobody asked for what follows.
    assert usage.sum(axis=1).tolist() == [4 + 4] * 4


def test_timings(llm: Llama4) -> None:
    output = llm.generate("\n", temperature=0)
    timings = output.timings
    assert min(timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds) >= 0
    assert timings.total_seconds > 0
    assert output.decode_tokens_per_second > 0


def test_output_is_json(llm: Llama4) -> None:
    for output in (llm.generate("\n", logprobs=2), llm.chat("hi")):
        values = json.loads(json.dumps(output.to_dict()))
        assert values["text"] == output.text
        assert values["usage"]["total_tokens"] == output.usage.total_tokens
        assert values["token_ids"] == list(output.token_ids)


def test_config(llm: Llama4) -> None:
    config = llm.config
    assert config.vocab_size == config["vocab_size"] == VOCAB
    assert config.eos_token_id == (EOT,)
    assert "hidden_size" in config
    assert len(config) == len(list(config))
    with pytest.raises(AttributeError, match="no field 'hiden_size'"):
        _ = config.hiden_size
    with pytest.raises(AttributeError, match="cannot be changed"):
        config.vocab_size = 3
    assert json.loads(json.dumps(config.to_dict()))["vocab_size"] == VOCAB


def test_config_of_a_multimodal_model() -> None:
    config = llama4rs.Config({"model_type": "llama4", "text_config": {"hidden_size": 5}})
    assert config.hidden_size == config["hidden_size"] == config.text_config.hidden_size == 5
    assert list(config) == ["model_type", "text_config"]


def test_summary(llm: Llama4) -> None:
    text = llm.summary()
    for word in ("parameters", "active per token", "per token", f"{MAX_CONTEXT} tokens", "cpu"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


def test_repr(llm: Llama4) -> None:
    assert str(llm.path) in repr(llm)
