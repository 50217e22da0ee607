"""The built-in template's repairs: a test for each row of the table in `llama4rs.chat_template`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama4rs.chat_template import ChatTemplate
from llama4rs.errors import ChatTemplateError

from .messages import (
    BOS,
    IMAGE,
    IN_SYSTEM,
    IN_USER,
    PROMPT,
    WEATHER,
    assistant,
    block,
    system,
    text,
    tool,
    user,
)


def test_tools_with_content_list(builtin: ChatTemplate) -> None:
    content = [text("  See "), IMAGE, text(": Paris? ")]
    assert builtin.render([user(content)], [WEATHER]) == (
        BOS + block("user", IN_USER + "See <|image|>: Paris?") + PROMPT
    )
    assert builtin.render([user([text(" a"), text("b ")])], [WEATHER]) == (
        BOS + block("user", IN_USER + "ab") + PROMPT
    )


def test_tools_go_to_the_first_user_message(builtin: ChatTemplate) -> None:
    assert builtin.render([assistant("Welcome "), user("Paris?")], [WEATHER]) == (
        BOS + block("assistant", "Welcome ") + block("user", IN_USER + "Paris?") + PROMPT
    )


def test_tools_without_user_message(builtin: ChatTemplate) -> None:
    with pytest.raises(ChatTemplateError, match="add one or pass tools_in_user_message=False"):
        builtin.render([system("S")], [WEATHER])


def test_tools_in_system_message_that_is_not_there(builtin: ChatTemplate) -> None:
    assert builtin.render([user()], [WEATHER], tools_in_user_message=False) == (
        BOS + block("system", f"Environment: ipython\n{IN_SYSTEM}") + block("user", "Hi") + PROMPT
    )


def test_empty_tools(builtin: ChatTemplate) -> None:
    for in_user in (True, False):
        rendered = builtin.render([system("S"), user()], [], tools_in_user_message=in_user)
        assert rendered == builtin.render([system("S"), user()])
    assert ChatTemplate("{{ tools is none }}").render([user()], []) == "True"


def test_system_message_of_parts(builtin: ChatTemplate) -> None:
    assert builtin.render([system([text(" a"), text(" b ")]), user()]) == (
        BOS + block("system", "a b") + block("user", "Hi") + PROMPT
    )


def test_empty_tool_calls(builtin: ChatTemplate) -> None:
    for calls in ([], None):
        message = {"role": "assistant", "content": "Yes", "tool_calls": calls}
        assert builtin.render([user(), message]) == builtin.render([user(), assistant("Yes")])


def test_content_beside_tool_calls(builtin: ChatTemplate) -> None:
    body = '<|python_start|><|python_end|>{"name": "f", "parameters": {}}'
    for content in ("I look. ", [text("I "), text("look. ")]):
        assert builtin.render([user(), assistant(content, f={})]) == (
            BOS + block("user", "Hi") + block("assistant", "I look. " + body) + PROMPT
        )
    for content in ("", None):
        assert block("assistant", body) in builtin.render([user(), assistant(content, f={})])
    without = assistant(None, f={})
    del without["content"]
    assert block("assistant", body) in builtin.render([user(), without])


@pytest.mark.parametrize("arguments", ['{"a": "é"}', {"a": "é"}])
def test_arguments_as_text(builtin: ChatTemplate, arguments: Any) -> None:
    assert '{"name": "f", "parameters": {"a": "é"}}<|eot|>' in builtin.render(
        [user(), assistant("", f=arguments)]
    )


def test_function_name_with_quotes(builtin: ChatTemplate) -> None:
    rendered = builtin.render([user(), assistant("", **{'f"': {}})])
    assert '{"name": "f\\"", "parameters": {}}' in rendered


def test_tool_results(builtin: ChatTemplate) -> None:
    def result(content: Any, **options: Any) -> str:
        rendered = builtin.render([user(), tool(content)], None, False, **options)
        return rendered.removeprefix(BOS + block("user", "Hi"))

    assert result('{"t": 20}\n') == block("ipython", '{"t": 20}\n')
    assert result("é", quote_tool_results=True) == block("ipython", '"é"')
    assert result([text('{"t":'), text(" 20}")]) == block("ipython", '{"t": 20}')
    assert result([text("see "), IMAGE]) == block("ipython", "see <|image|>")
    assert result([text("a"), 3]) == block("ipython", '[{"type": "text", "text": "a"}, 3]')
    for value in (20, 2.5, True, None, [], {}):
        assert result(value) == block("ipython", json.dumps(value))
