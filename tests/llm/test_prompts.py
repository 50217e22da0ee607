"""What may be a prompt, alone and in batches."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
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


def test_arrays_are_lists(llm: Llama4) -> None:
    for batch in (np.array([[10], [10]]), [np.array([10]), np.array([10])], [array("I", [10])] * 2):
        assert [output.text for output in llm.generate(batch, temperature=0)] == [SCRIPT] * 2


def test_a_million_tokens_are_looked_at_in_no_time(llm: Llama4) -> None:
    token_ids = [1000 + number for number in range(1_000_000)]

    def refused() -> None:
        with pytest.raises(RequestError, match="the prompt has 1000000 tokens and the context"):
            llm.stream(token_ids)

    def seconds(work: Callable[[], object]) -> float:
        began = time.thread_time()
        work()
        return time.thread_time() - began

    looking = min(seconds(refused) for _ in range(5))
    assert looking < min(seconds(lambda: [int(token) for token in token_ids]) for _ in range(5))


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
        ([5, -1], "token id -1 is outside of the vocabulary (prompt[1])"),
        ([[1], [5, -1]], "prompt 2 of 2: token id -1 is outside of the vocabulary (prompt[1])"),
        (["a", "b", [VOCAB]], f"prompt 3 of 3: token id {VOCAB}"),
        (["a", [1.5]], "prompt 2 of 2: a prompt is a string"),
        ([VOCAB], str(VOCAB)),
        ([1 << 70], f"token id {1 << 70} is outside of the vocabulary"),
        ([10**5000], "token id a value of type int is outside of the vocabulary"),
        ([np.array([1, 2]), 3], "int and ndarray"),
        (np.array(3), "got ndarray"),
    ],
)
def test_bad_prompts_are_request_errors(llm: Llama4, prompt: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        llm.generate(prompt, max_tokens=1)
    assert words in str(caught.value)


def test_bad_conversations(llm: Llama4) -> None:
    with pytest.raises(ChatTemplateError, match=r"prompt 2 of 2: messages\[0\] has the unknown ro"):
        llm.generate([[{"role": "user", "content": "hi"}], [{"role": "nobody"}]])
    with pytest.raises(ChatTemplateError, match=r"tools\[0\] names no function"):
        llm.chat("hi", tools=[{}])
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
