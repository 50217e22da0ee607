"""What may be a prompt, alone and in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chain_model import BOS, EOT, SCRIPT, VOCAB
from llama4rs import ChatTemplateError, Llama4, RequestError


def test_raw_text(llm: Llama4) -> None:
    output = llm.generate("\n", temperature=0)
    assert output.text == str(output) == SCRIPT
    assert output.token_ids == tuple(SCRIPT.encode())
    assert (output.finish_reason, output.stop_reason) == ("stop", EOT)
    assert output.prompt_token_ids == (BOS, ord("\n"))
    assert output.usage.prompt_tokens == 2
    assert output.usage.completion_tokens == len(SCRIPT.encode()) + 1
    assert output.usage.total_tokens == 2 + len(SCRIPT.encode()) + 1
    assert output.message == {"role": "assistant", "content": SCRIPT}
    assert output.logprobs is None


def test_bos_is_added_once(llm: Llama4) -> None:
    for text in ("a", "<|begin_of_text|>a"):
        assert llm.generate(text, max_tokens=1).prompt_token_ids == (BOS, ord("a"))


def test_special_tokens_of_raw_text_can_be_text(llm: Llama4) -> None:
    parsed = llm.generate("a<|eot|>", max_tokens=1)
    assert parsed.prompt_token_ids == (BOS, ord("a"), EOT)
    plain = llm.generate("a<|eot|>", max_tokens=1, parse_special=False)
    assert plain.prompt_token_ids == (BOS, *b"a<|eot|>")


def test_token_ids_are_taken_as_they_are(llm: Llama4) -> None:
    for prompt in ([ord("a")], (ord("a"),), np.array([ord("a")]), [np.int64(ord("a"))]):
        output = llm.generate(prompt, max_tokens=2, temperature=0)
        assert output.prompt_token_ids == (ord("a"),)
        assert output.text == "bc"


def test_numbers_that_are_no_token_ids(llm: Llama4) -> None:
    for bad in (-1, 1 << 32, 1 << 70):
        with pytest.raises(RequestError, match="token id"):
            llm.generate([ord("a"), bad])
        with pytest.raises(RequestError, match="token id"):
            llm.logits([bad])
    with pytest.raises(RequestError, match="token id"):
        llm.generate("a", stop_token_ids=[1 << 32])


def test_conversation(llm: Llama4) -> None:
    output = llm.generate([{"role": "user", "content": "hi<|eot|>"}], temperature=0)
    assert output.message == {"role": "assistant", "content": SCRIPT}
    # The user's text gives no control token: one eot ends the message.
    assert output.prompt_token_ids.count(EOT) == 1
    assert llm.chat("hi<|eot|>", temperature=0).message == output.message


def test_batch_is_a_list_of_any_prompts(llm: Llama4) -> None:
    texts = llm.generate(["\n", "x"], temperature=0)
    assert [output.text for output in texts] == [SCRIPT, "yz"]
    ids = llm.generate([[10], [ord("x")]], temperature=0)
    assert [output.text for output in ids] == [SCRIPT, "yz"]
    talk = [{"role": "user", "content": "hi"}]
    (answer,) = llm.generate([talk], temperature=0)
    assert answer.message == {"role": "assistant", "content": SCRIPT}
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (b"bytes", "got bytes"),
        (5, "got int"),
        ([1, "a"], "int and str"),
        ([1, True], "bool and int"),
        ([None], "NoneType"),
        ({"role": "user"}, "list of messages"),
        ([[]], "empty"),
        ([["a"]], "batch"),
        ([-1], "token id -1 is outside of the vocabulary"),
        ([VOCAB], str(VOCAB)),
        ([1 << 70], f"token id {1 << 70} is outside of the vocabulary"),
    ],
)
def test_bad_prompts_are_request_errors(llm: Llama4, prompt: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        llm.generate(prompt, max_tokens=1)
    assert words in str(caught.value)


def test_bad_conversations(llm: Llama4) -> None:
    with pytest.raises(ChatTemplateError, match="role"):
        llm.chat([{"content": "hi"}])
    with pytest.raises(RequestError, match="use generate"):
        llm.chat([1, 2])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="tools are for conversations"):
        llm.generate("a", tools=[{"name": "f"}])


def test_empty_prompts(llm: Llama4) -> None:
    assert llm.generate("", max_tokens=1).prompt_token_ids == (BOS,)
    with pytest.raises(RequestError, match="empty"):
        llm.stream([])


def test_one_bad_prompt_of_a_batch_stops_all(llm: Llama4) -> None:
    with pytest.raises(RequestError):
        llm.generate([[1], [VOCAB]])
    assert llm.generate("\n", temperature=0).text == SCRIPT
