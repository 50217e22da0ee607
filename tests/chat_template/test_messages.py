"""What a message may be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama4rs.chat_template import ChatTemplate, normalize_messages
from llama4rs.errors import ChatTemplateError

from .messages import IMAGE, WEATHER, assistant, system, text, tool, user


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "messages must be a list of .* not a str"),
        (user(), "messages must be a list of .* not a dict"),
        (None, "messages must be a list of .* not None"),
        ([], "messages is empty; give at least one message"),
        ([user(), "Hi"], r"messages\[1\] must be a dict with role and content, not a str"),
        ([{"content": "Hi"}], r"messages\[0\] has no role; use one of system, user, assist"),
        ([{"role": "robot", "content": "Hi"}], r"messages\[0\] has the unknown role 'robot'"),
        ([{"role": ["user"], "content": "Hi"}], r"messages\[0\] has the unknown role \['user'"),
        ([{"role": "user"}], r"messages\[0\] \(user\) has no content; give a string$"),
        ([assistant(None)], r"messages\[0\] \(assistant\) has no content; .* or tool_calls$"),
        ([{"role": "tool"}], r"messages\[0\] has no content; give the tool's result"),
        ([user(3)], r"messages\[0\].content must be a string or a list of parts, not a int"),
        ([user(text("a"))], r"messages\[0\].content must be a string or a list .* not a dict"),
        ([user(["a"])], r"messages\[0\].content\[0\] must be a dict with a type.* not a str"),
        ([user([{"text": "a"}])], r"messages\[0\].content\[0\] must be a dict with a type"),
        ([user([{"type": "text"}])], r"content\[0\]: a text part needs a string .* not None"),
        ([user([text("a"), text(3)])], r"content\[1\]: a text part needs .* not a int"),  # type: ignore[arg-type]
        ([user([{"type": "audio"}])], r"unknown type 'audio'; use text, image or image_url"),
        ([system([IMAGE])], r"messages\[0\].content\[0\]: a system message cannot hold an im"),
        ([{**user(), "tool_calls": [1]}], r"messages\[0\]: only an assistant message can"),
        ([{**assistant(""), "tool_calls": "f"}], r"tool_calls must be a list, not a str"),
        (
            [{**assistant(""), "tool_calls": ["f"]}],
            r"tool_calls\[0\] must be a dict, not a str",
        ),
        ([{**assistant(""), "tool_calls": [{}]}], r"tool_calls\[0\] needs {'function': "),
        ([{**assistant(""), "tool_calls": [{"type": "x"}]}], "unknown type 'x'; use function"),
        ([assistant("", f="{")], r"tool_calls\[0\]: arguments are not valid JSON"),  # type: ignore[arg-type]
        ([assistant("", f="[1]")], r"arguments must be a JSON object, not a list"),  # type: ignore[arg-type]
    ],
)
def test_errors(builtin: ChatTemplate, messages: Any, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        builtin.render(messages)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (WEATHER, "tools must be a list of JSON descriptions, not a dict"),
        ([WEATHER, len], r"tools\[1\] must be a dict that describes a function, not a builtin"),
        ([{}], r"tools\[0\] names no function\nhint: write {'type': 'function', 'function': {'na"),
        ([WEATHER, {"function": "weather"}], r"tools\[1\] names no function"),
        ([{"type": "function", "function": {"parameters": {}}}], r"tools\[0\] names no function"),
        ([{"name": ""}], r"tools\[0\] names no function"),
        ([{"name": 5}], r"tools\[0\] names no function"),
    ],
)
def test_tool_errors(builtin: ChatTemplate, tools: Any, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        builtin.render([user()], tools)


def test_deep_nesting(builtin: ChatTemplate) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ChatTemplateError, match="nested too deeply"):
        builtin.render([user(), tool({"a": deep})])
    with pytest.raises(ChatTemplateError, match="arguments are not valid JSON"):
        builtin.render([user(), assistant("", f='{"a": ' + "[" * 100_000)])  # type: ignore[arg-type]


def test_normal_form() -> None:
    given_messages = (
        system([]),
        {**user([text("a"), IMAGE]), "name": "Ann"},
        {
            "role": "assistant",
            "tool_calls": (
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": " "}},
                {"name": "g", "parameters": {"a": 1}},
            ),
        },
        {"role": "ipython", "content": None},
    )
    before = json.dumps(given_messages)
    assert normalize_messages(given_messages) == [
        system(""),
        {**user([text("a"), {"type": "image"}]), "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}},
                {"type": "function", "function": {"name": "g", "arguments": {"a": 1}}},
            ],
        },
        {"role": "ipython", "content": None},
    ]
    assert json.dumps(given_messages) == before
