"""The published format, text for text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4rs.chat_template import ChatTemplate

from .messages import (
    BOS,
    IMAGE,
    IN_SYSTEM,
    IN_USER,
    PROMPT,
    RELAXED,
    WEATHER,
    WEATHER_TEXT,
    assistant,
    block,
    render,
    system,
    text,
    tool,
    user,
)


def test_turns() -> None:
    assert render(user("Hi")) == BOS + block("user", "Hi") + PROMPT
    assert render(system("  Be brief.\n"), user(" a \n"), assistant(" b \n"), user("c")) == (
        BOS
        + block("system", "Be brief.")
        + block("user", " a \n")
        + block("assistant", " b \n")
        + block("user", "c")
        + PROMPT
    )


def test_no_generation_prompt() -> None:
    assert render(user("Hi"), add_generation_prompt=False) == BOS + block("user", "Hi")


def test_parts_have_no_separators() -> None:
    content = [text("a "), IMAGE, {"type": "image"}, text("b"), text("\nc ")]
    assert render(user(content)) == (BOS + block("user", "a <|image|><|image|>b\nc ") + PROMPT)


def test_tools_in_first_user_message() -> None:
    assert render(user(" Paris? \n"), user(" b "), tools=[WEATHER]) == (
        BOS + block("user", IN_USER + "Paris?") + block("user", " b ") + PROMPT
    )
    assert render(system(" S "), user("Paris?"), tools=[WEATHER, WEATHER]) == (
        BOS
        + block("system", "Environment: ipython\nS")
        + block("user", IN_USER + WEATHER_TEXT + "Paris?")
        + PROMPT
    )


def test_tools_in_system_message() -> None:
    rendered = render(system("S"), user(" Paris? "), tools=[WEATHER], tools_in_user_message=False)
    assert rendered == (
        BOS
        + block("system", f"Environment: ipython\n{IN_SYSTEM}S")
        + block("user", " Paris? ")
        + PROMPT
    )


def test_tool_call_and_result() -> None:
    calls = assistant("", get_weather={"city": "Orléans", "b": [1, None]}, now={})
    assert render(user(), calls, tool({"t": "20 °C"}), tool([1, "x"])) == (
        BOS
        + block("user", "Hi")
        + block(
            "assistant",
            '<|python_start|><|python_end|>{"name": "get_weather", "parameters": '
            '{"city": "Orléans", "b": [1, null]}}{"name": "now", "parameters": {}}',
        )
        + block("ipython", '{"t": "20 °C"}')
        + block("ipython", '[1, "x"]')
        + PROMPT
    )


def test_equal_to_the_published_template(builtin: ChatTemplate) -> None:
    module = pytest.importorskip(
        "transformers.models.llama4.processing_llama4",
        reason="the published template comes with transformers",
    )
    published = ChatTemplate(module.chat_template)
    words = st.text("ab \n{}<|'\"é日", max_size=6)
    contents = words | st.lists(st.builds(text, words) | st.just(IMAGE), min_size=1, max_size=3)
    values = st.dictionaries(words, words | st.none() | st.lists(st.integers()), max_size=2)
    later = st.one_of(
        st.builds(user, contents),
        st.builds(assistant, words),
        st.builds(lambda v: assistant("", f=v), values),
        st.builds(tool, words | values),
    )

    @RELAXED
    @given(words | st.none(), words, st.lists(later, max_size=4), st.data())
    def check(first: str | None, second: str, rest: list[Any], data: st.DataObject) -> None:
        messages = [] if first is None else [system(first)]
        messages += [user(second), *rest]
        tools = data.draw(st.sampled_from([None, [WEATHER]]))
        options = {"add_generation_prompt": data.draw(st.booleans())}
        if first is not None:
            options["tools_in_user_message"] = data.draw(st.booleans())
        assert builtin.render(
            messages, tools, quote_tool_results=True, **options
        ) == published.render(messages, tools, **options)

    check()
