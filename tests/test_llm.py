"""`Llama4` on a checkpoint whose every next token is known; see `chain_model`."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain_model import (
    BOS,
    EOT,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    MAX_CONTEXT,
    PATCH,
    SCRIPT,
    TILE_X,
    TILE_Y,
    TOOL_CALL,
    VOCAB,
    make_chain_model,
)

pytest.importorskip("llama4rs._llama4rs", reason="the compiled core is not built")

import llama4rs
from llama4rs import (
    ChatTemplateError,
    CheckpointError,
    CheckpointNotFoundError,
    ImageError,
    Llama4,
    RequestError,
    SamplingParams,
    TokenizerError,
)
from llama4rs.stop_strings import StopStrings


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    return Llama4(make_chain_model(tmp_path_factory.mktemp("chain")), threads=2)


@pytest.fixture(scope="module")
def textless(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    folder = make_chain_model(tmp_path_factory.mktemp("textless"), tokenizer=False)
    return Llama4(folder, threads=1)


# --------------------------------------------------------------------------------------- prompts


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


# ------------------------------------------------------------------------------------ the ending


def test_max_tokens(llm: Llama4) -> None:
    output = llm.generate("\n", max_new_tokens=3, do_sample=False)
    assert (output.text, output.finish_reason, output.stop_reason) == ("abc", "length", None)


def test_a_cut_character_is_replaced(llm: Llama4) -> None:
    assert llm.generate("\n", max_tokens=4, temperature=0).text == "abc\ufffd"


def test_default_max_tokens_ends_with_the_context(llm: Llama4) -> None:
    output = llm.generate([97] * (MAX_CONTEXT - 10), temperature=0, ignore_eos=True)
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 10


def test_too_long_prompts(llm: Llama4) -> None:
    for length in (MAX_CONTEXT, 2 * MAX_CONTEXT):
        with pytest.raises(RequestError, match=f"{length} tokens.*\nhint: shorten"):
            llm.generate([97] * length)


def test_max_context_can_be_chosen(llm: Llama4) -> None:
    small = Llama4(llm.path, max_context=8, threads=1)
    assert small.max_context == 8
    assert small.generate("\n", temperature=0).text == "abcñ "


@pytest.mark.parametrize("stop", ["END", " END", "ñ E", "D", ["nothing", "ND"], "z"])
def test_stop_strings(llm: Llama4, stop: Any) -> None:
    output = llm.generate("\n", temperature=0, stop=stop)
    met = stop if isinstance(stop, str) else "ND"
    assert output.text == SCRIPT[: SCRIPT.index(met)]
    assert (output.finish_reason, output.stop_reason) == ("stop", met)
    assert bytes(output.token_ids).decode() == SCRIPT[: SCRIPT.index(met)] + met


def test_stop_string_that_never_comes(llm: Llama4) -> None:
    output = llm.generate("\n", temperature=0, stop=["xyz!", "END!"])
    assert (output.text, output.stop_reason) == (SCRIPT, EOT)


def test_stop_token_ids_are_added_to_the_models_own(llm: Llama4) -> None:
    output = llm.generate("\n", temperature=0, stop_token_ids=[ord("E")])
    assert (output.text, output.stop_reason) == ("abcñ ", ord("E"))
    assert llm.generate("\n", temperature=0, eos_token_id=ord("|")).text == "abcñ END"
    assert llm.generate("x", temperature=0, stop_token_ids=[ord("E")]).stop_reason == EOT


def test_ignore_eos(llm: Llama4) -> None:
    output = llm.generate("x", temperature=0, ignore_eos=True, max_tokens=6)
    assert output.text == "yz\nab"
    assert output.token_ids[2] == EOT
    shown = llm.generate("x", temperature=0, ignore_eos=True, max_tokens=6, skip_special=False)
    assert shown.text == "yz<|eot|>\nab"


# -------------------------------------------------------------------------------------- sampling


def test_same_seed_same_tokens_whatever_the_batch(llm: Llama4) -> None:
    options: dict[str, Any] = {"temperature": 3.0, "top_p": 1.0, "max_tokens": 40, "seed": 7}
    alone = [llm.generate(text, **options).token_ids for text in ("\n", "x", "b")]
    together = llm.generate(["\n", "x", "b", "\n"], **options)
    assert [output.token_ids for output in together] == [*alone, alone[0]]
    other = llm.generate("\n", **{**options, "seed": 8})
    assert other.token_ids != alone[0]


def test_the_models_seed_is_the_default(llm: Llama4) -> None:
    hot = SamplingParams(temperature=3.0, top_p=1.0, max_tokens=30, seed=3, ignore_eos=True)
    seeded = Llama4(llm.path, seed=3, threads=1)
    options: dict[str, Any] = {"temperature": 3.0, "top_p": 1.0, "max_tokens": 30}
    expected = llm.generate("\n", hot).token_ids
    assert seeded.generate("\n", ignore_eos=True, **options).token_ids == expected
    fresh = Llama4(llm.path, seed=None, threads=1)
    drawn = {fresh.generate("\n", ignore_eos=True, **options).token_ids for _ in range(4)}
    assert len(drawn) > 1


def test_defaults_come_from_the_checkpoint(tmp_path: Path) -> None:
    settings = {"temperature": 0.25, "top_p": 0.5, "max_new_tokens": 3, "eos_token_id": [99]}
    llm = Llama4(make_chain_model(tmp_path, generation_config=settings), threads=1)
    assert llm.defaults == SamplingParams(temperature=0.25, top_p=0.5, max_tokens=3)
    assert llm.generate("\n", temperature=0).text == "ab"


@pytest.mark.parametrize("content", ["{", "[]", '{"top_p": 3}', '{"temperature": "hot"}'])
def test_damaged_generation_config(tmp_path: Path, content: str) -> None:
    folder = make_chain_model(tmp_path)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises((CheckpointError, TokenizerError), match="generation_config"):
        Llama4(folder)


def test_logprobs(llm: Llama4) -> None:
    output = llm.generate("\n", temperature=0, logprobs=3, max_tokens=5)
    assert output.logprobs is not None
    assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
    assert [entry.bytes for entry in output.logprobs] == [b"a", b"b", b"c", b"\xc3", b"\xb1"]
    assert [entry.text for entry in output.logprobs] == ["a", "b", "c", "\ufffd", "\ufffd"]
    logits = llm.logits([*output.prompt_token_ids, *output.token_ids]).astype(np.float64)
    for entry, row in zip(output.logprobs, logits[1:], strict=False):
        expected = row - np.log(np.exp(row).sum())
        assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-3)
        assert entry.top[0].token_id == entry.token_id
        assert [top.logprob for top in entry.top] == pytest.approx(
            sorted(expected)[:-4:-1], abs=1e-3
        )
    chosen_only = llm.generate("\n", temperature=0, logprobs=True, max_tokens=1).logprobs
    assert chosen_only is not None
    assert chosen_only[0].top == ()


def test_unknown_options(llm: Llama4) -> None:
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        llm.generate("a", tempurature=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="such as max_tokens=50"):
        llm.generate("a", 50)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="use stream"):
        llm.chat("a", stream=True)  # type: ignore[call-arg]


# -------------------------------------------------------------------------------------- streaming


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


# ------------------------------------------------------------------------------------ interrupts


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


# ----------------------------------------------------------------------------------- tools, facts


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


# ----------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    return Llama4(make_chain_model(tmp_path_factory.mktemp("seeing"), vision=True), threads=2)


def _picture(grey: int, width: int = 56, height: int = 56) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), grey, dtype=np.uint8)


def test_images_of_a_conversation(seeing: Llama4) -> None:
    assert seeing.has_vision
    parts = [{"type": "image", "image": _picture(9)}, {"type": "text", "text": "what?"}]
    output = seeing.chat([{"role": "user", "content": parts}], temperature=0)
    assert output.text == SCRIPT
    assert output.message == {"role": "assistant", "content": SCRIPT}
    one_tile = (IMAGE_START, IMAGE, PATCH, PATCH, PATCH, PATCH, IMAGE_END)
    start = output.prompt_token_ids.index(IMAGE_START)
    assert output.prompt_token_ids[start : start + 7] == one_tile
    short = seeing.chat("what?", images=[_picture(9)], temperature=0)
    assert short.prompt_token_ids == output.prompt_token_ids


def test_images_of_raw_prompts(seeing: Llama4) -> None:
    wide = _picture(9, width=112)
    output = seeing.generate("<|image|><|image|>\n", images=[_picture(9), wide], temperature=0)
    assert output.text == SCRIPT
    assert output.prompt_token_ids.count(PATCH) == 4 + 3 * 4
    assert output.prompt_token_ids.count(TILE_X) == output.prompt_token_ids.count(TILE_Y) == 1
    ids = seeing.generate([BOS, IMAGE, 10], images=[_picture(9)], temperature=0)
    assert (ids.text, ids.prompt_token_ids.count(PATCH)) == (SCRIPT, 4)


def test_the_model_sees_the_right_picture(seeing: Llama4) -> None:
    def at_patches(*pictures: Any) -> npt.NDArray[np.float32]:
        logits = seeing.logits([IMAGE] * len(pictures), images=pictures)
        return logits.reshape(len(pictures), 7, VOCAB)[:, 2:6]

    black, white = at_patches(_picture(0), _picture(255))
    assert np.abs(black - white).max() > 0.01
    np.testing.assert_allclose(at_patches(_picture(255), _picture(0)), [white, black], atol=1e-4)


def test_all_kinds_of_image_sources(seeing: Llama4, tmp_path: Path) -> None:
    import base64

    from PIL import Image

    file = tmp_path / "grey.png"
    image = Image.fromarray(_picture(77))
    image.save(file)
    data_url = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": image},
        {"type": "image", "image": str(file)},
        {"type": "image", "image": file.read_bytes()},
        {"type": "image", "path": file},
        {"type": "image", "url": data_url},
        {"type": "image_url", "image_url": data_url},
        {"type": "image_url", "image_url": {"url": data_url}},
    ]
    output = seeing.chat([{"role": "user", "content": parts}], max_tokens=1)
    assert output.prompt_token_ids.count(PATCH) == 4 * len(parts)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image", "image": "/no/such/file.png"},
        {"type": "image", "image": b"no image"},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}},
    ],
)
def test_bad_images(seeing: Llama4, part: dict[str, Any]) -> None:
    with pytest.raises(ImageError):
        seeing.chat([{"role": "user", "content": [part]}])


def test_images_in_the_wrong_place(seeing: Llama4, llm: Llama4) -> None:
    picture = _picture(9)
    with pytest.raises(ImageError):
        seeing.generate("<|image|><|image|>", images=[picture])
    with pytest.raises(TypeError, match="into its messages"):
        seeing.chat([{"role": "user", "content": "hi"}], images=[picture])
    with pytest.raises(TypeError, match="list of images for each prompt"):
        seeing.generate(["<|image|>", "<|image|>"], images=[picture, picture])
    with pytest.raises(RequestError, match="reads no images"):
        llm.chat("what?", images=[picture])


# ---------------------------------------------------------------------------------------- opening


def test_without_tokenizer(textless: Llama4) -> None:
    assert not textless.has_tokenizer
    output = textless.generate([10], temperature=0)
    assert (output.text, output.token_ids) == ("", tuple(SCRIPT.encode()))
    stream = textless.stream([10], temperature=0, max_tokens=3)
    assert list(stream) == ["", "", ""]
    assert stream.output.token_ids == tuple(b"abc")
    for prompt in ("text", [{"role": "user", "content": "hi"}]):
        with pytest.raises(TokenizerError, match=r"no tokenizer\nhint: .*tokenizer.json"):
            textless.generate(prompt)
    with pytest.raises(RequestError, match="stop_token_ids"):
        textless.generate([10], stop="x")


def test_another_tokenizer(textless: Llama4, llm: Llama4) -> None:
    for tokenizer in (llm.tokenizer, llm.path, str(llm.path / "tokenizer.json")):
        opened = Llama4(textless.path, tokenizer=tokenizer, threads=1)
        assert opened.generate("\n", temperature=0).text == SCRIPT


def test_another_chat_template(llm: Llama4, tmp_path: Path) -> None:
    file = tmp_path / "short.jinja"
    file.write_text("{{ bos_token }}{{ messages[-1].content }}")
    opened = Llama4(llm.path, chat_template=file, threads=1)
    assert opened.chat("x", temperature=0).text == "yz"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, 'must be "auto", "cpu", "cuda" or "cuda:N", got "tpu"'),
        ({"device": "cuda:x"}, 'got "cuda:x"'),
        ({"weights": "int3"}, "int3"),
        ({"threads": 0}, "threads must be an integer from 1 to 1024, got 0"),
        ({"threads": "4"}, "threads must be an integer from 1 to 1024, got '4'"),
        ({"threads": 10**6}, "threads"),
        ({"max_context": 0}, "max_context must be an integer from 1 to 2**63 - 1, got 0"),
        ({"max_context": -1}, "max_context"),
        ({"max_context": 10**30}, "max_context"),
        ({"step_tokens": 0}, "step_tokens"),
        ({"prefix_cache_bytes": -1}, "prefix_cache_bytes is a number of bytes such as"),
        ({"image_cache_bytes": "many"}, "image_cache_bytes is a number of bytes such as"),
        ({"policy": "int8"}, "policy maps patterns of names to formats"),
        ({"kv_cache": "f8"}, "kv_cache"),
        ({"policy": {"*": "int3"}}, "int3"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_options_of_a_model(llm: Llama4, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        Llama4(llm.path, **options)
    assert words in str(caught.value)


def test_arguments_of_the_wrong_kind(llm: Llama4) -> None:
    with pytest.raises(TypeError, match="a model is a directory, a hub id or None, got 3"):
        Llama4(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="progress is True, False or a function, got 3"):
        Llama4(llm.path, progress=3)  # type: ignore[arg-type]


def test_pickling_says_what_to_do(llm: Llama4) -> None:
    for thing in (llm, llm.session("a"), llm.tokenizer):
        for take in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="in every process"):
                take(thing)
    output = llm.generate("a", max_tokens=1)
    assert pickle.loads(pickle.dumps(output)) == output


def test_a_forked_process_may_go_on(llm: Llama4) -> None:
    """Its threads are gone; the model computes all the same."""
    program = (
        "import os, sys, time, llama4rs\n"
        "llm = llama4rs.Llama4(sys.argv[1], threads=3)\n"
        "expected = llm.generate('\\n', temperature=0)\n"
        "time.sleep(0.05)  # until the threads sleep\n"
        "child = os.fork()\n"
        "same = llm.generate('\\n', temperature=0).token_ids == expected.token_ids\n"
        "if not child:\n"
        "    os._exit(0 if same else 1)\n"
        "sys.exit(0 if same and os.waitpid(child, 0)[1] == 0 else 1)\n"
    )
    subprocess.run([sys.executable, "-c", program, llm.path], timeout=60, check=True)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        Llama4(tmp_path / "nowhere")
    with pytest.raises((CheckpointError, CheckpointNotFoundError), match=r"config\.json"):
        Llama4(tmp_path)


def test_progress_of_opening(llm: Llama4, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    Llama4(llm.path, progress=lambda what, done, total: seen.append((what, done, total)))
    assert all(0 <= done <= total for _, done, total in seen)
    Llama4(llm.path, threads=1, progress=True).generate(["a", "b"], max_tokens=2, progress=True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Llama4(llm.path, progress=interrupt)


# ------------------------------------------------------------------------------------ stop strings


@given(
    text=st.text("abE", max_size=12),
    stops=st.lists(st.text("abE", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=5),
)
def test_stop_strings_do_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    def run(pieces: list[str]) -> tuple[str, str | None]:
        stop = StopStrings(stops)
        sure = "".join(stop.push(piece) for piece in pieces)
        assert not any(s in sure for s in stops)
        return sure + stop.flush(), stop.found

    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    expected = run([text])
    assert run(pieces) == run(list(text)) == expected
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
        assert expected == (text, None)
    else:
        before, found = expected
        assert found is not None
        assert (before + found) == text[: min(ends)]
