"""Templates from files run in a sandbox; their errors are clear."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from llama4rs.chat_template import IMAGE_TOKEN, ChatTemplate
from llama4rs.errors import ChatTemplateError
from llama4rs.tokenizer import Tokenizer

from .messages import IMAGE, WEATHER, user


def test_json_filter() -> None:
    value = [{**user("é<|>&'\"\\"), "z": 1, "a": None}]
    for call in ("tojson", "tojson(indent=2)", "tojson(separators=(',', ':'))"):
        rendered = ChatTemplate("{{ messages | " + call + " }}").render(value)
        assert json.loads(rendered) == [{**value[0]}]
        assert "é<|>&'" in rendered
        assert rendered.index('"z"') < rendered.index('"a"')
    ascii_only = ChatTemplate("{{ messages[0].content | tojson(ensure_ascii=true) }}")
    assert ascii_only.render(value) == json.dumps("é<|>&'\"\\")
    assert ascii_only.render([user("😀|")]) == '"\\ud83d\\ude00|"'
    ordered = ChatTemplate("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}")
    assert ordered.render(value) == '{"a": 2, "b": 1}'


def test_functions_and_tags() -> None:
    year = ChatTemplate("{{ strftime_now('%Y') }}").render([user()])
    assert year.isdigit()
    assert len(year) == 4
    source = "{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}"
    assert ChatTemplate(source).render([user()]) == "1"
    source = "a{% generation %}{{ messages[0].content }}{% endgeneration %}b"
    assert ChatTemplate(source).render([user("x")]) == "axb"
    source = "{% if true %}\n  {% set x = 1 %}\n{{ x }}\n{% endif %}\n"
    assert ChatTemplate(source).render([user()]) == "1\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('only text, please') }}", "refuses the messages: only text, plea"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages: .*unsafe"),
        ("{{ messages.append(1) }}", "refuses the messages: .*unsafe"),
        ("{{ range(10000000) | list }}", "failed: OverflowError"),
        ("{{ missing.attribute }}", "refuses the messages: 'missing' is undefined"),
        ("{{ missing | tojson }}", "failed: TypeError"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
    ],
)
def test_failures(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source).render([user()])


def test_syntax_error() -> None:
    with pytest.raises(ChatTemplateError, match=r"syntax error in line 2: .*'endfor'"):
        ChatTemplate("a\n{% for x in y %}")
    with pytest.raises(ChatTemplateError, match="syntax error in line 1"):
        ChatTemplate("ok", tool_source="{{")


def test_from_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{{ messages[0].content }} é", "utf-8")
    assert ChatTemplate.from_file(path).render([user()]) == "Hi é"
    with pytest.raises(
        ChatTemplateError,
        match=r"cannot read the chat template .*nowhere.*\n.*ChatTemplate\(text\)",
    ):
        ChatTemplate.from_file(tmp_path / "nowhere")


def test_lost_images_are_an_error(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ messages[0].content | string }}")
    with pytest.raises(ChatTemplateError, match="have 1 images and the chat template wrote 0"):
        template.encode(tokenizer, [user([IMAGE])])
    with pytest.raises(ChatTemplateError, match="have 0 images and the chat template wrote 1"):
        ChatTemplate(IMAGE_TOKEN).render([user()])


def test_template_variables(builtin: ChatTemplate) -> None:
    assert ChatTemplate("{{ a }}{{ b[0] }}").render([user()], a="x|", b=["y"]) == "x|y"
    with pytest.raises(ChatTemplateError, match="'bos_token' cannot be passed"):
        builtin.render([user()], bos_token="x")


def test_threads(builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
    expected = builtin.encode(tokenizer, [user("<|eot|>")], [WEATHER])
    results: list[list[int]] = []

    def work() -> None:
        for _ in range(20):
            results.append(builtin.encode(tokenizer, [user("<|eot|>")], [WEATHER]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 80
