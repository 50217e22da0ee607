"""Streams: the same text in pieces, and leaving them."""

from __future__ import annotations

import pytest

from chain_model import SCRIPT
from llama4rs import Llama4, RequestError


def test_stream_gives_the_same_text_in_pieces(llm: Llama4) -> None:
    stream = llm.stream("\n", temperature=0)
    pieces = list(stream)
    assert pieces == list(SCRIPT)
    assert (stream.output.text, stream.output.finish_reason) == (SCRIPT, "stop")
    assert list(stream) == []


def test_stream_holds_back_what_may_be_a_stop_string(llm: Llama4) -> None:
    assert list(llm.stream("\n", temperature=0, stop="END|")) == list("abcñ ")
    assert list(llm.stream("\n", temperature=0, stop="END?")) == [*"abcñ ", "END|", *"€xyz"]
    assert list(llm.stream("\n", temperature=0, stop="zz")) == list(SCRIPT)


def test_stream_output_so_far(llm: Llama4) -> None:
    stream = llm.stream("\n", temperature=0)
    assert [next(stream), next(stream)] == ["a", "b"]
    assert (stream.output.text, stream.output.finish_reason) == ("ab", None)
    stream.close()
    assert (stream.output.text, stream.output.finish_reason) == ("ab", "cancelled")
    assert list(stream) == []


def test_leaving_a_stream_cancels_it(llm: Llama4) -> None:
    with llm.stream("\n", temperature=0) as stream:
        next(stream)
    assert stream.output.finish_reason == "cancelled"
    llm.stream("\n")  # never read, collected at once


def test_streams_side_by_side(llm: Llama4) -> None:
    streams = [llm.stream(text, temperature=0) for text in ("\n", "b", "\n")]
    texts = ["", "", ""]
    for pieces in zip(*streams, strict=False):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts[0] == texts[2]
    assert SCRIPT.startswith(texts[0])


def test_chat_stream(llm: Llama4) -> None:
    stream = llm.chat_stream("hi", temperature=0)
    assert "".join(stream) == SCRIPT
    assert stream.output.message == {"role": "assistant", "content": SCRIPT}


def test_stream_takes_one_prompt(llm: Llama4) -> None:
    with pytest.raises(RequestError, match="one stream for each"):
        llm.stream(["a", "b"])  # type: ignore[arg-type]
