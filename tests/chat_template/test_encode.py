"""Conversations to token ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4rs.chat_template import ChatTemplate, image_parts
from llama4rs.tokenizer import Tokenizer
from tokenizer.small import SPECIALS, saved, small_backend
from tokenizer.texts import LANGUAGES

from .messages import BOS, IMAGE, RELAXED, WEATHER, assistant, joint_ids, system, text, tool, user


def test_equals_the_joint_text(builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
    messages = [system("S"), *map(user, LANGUAGES.values()), assistant("é", f={"a": "日|"})]
    messages.append(tool("a | b || c <b>"))
    ids = builtin.encode(tokenizer, messages, [WEATHER])
    assert ids == joint_ids(tokenizer, builtin.render(messages, [WEATHER]))
    assert ids[0] == tokenizer.bos_id
    assert ids.count(ids[0]) == 1
    assert tokenizer.decode(ids, skip_special=False) == builtin.render(messages, [WEATHER])


def test_benign_text_is_not_touched(builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
    @RELAXED
    @given(st.text(max_size=20) | st.text("|<> \na\U0001d800\U0001d801", max_size=12))
    def check(content: str) -> None:
        content = content.encode("utf-8", "replace").decode()
        messages = [system(content), user(content), tool({content: content})]
        rendered = builtin.render(messages)
        if not any(name in content for name in SPECIALS):
            assert builtin.encode(tokenizer, messages) == joint_ids(tokenizer, rendered)
        assert rendered.count(f"{content}<|eot|>") >= 1

    check()


def test_images(builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
    messages = [user([text("a"), IMAGE, text("<|image|>"), {"type": "image", "image": 7}])]
    ids = builtin.encode(tokenizer, messages)
    assert ids.count(tokenizer.special_id("image")) == 2
    assert "a<|image|>" in tokenizer.decode(ids)
    assert image_parts(messages) == [IMAGE, {"type": "image", "image": 7}]
    assert image_parts([user(), tool([1, {"type": "image"}]), tool([IMAGE])]) == [IMAGE]


@pytest.mark.parametrize(
    ("source", "num_bos"),
    [
        ("{{ bos_token }}x", 1),
        ("x", 1),
        ("{{ bos_token }}{{ bos_token }}x", 1),
        ("<|begin_of_text|>{{ bos_token }}", 1),
    ],
)
def test_one_bos(tokenizer: Tokenizer, source: str, num_bos: int) -> None:
    ids = ChatTemplate(source).encode(tokenizer, [user()])
    assert ids[0] == tokenizer.bos_id
    assert ids.count(ids[0]) == num_bos


def test_tokenizer_without_special_tokens(tmp_path: Path, builtin: ChatTemplate) -> None:
    spec = json.loads(small_backend().to_str())
    spec["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    plain = Tokenizer.from_file(tmp_path / "tokenizer.json")
    ids = builtin.encode(plain, [user("a|b")])
    assert ids == plain.encode(builtin.render([user("a|b")]).removeprefix(BOS))


def test_from_tokenizer(tmp_path: Path) -> None:
    saved(small_backend(), tmp_path / "tokenizer.json")
    assert ChatTemplate.from_tokenizer(Tokenizer.from_dir(tmp_path)).is_builtin
    named = [
        {"name": "default", "template": "{{ bos_token }}{{ eos_token }}"},
        {"name": "tool_use", "template": "{{ tools | length }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|step|>", "chat_template": named})
    )
    template = ChatTemplate.from_tokenizer(Tokenizer.from_dir(tmp_path))
    assert not template.is_builtin
    assert template.render([user()]) == BOS + "<|step|>"
    assert template.render([user()], [WEATHER]) == "1"
