"""Opening a model: parts that are given or missing, bad options, copies."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from chain_model import SCRIPT
from llama4rs import (
    ChatTemplate,
    CheckpointError,
    CheckpointNotFoundError,
    Llama4,
    RequestError,
    TokenizerError,
)


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
    for one_of_a_kind in (llm.session("s"), llm.stream("a"), llm.astream("a")):
        for take in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                take(one_of_a_kind)
    messages = [{"role": "user", "content": "hi"}]
    for template in (llm.chat_template, ChatTemplate("{{ bos_token }}", bos_token="B")):
        for again in (pickle.loads(pickle.dumps(template)), copy.deepcopy(template)):
            assert again.render(messages) == template.render(messages)


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
